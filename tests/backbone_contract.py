"""What every backbone of ours keeps to (docs/backbones.md, "The contract"); `test_backbone_contract.py` runs it.

Checks are functions of a `Case`; all of `CHECKS` are run for each of `CASES`. They build a registered variant with
arguments that make it small, so a case is one line.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx.reference
import pytest
import timm
import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone
from vistrain.backbones.staged import register_model
from vistrain.errors import DataError

CLASSES = 5


@dataclass(frozen=True)
class Case:
    """One line of the test.

    Attributes:
        name: of a registered variant.
        args: of its constructor, that make it small; an argument that the family lacks is an error.
        strides: of its maps.
        size: (H, W) of images in most checks.
        sizes: further ones that the operator must take, odd and not square.
        onnx: whether the operators are in ONNX; where they are not, docs/backbones.md says so.
        dead: suffixes of parameters that classification gives zeros for gradients, by the model's definition.
        sorts: a sort decides, which float32's rounding reorders from machine to machine: its golden row is of float64.
    """

    name: str
    args: dict[str, Any]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    size: tuple[int, int] = (64, 64)
    sizes: tuple[tuple[int, int], ...] = ((75, 109), (96, 33))
    onnx: bool = True
    dead: tuple[str, ...] = ()
    sorts: bool = False

    def model(self, **changes: Any) -> Any:
        """The small variant with random weights, the same at each call, in evaluation mode."""
        torch.manual_seed(0)
        model = timm.create_model(self.name, **{"num_classes": CLASSES, **self.args, **changes})
        with torch.no_grad():
            for parameter in model.parameters():  # away from zeros and from tiny layer scales, which hide errors
                noise = torch.randn_like(parameter)
                parameter.add_(noise * (0.1 if parameter.dim() < 2 else 0.3 / math.sqrt(parameter[0].numel())))
        return model.eval()

    def images(self, batch: int = 2, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
        """`[B, C, H, W]`, the same at each call."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, channels, *(size or self.size), generator=generator)


