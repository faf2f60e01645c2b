"""DINO's weights under the names of the authors' code and of detrex.

The tables depend on the configuration: level 3 comes from the backbone in a 5-scale model and is made by the neck in a
4-scale one, and shared heads stand in files as often as there are layers.
"""

from __future__ import annotations

from vistrain.backbones.resnet_keys import COUNTERS
from vistrain.backbones.swin_keys import TABLES, Rules, swin_exports, swin_rules
from vistrain.checkpoints import KeyMap
from vistrain.detection.deformable_detr_keys import DETREX, SHARED_HEADS, detrex_exports


def official_names(maps: int, decoder_layers: int, shared_heads: bool = True) -> KeyMap:
    """IDEA-Research/DINO.

    Args:
        maps: number of the backbone's maps.
        decoder_layers: number of the decoder's layers.
        shared_heads: which share their heads (its default), or have their own (`dec_pred_class_embed_share = False`).
    """
    places = ("", "transformer.decoder.")
    layers = range(decoder_layers)
    proposals: Rules = ()
    one: Rules = ()
    if shared_heads:
        one = ((r"^(class|bbox)_embed\.\d+\.", r"\1_embed.0."),)
        copies = {0: tuple(f"{place}{{}}_embed.{i}." for i in layers for place in places)}
    else:  # ours has the heads of the proposals behind those of the layers
        proposals = ((r"^enc_out_(class|bbox)_embed\.", rf"\1_embed.{decoder_layers}."),)
        copies = {i: tuple(f"{place}{{}}_embed.{i}." for place in places) for i in layers}
        copies[decoder_layers] = ("transformer.enc_out_{}_embed.",)
    return KeyMap(
        name="official DINO",
        marker=r"^transformer\.enc_out_class_embed\.",
        rules=(
            (r"^backbone\.0\.body\.", "backbone.body."),
            *swin_rules("backbone.0.", "backbone.body.", maps),
            (r"^transformer\.", ""),
            *proposals,
            *((rf"^input_proj\.{i}\.", f"neck.convs.{i}.") for i in range(maps)),
            *((rf"^input_proj\.{maps + i}\.", f"neck.extra_convs.{i}.") for i in range(6)),
            (r"^(neck\.\w*convs\.\d)\.0\.", r"\1.conv."),
            (r"^(neck\.\w*convs\.\d)\.1\.", r"\1.norm."),
        ),
        drop=(*COUNTERS, *TABLES),
        aliases=(*SHARED_HEADS, *one),
        exports=(
            *swin_exports("backbone.0.", "backbone.body.", maps),
            (r"^backbone\.body\.", ("backbone.0.body.",)),
            (r"^(level_embed$|(encoder|decoder|tgt_embed|enc_out\w*)\.)", (r"transformer.\1",)),
            (r"^(neck\.\w*convs\.\d)\.conv\.", (r"\1.0.",)),
            (r"^(neck\.\w*convs\.\d)\.norm\.", (r"\1.1.",)),
            *((rf"^neck\.convs\.{i}\.", (f"input_proj.{i}.",)) for i in range(maps)),
            *((rf"^neck\.extra_convs\.{i}\.", (f"input_proj.{maps + i}.",)) for i in range(6)),
            *(
                (rf"^{kind}_embed\.{i}\.", tuple(name.format(kind) for name in names))
                for kind in ("class", "bbox")
                for i, names in copies.items()
            ),
        ),
    )


def detrex_names(maps: int) -> KeyMap:
    """detrex, projects/dino; `maps` as in `official_names`."""
    return KeyMap(
        name="detrex",
        marker=DETREX.marker,
        rules=(*swin_rules("backbone.", "backbone.body.", maps), *DETREX.rules),
        drop=(*COUNTERS, *TABLES),
        aliases=SHARED_HEADS,
        exports=(*detrex_exports(maps), BOTH_HEADS),
    )


# The decoder holds the heads a second time.
BOTH_HEADS = (r"^((class|bbox)_embed\.)", (r"\1", r"transformer.decoder.\1"))
