"""GMM-ViT: a plain transformer for small images, whose attention is local by a mixture of Gaussians.

RetNet viewed through convolution, arXiv 2309.05375. Authors' code:
CatworldLee/Gaussian-Mixture-Mask-Attention, no licence (models/vit.py): nothing of it is here, it is written from a
description.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models import generate_default_cfgs
from torch import Tensor, nn

from vistrain.attention.gaussian_mixture import GaussianMixtureAttention
from vistrain.backbones.attention_hosts import HostBlock, PatchStem
from vistrain.backbones.staged import (
    Published,
    Stage,
    StagedBackbone,
    build_variant,
    converter,
    default_cfg,
    drop_path_rates,
    initialise,
    register_model,
)
from vistrain.checkpoints import KeyMap
from vistrain.layers.norms import LayerNorm2d

# Authors' names -> ours, but for the number of a layer, which is turned into one of a stage and of a block in it.
AUTHORS = KeyMap(
    name="GMM-ViT",
    marker=r"^to_patch_embedding\.1\.",
    rules=(
        (r"^to_patch_embedding\.1\.", "stem.proj."),
        (r"^pos_embedding$", "stem.pos_embed"),
        (r"^transformer\.layers\.(\d+)\.0\.norm\.", r"layers.\1.norm1."),
        (r"^transformer\.layers\.(\d+)\.0\.fn\.to_qkv\.", r"layers.\1.attn.qkv."),
        (r"^transformer\.layers\.(\d+)\.0\.fn\.to_out\.0\.", r"layers.\1.attn.proj."),
        (r"^transformer\.layers\.(\d+)\.0\.fn\.mask\.", r"layers.\1.attn.mask."),
        (r"^transformer\.layers\.(\d+)\.1\.norm\.", r"layers.\1.norm2."),
        (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"layers.\1.mlp.fc1."),
        (r"^transformer\.layers\.(\d+)\.1\.fn\.net\.3\.", r"layers.\1.mlp.fc2."),
        (r"^mlp_head\.0\.", "norm."),
        (r"^mlp_head\.1\.", "head."),
    ),
    drop=(r"^mask$", r"\.mask\.mask$"),  # the Gaussian of distances, which follows from the size
)
_renamed = converter(AUTHORS)


def checkpoint_filter_fn(weights: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """See `converter`; patches and positions are turned into maps, and layers are dealt out to stages."""
    state, body = _renamed(weights, model), cast(Any, model)  # torch types parts of a module as tensors or modules
    places = [f"stages.{i}.blocks.{j}" for i, stage in enumerate(body.stages) for j in range(len(stage.blocks))]
    converted = {}
    for key, value in state.items():
        if key.startswith("layers."):
            _, layer, rest = key.split(".", 2)
            key = f"{places[int(layer)]}.{rest}"
        if key == "stem.proj.weight" and value.dim() == 2:  # rows, columns and then channels of a patch
            side = body.stem.proj.kernel_size[0]
            value = value.unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)
        if key == "stem.pos_embed" and value.dim() == 3:
            value = value.mT.unflatten(2, body.stem.pos_embed.shape[2:])
        converted[key] = value
    return converted


class GaussianMixtureViT(StagedBackbone):
    """A plain transformer with `GaussianMixtureAttention` (arXiv 2309.05375), in stages of about a quarter each.

    Args:
        in_chans: channels of the images.
        img_size, patch_size: sides of images and of patches, in pixels; positions are interpolated for other sizes.
        dim, depth, heads, dim_head: channels, blocks, heads, and channels of a head.
        mlp_dim_ratio: hidden channels of the MLPs by channels.
        num_kernels: Gaussians of each head.
        drop_path_rate: of the last block; it grows evenly from 0 at the first.
        base: see `StagedBackbone`.
    """

    pool_first = True

    def __init__(
        self,
        in_chans: int = 3,
        img_size: int = 32,
        patch_size: int = 4,
        dim: int = 192,
        depth: int = 9,
        heads: int = 12,
        dim_head: int = 16,
        mlp_dim_ratio: float = 2.0,
        num_kernels: int = 5,
        drop_path_rate: float = 0.0,
        **base: Any,
    ) -> None:
        count = min(4, depth)
        depths = [(depth + count - 1 - i) // count for i in range(count)]
        stages = []
        for rates in drop_path_rates(depths, drop_path_rate):
            blocks = []
            for rate in rates:
                attn = GaussianMixtureAttention(dim, heads, num_kernels, dim_head)
                blocks.append(HostBlock(dim, attn, mlp_dim_ratio, 0.0, rate, eps=1e-5))
            stages.append(Stage(nn.Identity(), blocks))
        grid = (img_size // patch_size, img_size // patch_size)
        stem, norm = PatchStem(in_chans, dim, patch_size, grid), LayerNorm2d(dim, eps=1e-5)
        super().__init__(stem, stages, norm, channels=[dim] * count, strides=[patch_size] * count, **base)
        self.size_divisor = self.smallest_side = patch_size
        initialise(self)

    def no_weight_decay(self) -> set[str]:
        """Positions."""
        return {"stem.pos_embed"}


# On CIFAR-100; the authors also count the 4096 distances of the mask
PUBLISHED = {"gmm_vit_small_images": Published(2.71, size=32, counted={"num_classes": 100})}
_CODE = "https://github.com/CatworldLee/Gaussian-Mixture-Mask-Attention"
default_cfgs = generate_default_cfgs(
    {name: default_cfg("2309.05375", _CODE, "none", "stem.proj", size=row.size) for name, row in PUBLISHED.items()}
)


@register_model
def gmm_vit_small_images(pretrained: bool = False, **kwargs: Any) -> StagedBackbone:
    """GMM-ViT for images of 32 pixels."""
    return build_variant(GaussianMixtureViT, "gmm_vit_small_images", pretrained, checkpoint_filter_fn, kwargs)