# A new model is one line: a variant, and arguments that make it small.
_NAT = {"embed_dim": 16, "depths": (2, 2, 1, 1), "num_heads": (2, 2, 4, 4), "kernel_size": 3, "mlp_ratio": 2.0}
_ONES = (1, 1, 1, 1)
_MOBILE = {"stem_dims": (8, 8), "plan": (((8, 1),), ((8, 1),), ((8, 1), (16, 1)), ((16, 1),)), "features": 32}
_FFNET = {"embed_dim": (8, 8, 16, 16), "in_dim": 8, "depth": (1, 1, 2, 1), "kernel_sizes": (3, 3, 7, 7)}
_VITAE = {"embed_dims": (4, 4, 8, 8), "token_dims": (8, 8, 16, 16), "NC_depth": (1, 1, 1, 1), "NC_heads": (2, 2, 4, 4)}
CASES = (
    Case(
        "affnet_et",
        {"channels": (8, 8, 16, 24, 32), "ffn_dims": (16, 32, 32), "depths": (2, 1, 1, 1), "first_channels": 8},
        onnx=False,
    ),
    Case(
        "agent_deit_tiny",
        {"img_size": 64, "patch_size": 8, "embed_dim": 16, "depth": 5, "num_heads": 2, "agent_num": (4, 4, 4, 4)},
        strides=(8, 8, 8, 8),
        sizes=((72, 96), (96, 32)),
        dead=("stages.3.blocks.0.attn.dwc.weight",),  # of cells, behind which nothing reads but the class's token
    ),
    Case(
        "agent_pvt_tiny",
        {
            "img_size": 64,
            "embed_dims": (8, 8, 16, 16),
            "depths": _ONES,
            "num_heads": (1, 2, 2, 2),
            "mlp_ratios": _ONES,
            "agent_sr_ratios": (2, 1, 1, 1),
            "agent_num": (4, 4, 4, 4),
        },
    ),
    Case(
        "agent_swin_tiny",
        {
            "img_size": 64,
            "embed_dim": 8,
            "depths": (1, 2, 1, 2),
            "num_heads": (1, 2, 2, 4),
            "window_size": 8,
            "agent_num": (4, 4, 4, 4),
            "mlp_ratio": 2.0,
        },
    ),
    Case(
        "attention_pyramid_micro",
        {
            "embed_dims": (8, 8, 16, 16),
            "num_heads": (1, 2, 2, 2),
            "attention": ["window", "neighborhood", "axial", "softmax"],
        },
    ),
    Case(
        "attention_vit_micro",
        {
            "embed_dim": 16,
            "num_heads": 2,
            "attention": [{"name": "halo", "block_size": 2}, "axial", "cosine", "softmax"],
        },
        strides=(8, 8, 8, 8),
        sizes=((72, 96), (96, 32)),
    ),
    Case("attnet_t2", {"dims": (8, 12, 16, 16), "depths": _ONES, "exp_rates": (3, 3, 3, 3)}),
    Case("biformer_tiny", {"embed_dim": (16, 32, 32, 32), "depth": (1, 1, 1, 1), "head_dim": 16}),
    Case("biformer_stl_nchw", {"embed_dim": (16, 32, 32, 32), "depth": (1, 1, 1, 1), "head_dim": 16}),
    Case("casvit_xs", {"embed_dims": (8, 12, 16, 16), "layers": _ONES}),
    Case("cswin_tiny", {"embed_dim": 16, "depth": (1, 2, 1, 1), "num_heads": (2, 2, 4, 4), "mlp_ratio": 2.0}),
    Case("dinat_s_tiny", {**_NAT, "dilations": ((1, 5), (1, 3), (1,), (1,))}),
    Case("favit_b0", {"embed_dims": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2), "depths": _ONES}),
    Case(
        "eurosat_12layer",
        {"dims": (32, 64, 32, 32), "depths": _ONES, "drop_blocks": (0, 0, 0, 0), "drop_rate": 0.0},
        strides=(1, 2, 4, 8),
    ),
    Case("ffnet_3", _FFNET),
    Case("hornet_tiny_gf", {"base_dim": 16, "depths": (1, 1, 1, 1), "filter_sizes": (None, None, (4, 3), (3, 3))}),
    Case("l2vit_tiny", {"dims": (8, 12, 16, 16), "num_heads": (2, 2, 4, 4), "depths": (1, 2, 2, 2)}),
    Case(
        "gmm_swin_small_images",
        {"img_size": 64, "embed_dim": 8, "depths": (2, 1, 1), "num_heads": (1, 2, 2), "num_kernels": 2},
        strides=(2, 4, 8),
        sizes=((37, 55), (48, 17)),
    ),
    Case(
        "gmm_vit_small_images",
        {"img_size": 64, "patch_size": 8, "dim": 16, "depth": 5, "heads": 2, "dim_head": 8},
        strides=(8, 8, 8, 8),
        sizes=((72, 96), (96, 32)),
    ),
    Case(
        "lsnet_t",
        {"embed_dim": (16, 16, 24, 32), "depth": (0, 2, 2, 2), "num_heads": (2, 2, 2, 2), "img_size": 128},
        strides=(8, 16, 32, 64),
        size=(128, 128),
    ),
    Case("mit_b0", {"embed_dims": (16, 32, 32, 32), "num_heads": (1, 2, 2, 4), "depths": _ONES}),
    Case("module_mobilenetv2", {**_MOBILE, "module": ["eca", "ulsam", "weighted", None]}),
    Case("module_resnet50", {"width": 16, "depths": _ONES, "module": ["ela", "fdconv", "ibnb", "ibn"]}),
    Case("nat_small", _NAT),
    Case(
        "ppma_base",
        {
            "embed_dims": (8, 16, 16, 16),
            "num_heads": (1, 2, 2, 2),
            "depths": _ONES,
            "projection": 24,
            "chunkwise_recurrents": (True, False, True, False),
        },
    ),
    Case("ravlt_t", {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": _ONES, "projection": 24}),
    Case("s2aformer", {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": _ONES, "mlp_ratios": _ONES}),
    Case(
        "sgformer_s",
        {"embed_dims": (8, 8, 16, 16), "num_heads": (2, 2, 2, 2), "depths": (2, 2, 2, 1), "mlp_ratios": (1, 1, 1, 1)},
        size=(224, 224),
        sizes=((224, 448),),
        onnx=False,  # exported, but rounding there reorders its sorts
        sorts=True,
    ),
    Case("soft_tiny", {"embed_dims": (8, 16, 16, 16), "depths": _ONES, "num_heads": (1, 2, 2, 2)}),
    Case("spartan_s", {"init_dim": 16, "dims": (32, 32, 32), "layer_depths": _ONES}, onnx=False),
    Case("swin_vsa_tiny", {"embed_dim": 8, "depths": _ONES, "num_heads": (2, 2, 4, 4), "mlp_ratio": 2.0}),
    Case(
        "tiny_moat0",
        {"stem_size": (8, 8), "hidden_size": (8, 16, 16, 16), "num_blocks": _ONES, "head_size": 8},
    ),
    Case(
        "transnext_micro",
        {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 1, 1), "img_size": 64},
    ),
    Case(
        "unireplknet_a",
        {"dims": (8, 12, 16, 16), "depths": (1, 1, 2, 1), "kernel_sizes": ((3,), (7,), (9, 3), (7,))},
    ),
    Case("vitaev2_vsa_small", {**_VITAE, "NC_group": _ONES, "RC_group": _ONES, "mlp_ratio": 2.0}),
)


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to within a share of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


def check_registration(case: Case) -> None:
    """timm knows it, with a default cfg that names its first layer and its classifier; a taken name is refused."""
    assert case.name in timm.list_models(module=timm.model_entrypoint(case.name).__module__.rpartition(".")[2])
    model = timm.create_model(case.name, **case.args)
    cfg = model.pretrained_cfg
    assert model.num_classes == cfg["num_classes"] == 1000
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg["architecture"] == case.name
    for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "paper_ids", "origin_url", "license"):
        assert cfg[key], key
    with pytest.raises(TypeError, match="vistrain_has_no_such_argument"):
        timm.create_model(case.name, **case.args, vistrain_has_no_such_argument=1)
    with pytest.raises(ValueError, match=f"{case.name}: .* has registered a model of this name"):
        register_model(timm.model_entrypoint(case.name))


@torch.no_grad()
def check_classification(case: Case) -> None:
    """Logits are made of features; the number of channels and the head's dropout are arguments."""
    model, images = case.model(drop_rate=0.5, drop_path_rate=0.5), case.images()
    features = model.forward_features(images)
    assert features.shape[:2] == (2, model.num_features)
    logits = model(images)
    assert logits.shape == (2, CLASSES)
    same(model.forward_head(features), logits)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    same(model.get_classifier()(pooled), logits)
    assert not torch.equal(model.train()(images), logits)
    assert case.model(in_chans=5)(case.images(channels=5)).shape == (2, CLASSES)


@torch.no_grad()
def check_reset_classifier(case: Case) -> None:
    """Any number of classes, none, and no pooling."""
    model, images = case.model(), case.images()
    model.reset_classifier(7)
    assert (model.num_classes, model(images).shape) == (7, (2, 7))
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    same(model(images), model.forward_head(model.forward_features(images), pre_logits=True))
    model.reset_classifier(0, "")
    assert model(images).shape == model.forward_features(images).shape
    bare = case.model(num_classes=0)
    assert bare(images).shape == (2, bare.num_features)
    assert not any(name.startswith("head.") for name, _ in bare.named_parameters())


@torch.no_grad()
def check_features_only(case: Case) -> None:
    """Maps NCHW at every size, with the channels and strides that `feature_info` tells; stages that are not used go."""
    whole = case.model(features_only=True)
    assert tuple(whole.feature_info.reduction()) == case.strides
    assert all(isinstance(whole.model.get_submodule(m), nn.Module) for m in whole.feature_info.module_name())
    for size in (case.size, *case.sizes):
        maps = whole(case.images(size=size))
        assert len(maps) == len(case.strides)
        for x, stride, channels in zip(maps, case.strides, whole.feature_info.channels(), strict=True):
            assert x.shape[:2] == (2, channels)
            for cells, side in zip(x.shape[2:], size, strict=True):
                assert side // stride <= cells <= math.ceil(side / stride)
    part = case.model(features_only=True, out_indices=(0, 1))
    expected = whole(case.images())[:2]
    assert all(torch.equal(a, b) for a, b in zip(part(case.images()), expected, strict=True))
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in whole.parameters())


