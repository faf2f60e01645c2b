"""Deformable-DETR's weights under the names of the authors' code and of detrex."""

from __future__ import annotations

from dataclasses import replace

from vistrain.backbones.resnet_keys import COUNTERS, detectron2_exports, detectron2_rules
from vistrain.backbones.swin_keys import swin_exports
from vistrain.checkpoints import KeyMap

Exports = tuple[tuple[str, tuple[str, ...]], ...]

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


def names_of(box_refinement: bool, two_stage: bool) -> tuple[KeyMap, KeyMap]:
    """Both namings as the files of one form of the model have them, which hold some heads a second time."""
    twice = [*(["bbox"] if box_refinement else ()), *(["class"] if two_stage else ())]
    heads = tuple((rf"^({kind}_embed\.)", (r"\1", r"transformer.decoder.\1")) for kind in twice)
    transformer = r"^(level_embed$|(encoder|decoder|reference_points|enc_output\w*|pos_trans\w*)\.)"
    official = (
        (r"^backbone\.body\.", ("backbone.0.body.",)),
        (transformer, (r"transformer.\1",)),
        (r"^(neck\.\w+\.\d)\.conv\.", (r"\1.0.",)),
        (r"^(neck\.\w+\.\d)\.norm\.", (r"\1.1.",)),
        (r"^neck\.convs\.", ("input_proj.",)),
        *((rf"^neck\.extra_convs\.{i}\.", (f"input_proj.{3 + i}.",)) for i in range(3)),
        *heads,
    )
    detrex = ((r"^query_embed\.", ("query_embedding.",)), *detrex_exports(3), *heads)
    return replace(OFFICIAL, exports=official), replace(DETREX, exports=detrex)


def detrex_exports(maps: int) -> Exports:
    """The inverse of detrex's rules and Swin's, without the heads; `maps`: number of the backbone's maps."""
    encoder, decoder = r"^(encoder\.layers\.\d+)\.", r"^(decoder\.layers\.\d+)\."
    return (
        *detectron2_exports("backbone.", "backbone.body."),
        *swin_exports("backbone.", "backbone.body.", maps),
        (r"^level_embed$", ("transformer.level_embeds",)),
        (rf"{encoder}self_attn\.", (r"\1.attentions.0.",)),
        (rf"{encoder}norm1\.", (r"\1.norms.0.",)),
        (rf"{encoder}norm2\.", (r"\1.norms.1.",)),
        (rf"{decoder}self_attn\.", (r"\1.attentions.0.attn.",)),
        (rf"{decoder}cross_attn\.", (r"\1.attentions.1.",)),
        (rf"{decoder}norm2\.", (r"\1.norms.0.",)),
        (rf"{decoder}norm1\.", (r"\1.norms.1.",)),
        (rf"{decoder}norm3\.", (r"\1.norms.2.",)),
        (r"^(\w+\.layers\.\d+)\.linear1\.", (r"\1.ffns.0.layers.0.0.",)),
        (r"^(\w+\.layers\.\d+)\.linear2\.", (r"\1.ffns.0.layers.1.",)),
        (r"^((encoder|decoder|tgt_embed|enc_output\w*|reference_points|pos_trans\w*)\.)", (r"transformer.\1",)),
    )
