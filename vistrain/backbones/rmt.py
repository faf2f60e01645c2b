"""The layout of RMT, of which several papers keep all but the attention: a convolutional stem, and a wide last layer.

RMT: Retentive Networks Meet Vision Transformers, arXiv 2309.11523, figure 3. Authors' code: qhfan/RMT, no licence:
nothing of it is here, it is written from a description.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from vistrain.backbones.staged import Stage, StagedBackbone, TokenBlock, converter, drop_path_rates, initialise
from vistrain.checkpoints import KeyMap
from vistrain.layers.mlp import ConvMlp

# Authors' names -> ours. Downsampling stands before a stage here, and in their codes after the one before.
RULES = (
    (r"^patch_embed\.proj\.", "stem."),
    *((rf"^layers\.{i}\.downsample\.", f"stages.{i + 1}.downsample.") for i in range(3)),
    (r"^layers\.", "stages."),
    (r"\.gamma_([12])$", r".gamma\1"),
    (r"\.ffn\.", ".mlp."),
    (r"^proj\.", "norm.proj."),
    (r"^norm\.(?!proj\.)", "norm.norm."),
)


def rmt_converter(key_map: KeyMap) -> Callable[[dict[str, Any], nn.Module], dict[str, Tensor]]:
    """As `converter`; factors of branches are `[C]` here and have four axes there, and the last layer may be linear."""
    convert = converter(key_map)

    def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
        state = {k: v.flatten() if ".gamma" in k else v for k, v in convert(weights, model).items()}
        last = state.get("norm.proj.weight")
        return state if last is None else state | {"norm.proj.weight": last.view(*last.shape[:2], 1, 1)}

    return checkpoint_filter_fn


class RMTBackbone(StagedBackbone):
    """A backbone in this layout.

    Args:
        attention: makes that of a block, given the number of its stage: `[B, H * W, C]` and (H, W) -> `[B, H * W, C]`.
        stem_strides: of the stem's convolutions. Those before the second stride have half as many channels.
        in_chans: channels of the images.
        embed_dims, depths: channels and blocks of each stage.
        mlp_ratios: hidden channels of the MLPs by channels, for each stage.
        projection: channels of what the classifier sees.
        layer_scales: of each stage, see `TokenBlock`.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    sets_itself = ("attention", "stem_strides", "layer_scales")
    size_divisor = 1

    def __init__(
        self,
        attention: Callable[[int], nn.Module],
        stem_strides: Sequence[int],
        *,
        in_chans: int = 3,
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        projection: int = 1024,
        layer_scales: Sequence[float | None] = (None, None, None, None),
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        stages = []
        for i, rates in enumerate(drop_path_rates(depths, drop_path_rate)):
            dim = embed_dims[i]
            blocks = [
                TokenBlock(
                    dim,
                    attention(i),
                    ConvMlp(dim, int(dim * mlp_ratios[i]), residual=True, act_first=True),
                    pos_kernel=3,
                    layer_scale=layer_scales[i],
                    drop_path=rate,
                )
                for rate in rates
            ]
            reduction = nn.Conv2d(embed_dims[i - 1], dim, 3, 2, 1)
            down = nn.Sequential(OrderedDict(reduction=reduction, norm=nn.BatchNorm2d(dim)))
            stages.append(Stage(down if i else nn.Identity(), blocks))
        layers, before = list[nn.Module](), in_chans
        for stride, reduced in zip(stem_strides, accumulate(stem_strides, int.__mul__), strict=True):
            after = embed_dims[0] // (1 if reduced == 4 else 2)
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.GELU()]
            before = after
        last = OrderedDict(
            proj=nn.Conv2d(embed_dims[-1], projection, 1), norm=nn.BatchNorm2d(projection), act=nn.SiLU()
        )
        super().__init__(
            nn.Sequential(*layers[:-1]),
            stages,
            nn.Sequential(last),
            channels=embed_dims,
            strides=(4, 8, 16, 32),
            **{"num_features": projection, **base},
        )
        initialise(self)
