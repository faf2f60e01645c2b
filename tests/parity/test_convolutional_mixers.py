"""FFNet, AttNet, L2ViT, RAVLT and FaViT against their authors' code: logits and raw maps."""

from collections.abc import Iterator
from typing import Any

import pytest

from parity import fixtures
from parity.backbones import assert_classifies, assert_dense, constructor, is_dense
from vistrain.backbones import attnet, favit, ffnet, l2vit, ravlt

# Of each: file, class, committed fixtures, arguments of theirs that say nothing here, eps and names of dense norms
FAMILIES: dict[str, tuple[Any, Any, tuple[str, ...], tuple[str, ...], tuple[float, str] | None]] = {
    "attnet": (attnet, attnet.AttNet, ("attnet_norm_ls",), ("act_layer", "distillation"), None),
    "favit": (favit, favit.FaViT, ("favit",), ("img_size", "patch_size", "norm_layer"), None),
    "ffnet": (ffnet, ffnet.FFNet, ("ffnet_k3",), ("in_channels", "down_ops", "distillation"), None),
    "l2vit": (l2vit, l2vit.L2ViT, ("l2vit",), ("block_type", "conv_stem", "img_size"), (1e-5, "norm0")),
    "ravlt": (ravlt, ravlt.RAVLT, ("ravlt",), ("img_size",), (1e-6, r"extra_norms.0")),
}
VARIANTS = {"l2vit": "l2vit_tiny", "ravlt": "ravlt_t"}


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
