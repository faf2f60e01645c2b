"""Deformable-DETR's weights under the names of the authors' code and of detrex."""

from __future__ import annotations

from vistrain.backbones.resnet_keys import COUNTERS, detectron2_rules
from vistrain.checkpoints import KeyMap

# The decoder holds the heads a second time where it uses them: boxes with refinement, classes too in two-stage models.
SHARED_HEADS = ((r"^decoder\.(class|bbox)_embed\.", r"\1_embed."),)

OFFICIAL = KeyMap(
    name="official",
    marker=r"^input_proj\.0\.0\.",
    rules=(
        (r"^backbone\.0\.body\.", "backbone.body."),
        (r"^transformer\.", ""),
        # Levels 0 to 2 come from the backbone's three maps, further ones are made from the last map.
        (r"^input_proj\.([0-2])\.", r"neck.convs.\1."),
        *((rf"^input_proj\.{3 + i}\.", f"neck.extra_convs.{i}.") for i in range(3)),
        (r"^(neck\.\w+\.\d)\.0\.", r"\1.conv."),
        (r"^(neck\.\w+\.\d)\.1\.", r"\1.norm."),
    ),
    drop=COUNTERS,
    aliases=SHARED_HEADS,
)

DETREX = KeyMap(
    name="detrex",
    marker=r"^transformer\.level_embeds$",
    rules=(
        *detectron2_rules("backbone.", "backbone.body."),
        (r"^query_embedding\.", "query_embed."),
        (r"^transformer\.", ""),
        (r"^level_embeds$", "level_embed"),
        (r"^(encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
        (r"^(encoder\.layers\.\d+)\.norms\.0\.", r"\1.norm1."),
        (r"^(encoder\.layers\.\d+)\.norms\.1\.", r"\1.norm2."),
        (r"^(decoder\.layers\.\d+)\.attentions\.0\.attn\.", r"\1.self_attn."),
        (r"^(decoder\.layers\.\d+)\.attentions\.1\.", r"\1.cross_attn."),
        (r"^(decoder\.layers\.\d+)\.norms\.0\.", r"\1.norm2."),
        (r"^(decoder\.layers\.\d+)\.norms\.1\.", r"\1.norm1."),
        (r"^(decoder\.layers\.\d+)\.norms\.2\.", r"\1.norm3."),
        (r"^(\w+\.layers\.\d+)\.ffns\.0\.layers\.0\.0\.", r"\1.linear1."),
        (r"^(\w+\.layers\.\d+)\.ffns\.0\.layers\.1\.", r"\1.linear2."),
    ),
    drop=COUNTERS,
    aliases=SHARED_HEADS,
)
