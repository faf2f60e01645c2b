"""Focus-DETR's weights under the names of the authors' code."""

from __future__ import annotations

from vistrain.backbones.resnet_keys import COUNTERS
from vistrain.backbones.swin_keys import TABLES, swin_rules
from vistrain.checkpoints import KeyMap
from vistrain.detection.deformable_detr_keys import DETREX, SHARED_HEADS, detrex_exports
from vistrain.detection.dino_keys import BOTH_HEADS


def official_names(maps: int, encoder_layers: int, decoder_layers: int) -> KeyMap:
    """huawei-noah/noah-research, Focus-DETR; the same in detrex's projects/focus_detr.

    Args:
        maps: number of the backbone's maps.
        encoder_layers, decoder_layers: the proposals' class head stands in files under two more names for each layer
            of the encoder, and behind the heads of the decoder's layers.
    """
    layer, head = r"^transformer\.encoder\.layers\.(\d+)\.", f"class_embed.{decoder_layers}."
    copies = (f"{x}.{i}." for x in ("enhance_MCSP_layerlist", "encoder.enhance_MCSP") for i in range(encoder_layers))
    return KeyMap(
        name="official Focus-DETR",
        marker=r"^transformer\.enc_mask_predictor\.",
        rules=(
            (rf"{layer}attentions\.0\.attn\.", r"encoder.layers.\1.select_attn."),
            (rf"{layer}attentions\.1\.", r"encoder.layers.\1.self_attn."),
            (rf"{layer}norm2\.", r"encoder.layers.\1.select_norm."),
            (r"^transformer\.enc_mask_predictor\.", "selector.predictor."),
            (r"^transformer\.alpha$", "selector.alpha"),
            *swin_rules("backbone.", "backbone.body.", maps),
            *DETREX.rules,
        ),
        drop=(*COUNTERS, *TABLES),
        aliases=(*SHARED_HEADS, (r"^(enhance_MCSP_layerlist|encoder\.enhance_MCSP)\.\d+\.", head)),
        exports=(
            (r"^(encoder\.layers\.\d+)\.select_attn\.", (r"transformer.\1.attentions.0.attn.",)),
            (r"^(encoder\.layers\.\d+)\.self_attn\.", (r"transformer.\1.attentions.1.",)),
            (r"^(encoder\.layers\.\d+)\.select_norm\.", (r"transformer.\1.norm2.",)),
            (r"^selector\.predictor\.", ("transformer.enc_mask_predictor.",)),
            (r"^selector\.alpha$", ("transformer.alpha",)),
            (rf"^{head}", (head, *copies)),
            *detrex_exports(maps),
            BOTH_HEADS,
        ),
    )
