"""Names of authors' weights that timm has the model for, but no converter.

The authors' codes: EfficientViT (arXiv 2305.07027), microsoft/Cream, MIT; SHViT (arXiv 2401.16456), ysj9909/SHViT, MIT;
CrossViT (arXiv 2103.14899), IBM/CrossViT, Apache-2.0; MAE (arXiv 2111.06377), facebookresearch/mae, CC BY-NC 4.0.
Only their names of weights are here.
"""

from __future__ import annotations

from vistrain.checkpoints import KeyMap

# What timm's deepest models have, and more.
_MOST_BLOCKS = 24

# microsoft/Cream, EfficientViT/classification/model/efficientvit.py: a stage's blocks 0 to 2 are its downsampling.
EFFICIENTVIT = KeyMap(
    name="EfficientViT (Cream)",
    marker=r"^blocks1\.\d+\.dw0\.",
    rules=(
        *((rf"^patch_embed\.{2 * i}\.", f"patch_embed.conv{i + 1}.") for i in range(4)),
        (r"^blocks1\.", "stages.0.blocks."),
        *(
            rule
            for stage in (1, 2)
            for rule in (
                (rf"^blocks{stage + 1}\.0\.", f"stages.{stage}.downsample.res1."),
                (rf"^blocks{stage + 1}\.1\.", f"stages.{stage}.downsample.patchmerge."),
                (rf"^blocks{stage + 1}\.2\.", f"stages.{stage}.downsample.res2."),
                *((rf"^blocks{stage + 1}\.{i + 3}\.", f"stages.{stage}.blocks.{i}.") for i in range(_MOST_BLOCKS)),
            )
        ),
        (r"\.c\.", ".conv."),
        (r"^head\.l\.", "head.linear."),
    ),
    drop=(r"\.attention_bias_idxs$", r"\.ab$"),
)

# ysj9909/SHViT, model/shvit.py: the same, and residual parts of a downsampling are in pairs.
SHVIT = KeyMap(
    name="SHViT",
    marker=r"^blocks1\.\d+\.conv\.m\.",
    rules=(
        (r"^blocks1\.", "stages.0.blocks."),
        *(
            rule
            for stage in (1, 2)
            for rule in (
                (rf"^blocks{stage + 1}\.0\.([01])\.", rf"stages.{stage}.downsample.\1."),
                (rf"^blocks{stage + 1}\.1\.", f"stages.{stage}.downsample.2."),
                (rf"^blocks{stage + 1}\.2\.0\.", f"stages.{stage}.downsample.3."),
                (rf"^blocks{stage + 1}\.2\.1\.", f"stages.{stage}.downsample.4."),
                *((rf"^blocks{stage + 1}\.{i + 3}\.", f"stages.{stage}.blocks.{i}.") for i in range(_MOST_BLOCKS)),
            )
        ),
    ),
)

# IBM/CrossViT, models/crossvit.py: lists of parameters, which timm has under names.
CROSSVIT = KeyMap(
    name="CrossViT",
    marker=r"^(cls_token|pos_embed)\.\d$",
    rules=((r"^(cls_token|pos_embed)\.(\d)$", r"\1_\2"),),
)

# facebookresearch/mae, models_mae.py, and what is built upon it (HPM, LUT): the encoder has timm's names. MaskAlign
# (OpenDriveLab/maskalign) has heads instead of a decoder.
MAE_ENCODER = KeyMap(
    name="MAE",
    marker=r"^(decoder_blocks\.\d+\.norm1|distill_heads\.\d+)\.",
    drop=(r"^decoder_", r"^mask_token$", r"^head\.\d+\.", r"^predictor\.", r"^distill_"),
)
# Sara-Ahmed/GMML, main.py: a network of two parts.
GMML_ENCODER = KeyMap(
    name="GMML",
    marker=r"^head_recons\.",
    rules=((r"^backbone\.", ""),),
    drop=(r"^head_recons\.",),
)
# Atten4Vis/CAE: a BEiT with a table of positions.
CAE_ENCODER = KeyMap(
    name="CAE",
    marker=r"^regresser\.",
    rules=((r"^encoder\.", ""),),
    drop=(r"^(?!encoder\.)",),
)

AUTHORS = (EFFICIENTVIT, SHVIT, CROSSVIT, MAE_ENCODER, GMML_ENCODER, CAE_ENCODER)
