"""Backbones whose fixtures need no more than a line, against their authors' code: logits and raw maps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor, is_dense
from parity.compare import assert_outputs
from vistrain.backbones import attnet, favit, ffnet, l2vit, ppma, ravlt, spartan, unireplknet, vitae_vsa

# Of each: file, class, committed fixtures, arguments of theirs that say nothing here, eps and names of dense norms
FAMILIES: dict[str, tuple[Any, Any, tuple[str, ...], tuple[str, ...], tuple[float, str] | None]] = {
    "attnet": (attnet, attnet.AttNet, ("attnet_norm_ls",), ("act_layer", "distillation"), None),
    "favit": (favit, favit.FaViT, ("favit",), ("img_size", "patch_size", "norm_layer"), None),
    "ffnet": (ffnet, ffnet.FFNet, ("ffnet_k3",), ("in_channels", "down_ops", "distillation"), (1e-6, "norm0")),
    "l2vit": (l2vit, l2vit.L2ViT, ("l2vit",), ("block_type", "conv_stem", "img_size"), (1e-5, "norm0")),
    "ppma": (ppma, ppma.PPMAViT, ("ppma",), ("init_values", "heads_ranges"), (1e-5, "outnorm0")),
    "spartan": (spartan, spartan.SpaRTAN, ("spartan",), ("num_layer",), None),
    "unireplknet": (
        unireplknet,
        unireplknet.UniRepLKNet,
        ("unireplknet",),
        ("attempt_use_lk_impl",),
        (1e-6, "norm0"),
    ),
    "vitaev2_vsa": (
        vitae_vsa,
        vitae_vsa.ViTAEv2VSA,
        ("vitaev2_vsa",),
        ("RC_tokens_type", "NC_tokens_type", "stages", "downsample_ratios", "img_size"),
        None,
    ),
    "ravlt": (ravlt, ravlt.RAVLT, ("ravlt",), ("img_size",), (1e-6, r"extra_norms.0")),
}
VARIANTS = {
    "ffnet": "ffnet_1",
    "l2vit": "l2vit_tiny",
    "ppma": "ppma_tiny",
    "ravlt": "ravlt_t",
    "unireplknet": "unireplknet_a",
}


def cases() -> Iterator[tuple[str, str]]:
    for family, (_, _, committed, _, _) in FAMILIES.items():
        names = {f"backbones/{name}.pt" for name in committed} | set(fixtures.names(f"backbones/{family}*.pt"))
        yield from ((family, name) for name in sorted(names))


@pytest.mark.parametrize(("family", "name"), list(cases()))
def test_outputs(family: str, name: str) -> None:
    fixture = fixtures.load(name)
    file, cls, _, unused, dense = FAMILIES[family]
    arguments = constructor(fixture, *unused)
    if dense and is_dense(fixture, dense[1]):
        arguments.pop("num_classes", None)
        assert_dense(VARIANTS[family], arguments, dense[0], file.DENSE, fixture)
    else:
        assert_classifies(cls(**arguments), fixture["state_dict"], file.checkpoint_filter_fn, fixture)


@torch.no_grad()
def test_the_merged_form_of_unireplknet() -> None:
    """The authors' merged form, and weights of it loaded into one that is merged from the start."""
    fixture = fixtures.load("backbones/unireplknet.pt")
    arguments = constructor(fixture, "attempt_use_lk_impl")
    model = unireplknet.UniRepLKNet(**arguments).eval()
    model.load_state_dict(unireplknet.checkpoint_filter_fn(fixture["state_dict"], model), strict=True)
    images, theirs = fixture["inputs"][0], fixture["reparam_output0"]
    assert_outputs(model.fuse()(images), theirs)
    other = unireplknet.UniRepLKNet(**arguments, deploy=True).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(images), model(images))
    other.load_state_dict(unireplknet.checkpoint_filter_fn(fixture["reparam_state_dict"], other), strict=True)
    assert_outputs(other(images), theirs)
