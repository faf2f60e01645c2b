"""Names of Swin weights in the dense codes, as plain rules that a detector's key map takes in.

timm's names are the authors', but that timm puts the merging of patches before a stage and the authors after the one
before. The authors' dense code adds a norm to each map that it gives out: here it belongs to the neck
(`necks.ChannelMapper`, `input_norm`).

Swin is arXiv 2103.14030. The dense code is github.com/SwinTransformer/Swin-Transformer-Object-Detection, Apache-2.0
(mmdet/models/backbones/swin_transformer.py); detectron2's and DINO's are copies, Apache-2.0 too. Only names of weights
are here.
"""

from __future__ import annotations

import re

Rules = tuple[tuple[str, str], ...]

# A table that follows from the window's size.
TABLES = (r"\.relative_position_index$", r"\.attn_mask$")
STAGES = 4


def swin_rules(prefix: str, body: str, maps: int, norms: str = "neck.norms.") -> Rules:
    """Rules for Swin under the authors' dense names.

    Args:
        prefix: of the foreign names (`backbone.` in detrex, `backbone.0.` in DINO's code).
        body: of ours (`backbone.body.` in a detector).
        maps: how many maps are given out, the coarsest ones.
        norms: our prefix of their norms.
    """
    foreign, ours = re.escape(prefix), re.escape(body)
    return (
        (rf"^{foreign}(?=(patch_embed|layers)\.)", body),
        *((rf"^{ours}layers\.{i}\.downsample\.", f"{body}layers.{i + 1}.downsample.") for i in (2, 1, 0)),
        *((rf"^{foreign}norm{STAGES - maps + i}\.", f"{norms}{i}.") for i in range(maps)),
    )


def swin_exports(
    prefix: str, body: str, maps: int, norms: str = "neck.norms."
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The inverse of `swin_rules`, in the form of `KeyMap.exports`."""
    ours = re.escape(body)
    return (
        *((rf"^{ours}layers\.{i + 1}\.downsample\.", (f"{body}layers.{i}.downsample.",)) for i in (0, 1, 2)),
        (rf"^{ours}(?=(patch_embed|layers)\.)", (prefix,)),
        *((rf"^{re.escape(norms)}{i}\.", (f"{prefix}norm{STAGES - maps + i}.",)) for i in range(maps)),
    )
