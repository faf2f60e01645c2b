"""Networks of attention operators against their authors' code."""

from __future__ import annotations

from typing import Any

import pytest

from parity import fixtures
from parity.backbones import assert_classifies, constructor
from vistrain.backbones import agent_swin, gmm_swin, gmm_vit, soft

UNUSED = ("cls", "img_size", "patch_size", "norm_layer", "kernel_method", "mlp_ratios")


@pytest.mark.parametrize("name", sorted({"modules/agent_swin.pt", *fixtures.names("modules/agent_swin*.pt")}))
def test_agent_swin(name: str) -> None:
    fixture = fixtures.load(name)
    model = agent_swin.AgentSwin(**constructor(fixture, "cls"))
    assert_classifies(model, fixture["state_dict"], agent_swin.checkpoint_filter_fn, fixture)


@pytest.mark.parametrize(
    "name", sorted({"modules/soft.pt", "modules/soft_norm.pt", *fixtures.names("modules/soft*.pt")})
)
def test_soft(name: str) -> None:
    fixture = fixtures.load(name)
    arguments: dict[str, Any] = constructor(fixture, *UNUSED)
    ratio = fixture["constructor"]["mlp_ratios"][3]
    normalized = "Norm" in fixture["constructor"]["cls"]
    model = soft.SOFT(**arguments, mlp_ratio=ratio, normalized=normalized, norm_eps=1e-5)
    assert_classifies(model, fixture["state_dict"], soft.checkpoint_filter_fn, fixture)


@pytest.mark.parametrize("name", fixtures.names("modules/gmm_swin*.pt"))
def test_gmm_swin(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = constructor(fixture, "cls", "is_GMM")
    arguments["num_kernels"] = arguments.pop("num_kernals")
    model = gmm_swin.GaussianMixtureSwin(**arguments)
    assert_classifies(model, fixture["state_dict"], gmm_swin.checkpoint_filter_fn, fixture)


@pytest.mark.parametrize("name", sorted({"modules/gmm_vit.pt", *fixtures.names("modules/gmm_vit*.pt")}))
def test_gmm_vit(name: str) -> None:
    fixture = fixtures.load(name)
    arguments = constructor(fixture, "cls", "is_GMM")
    arguments["num_kernels"] = arguments.pop("num_kernals")
    model = gmm_vit.GaussianMixtureViT(**arguments)
    assert_classifies(model, fixture["state_dict"], gmm_vit.checkpoint_filter_fn, fixture)