@torch.no_grad()
def check_forward_intermediates(case: Case) -> None:
    """The same maps as `features_only`, by any way of choosing them."""
    model, images = case.model(), case.images()
    expected = case.model(features_only=True)(images)
    last, maps = model.forward_intermediates(images)
    same(last, model.forward_features(images))
    count = len(expected)
    for indices, wanted in ((None, range(count)), (2, (count - 2, count - 1)), ([0, -1], (0, count - 1)), ([1], (1,))):
        for stop_early in (False, True):
            maps = model.forward_intermediates(images, indices, stop_early=stop_early, intermediates_only=True)
            assert all(torch.equal(x, expected[i]) for x, i in zip(maps, wanted, strict=True))
    assert not torch.equal(model.forward_intermediates(images, norm=True, intermediates_only=True)[-1], images)
    with pytest.raises((AssertionError, ValueError)):
        model.forward_intermediates(images, output_fmt="NLC")


@torch.no_grad()
def check_sizes(case: Case) -> None:
    """Classification of images that are odd and not square."""
    model = case.model()
    for size in case.sizes:
        logits = model(case.images(size=size))
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()


@torch.no_grad()
def check_slivers(case: Case) -> None:
    """Images smaller than the coarsest stride, and slivers: they work, or the error names a size that does."""
    model, fitting = case.model(), set()
    for size in ((1, 64), (7, 7), (31, 31)):
        try:
            last, maps = model.forward_intermediates(case.images(1, size))
        except DataError as error:
            fitting.add(re.findall(r"(\d+)x(\d+)", error.remedy)[0])
        else:
            assert all(side > 0 for found in maps for side in found.shape[2:])
            assert model.forward_head(last).isfinite().all()
    for height, width in fitting:
        assert model(case.images(1, (int(height), int(width)))).isfinite().all()


