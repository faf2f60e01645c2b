"""Names of backbones inside the authors' dense networks, by family: what a segmenter's key map takes in.

Only names of weights are here. Swin: SwinTransformer/Swin-Transformer-Semantic-Segmentation (Apache-2.0); ConvNeXt:
facebookresearch/ConvNeXt (MIT), semantic_segmentation/backbone/convnext.py; each adds a norm to each map.
"""

from __future__ import annotations

import sys

from timm.models import model_entrypoint

from vistrain.backbones.swin_keys import TABLES
from vistrain.checkpoints import KeyMap

NORMS = tuple((rf"^norm{i}\.", f"norms.{i}.") for i in range(4))
SWIN = KeyMap(
    name="dense Swin",
    marker=r"^layers\.0\.downsample\.",  # timm has none there
    rules=(
        *((rf"^layers\.{i}\.downsample\.", f"layers.{i + 1}.downsample.") for i in (2, 1, 0)),
        *NORMS,
        (r"^(?!norms\.)", "body."),
    ),
    drop=TABLES,
)
CONVNEXT = KeyMap(
    name="dense ConvNeXt",
    marker=r"^downsample_layers\.0\.0\.",
    rules=(
        (r"^downsample_layers\.0\.([01])\.", r"stem.\1."),
        (r"^downsample_layers\.([123])\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        *NORMS,
        (r"^(?!norms\.)", "body."),
    ),
)
# By timm's module of a family: a naming of another one would only be mistaken for its own.
FAMILIES = {"timm.models.swin_transformer": (SWIN,), "timm.models.convnext": (CONVNEXT,)}


def dense_names(name: str, normalised: bool = False) -> tuple[KeyMap, ...]:
    """The namings that a timm model (ours too) has inside others' dense networks, towards those of `Backbone`.

    Of ours they stand in the model's file, as key maps whose names begin with `dense`. The last one is plain: torch's
    ResNets and whatever else has the names there that it has here.

    Args:
        name: timm's.
        normalised: maps have norms, which are the dense codes' `norm0` to `norm3`.
    """
    module = sys.modules[model_entrypoint(name.partition(".")[0]).__module__]
    own = (value for value in vars(module).values() if isinstance(value, KeyMap))
    norms, body = (NORMS, r"^(?!norms\.)") if normalised else ((), "^")
    plain = KeyMap(name="plain", marker=r"^(?!body\.|norms\.)", rules=(*norms, (body, "body.")))
    family = FAMILIES.get(module.__name__, ())
    return (*(known for known in own if known.name.startswith("dense ")), *family, plain)