def check_gradients(case: Case) -> None:
    """Every parameter receives a gradient, all of them finite and some of each not zero."""
    model = case.model().train()
    model(case.images()).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    # Where logits do not move when all keys do, a bias of keys has no gradient; nor has one before batch norm.
    silent = [
        name for name, p in model.named_parameters() if not p.grad.any() and not name.endswith(("bias", *case.dead))
    ]
    assert not silent


@torch.no_grad()
def check_batch_independence(case: Case) -> None:
    """In evaluation an image's result does not depend on its neighbours."""
    model, images = case.model(), case.images(3)
    together = model(images)
    for i in range(3):
        same(model(images[i : i + 1]), together[i : i + 1])


def check_bfloat16(case: Case) -> None:
    """Under autocast results stay near those of float32, forward and backward."""
    model, images = case.model().train(), case.images()
    full = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images)
    spread = (full - full.mean()).abs().max()
    assert (half.float() - full).abs().max() < 0.1 * spread + 0.02
    half.float().square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


def check_export(case: Case) -> None:
    """`torch.export` with a free batch computes the same."""
    model, images = case.model(), case.images()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    with torch.no_grad():
        same(program.module()(images), model(images))
        more = case.images(3)
        same(program.module()(more), model(more))


def check_onnx(case: Case) -> None:
    """`torch.onnx` without TorchScript; ONNX's reference implementation computes the same."""
    if not case.onnx:
        pytest.skip("needs operators that ONNX lacks; docs/backbones.md says which")
    model, images = case.model(), case.images(1)
    program = torch.onnx.export(model, (images,), dynamo=True, verbose=False)
    session = onnx.reference.ReferenceEvaluator(program.model_proto)
    (logits,) = session.run(None, {session.input_names[0]: images.numpy()})
    with torch.no_grad():
        same(torch.from_numpy(logits), model(images), 1e-4)


@torch.no_grad()
def check_state_dict(case: Case) -> None:
    """Weights go out and in again, strictly; copies compute the same (averages of weights are copies)."""
    model, images = case.model(), case.images()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = timm.create_model(case.name, **{"num_classes": CLASSES, **case.args}).eval()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(images), model(images))
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    convert = sys.modules[timm.model_entrypoint(case.name).__module__].checkpoint_filter_fn
    assert list(convert(model.state_dict(), model)) == list(model.state_dict())


def check_fusion(case: Case) -> None:
    """`fuse()` changes no result."""
    model, images = case.model(), case.images()
    trained = case.model().train()
    with torch.no_grad():  # statistics of norms that are not those that they start with
        trained(images)
    model.load_state_dict(trained.state_dict())
    with torch.no_grad():
        expected = model.eval()(images)
        same(model.fuse()(images), expected)


def check_checkpointing(case: Case) -> None:
    """`set_grad_checkpointing` changes no gradient."""
    gradients = []
    for enable in (False, True):
        model = case.model().train()
        model.set_grad_checkpointing(enable)
        model(case.images()).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        same(gradients[1][name], gradient, 1e-6)


def check_groups(case: Case) -> None:
    """Every parameter has a depth for layer-wise learning rates; parameters without weight decay exist."""
    model = case.model()
    names = dict(model.named_parameters())
    assert set(model.no_weight_decay()) <= set(names)
    for coarse in (False, True):
        layers = timm.models.group_parameters(model, model.group_matcher(coarse))
        assert sorted(itertools.chain(*layers.values())) == sorted(names)
        assert len(layers) > len(case.strides)


def check_dense_wrapper(case: Case) -> None:
    """`Backbone` of design: levels by stride, `ceil(size / stride)` cells, no unused parameter, freezing."""
    there = tuple(sorted(set(case.strides)))
    for strides in (there, there[:-1] or there, there[1:] or there):
        backbone = Backbone(case.name, strides=strides, args=case.args)
        assert backbone.strides == strides
        for size in (case.size, *case.sizes):
            maps = backbone(case.images(size=size))
            for x, stride, channels in zip(maps, strides, backbone.channels, strict=True):
                assert x.shape == (2, channels, *(math.ceil(side / stride) for side in size))
        sum(x.square().mean() for x in maps).backward()
        assert all(p.grad is not None for p in backbone.parameters())
    same(*(b.eval()(case.images())[-1] for b in (backbone, copy.deepcopy(backbone).train())))
    frozen = Backbone(case.name, strides=there, freeze_at_stride=case.strides[0], args=case.args)
    trained = {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert 0 < len(trained) < len(list(frozen.parameters()))
    frozen.train()(case.images())[-1].sum().backward()


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    check for name, check in list(globals().items()) if name.startswith("check_")
)
