"""Fine-tuning: what is frozen, what learns through low-rank products, and which optimizer steps are for what."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn
from training_tools import TinyData, TinyDetector, fit, make_task

from vistrain import run
from vistrain.backbones import TimmModel
from vistrain.callbacks import EMA, Checkpoints
from vistrain.checkpoints import load_file, load_weights
from vistrain.classification import Classifier
from vistrain.config import compose
from vistrain.config.builder import build
from vistrain.errors import ConfigError
from vistrain.layers.low_rank import LowRank, adapted, merged_low_rank
from vistrain.optim import LoRA, ParameterGroups
from vistrain.optim.groups import table_of_frozen
from vistrain.optim.kernels import hidden_weights
from vistrain.run.networks import load_checkpoint
from vistrain.run.rehearsal import refuse_ahead
from vistrain.structures import Factory, LabelSpace

LABELS = LabelSpace(("a", "b", "c"), (1, 2, 3))


def vit() -> Classifier:
    torch.manual_seed(0)
    return Classifier(TimmModel("test_vit", LABELS), LABELS).eval()


# ------------------------------------------------------------------ freezing


def test_frozen_parts_keep_weights_and_statistics_and_the_rest_learns(tmp_path: Path) -> None:
    groups = ParameterGroups(freeze=("backbone.*",))
    task = make_task(TinyDetector(norm=True), groups=groups)
    groups.prepare(task.model)
    before = copy.deepcopy(task.model.state_dict())
    fit(tmp_path, task.train(), TinyData(), max_epochs=1, val_check_interval=0.5)
    after = task.model.state_dict()
    frozen = {name for name in before if name.startswith("backbone.")}
    assert "backbone.1.running_mean" in frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_half_frozen_norm_goes_on_counting() -> None:
    model = TinyDetector(norm=True).train()
    ParameterGroups(freeze=("backbone.1.weight",)).prepare(model)
    assert model.backbone[1].training
    ParameterGroups(freeze=("backbone.1.*",)).prepare(model)
    assert not model.backbone[1].training
    assert model.backbone[0].weight.requires_grad


def test_what_is_frozen_is_told_by_parts(caplog: pytest.LogCaptureFixture) -> None:
    model = TinyDetector(norm=True)
    with caplog.at_level(logging.INFO, logger="vistrain"):
        ParameterGroups(freeze=("backbone.0.*",)).prepare(model)
    rows = [line.split() for line in caplog.messages[0].splitlines()]
    assert rows == [
        ["part", "learn", "frozen"], ["backbone", "8", "112"], ["head", "30", "0"], ["all", "38", "112"]
    ]  # fmt: skip
    assert table_of_frozen(model) == caplog.messages[0]


def test_patterns_that_match_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.groups.freeze: 'bakbone\.\*' matches no parameter - nearest"):
        ParameterGroups(freeze=("bakbone.*",)).prepare(TinyDetector())
    groups, model = ParameterGroups(freeze=("*",)), TinyDetector()
    groups.prepare(model)
    with pytest.raises(ConfigError, match=r"optimizer.groups: the network has no trainable parameter"):
        groups(model, 1.0, 0.0)


# ------------------------------------------------------------------ low-rank products


def test_an_adapted_layer_begins_as_it_was_and_merges_to_what_it_became() -> None:
    plain, model, images = vit(), vit(), torch.rand(2, 3, 160, 160)
    names = LoRA(("*.qkv", "*.fc1"), rank=2, alpha=8).apply(model)
    assert names
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))
        for part in model.modules():
            if isinstance(part, LowRank):
                part.lora_B.normal_(std=0.1)
        moved = model(images)
        assert not torch.allclose(moved, plain(images), atol=1e-3)
        merged = merged_low_rank(model.state_dict())
        assert merged.keys() == plain.state_dict().keys()
        plain.load_state_dict(merged)
        assert torch.equal(plain(images), moved)


def test_the_product_is_the_papers() -> None:
    layer = nn.Linear(5, 4, dtype=torch.float64)
    weight, x = layer.weight.detach().clone(), torch.randn(3, 5, dtype=torch.float64)
    holder = nn.Sequential(layer)
    LoRA(("0",), rank=2, alpha=6).apply(holder)
    product = next(m for m in holder.modules() if isinstance(m, LowRank))
    with torch.no_grad():
        product.lora_B.normal_()
    expected = x @ weight.T + layer.bias + 3.0 * (x @ product.lora_A.T) @ product.lora_B.T
    torch.testing.assert_close(holder(x), expected)
    learning = {name for name, p in holder.named_parameters() if p.requires_grad}
    assert learning == {"0.bias", "0.parametrizations.weight.0.lora_A", "0.parametrizations.weight.0.lora_B"}


def test_a_product_reaches_weights_that_are_used_without_their_layer() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train()
    x = torch.randn(1, 3, 8)
    before = attention(x, x, x)[0]
    LoRA(("out_proj",), rank=2).apply(attention)
    with torch.no_grad():
        next(m for m in attention.modules() if isinstance(m, LowRank)).lora_B.fill_(1.0)
    assert not torch.allclose(attention(x, x, x)[0], before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"match": ("*.qvk",)}, r"optimizer.groups.lora.match: '\*.qvk' matches no linear layer - nearest: .*qkv"),
        ({"match": ("*.qkv",), "rank": 64}, r"optimizer.groups.lora.rank: 64 is no low rank for .*qkv"),
    ],
)
def test_layers_that_are_none_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoRA(**arguments).apply(vit())


def test_values_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora.match: names no layer"):
        LoRA(())
    with pytest.raises(ConfigError, match=r"lora.rank: 0 is not above 0"):
        LoRA(("*",), rank=0)
    with pytest.raises(ConfigError, match=r"lora: the network has no such layers yet"):
        ParameterGroups(lora=LoRA(("*",)))(TinyDetector(), 1.0, 0.0)


def test_damaged_products_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    LoRA(("0",), rank=2).apply(model)
    state = model.state_dict()
    for name, value in (("lora_A", torch.zeros(2, 5)), ("lora_B", torch.zeros(4)), ("scale", torch.zeros(2))):
        odd = {**state, f"0.parametrizations.weight.0.{name}": value}
        assert merged_low_rank(odd).keys() == state.keys()
    a, b = torch.ones(2, 6), torch.ones(4, 2)
    assert torch.equal(adapted(torch.zeros(4, 6), a, b, torch.tensor(0.5)), torch.ones(4, 6))


def small_run(root: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A composed config: a small vision transformer with low-rank products, on generated patterns."""
    lora = {"match": ["backbone.*.qkv", "backbone.*.proj"], "rank": 4}
    changes = {
        "data": {"root": str(root), "train_images": 2, "val_images": 1, "batch_size": 5, "workers": 0,
                 "image_size": 32},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "check_val_every_n_epoch": 1},
        "model": {"backbone": {"name": "test_vit", "args": {"channels": None, "img_size": 32}}},
        "optimizer": {"groups": {"freeze": ["backbone.body.blocks.*", "backbone.body.patch_embed.*"], "lora": lora}},
        "schedule": {"warmup_steps": 1},
        "run": {"folder": str(folder)},
    }  # fmt: skip
    composed = compose(["vistrain:demo/classification"], changes=changes)
    del composed["model"]["backbone"]["args"]["channels"]
    composed["trainer"] |= more
    return composed


def test_a_run_with_products_is_read_without_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refuse_ahead(small_run(tmp_path, folder))  # also on the meta device
    assert run.fit(small_run(tmp_path, folder)) == 0
    state = load_file(folder / "last.ckpt")["state_dict"]
    thin = [name for name in state if name.endswith("lora_B")]
    assert len(thin) > 2
    assert all(state[name].any() for name in thin)
    facts = load_checkpoint(folder / "last.ckpt")
    assert not [name for name in facts["state_dict"] if "parametrizations" in name]
    network, _ = run.load(folder / "last.ckpt")
    assert not [m for m in network.modules() if isinstance(m, LowRank)]
    assert 0 <= run.test(checkpoint=folder / "last.ckpt")["test/cls/top1"] <= 100
    assert load_weights(network, folder / "last.ckpt").loaded == len(facts["state_dict"])
    other = small_run(tmp_path, folder, max_epochs=2)
    other["optimizer"]["groups"]["lora"]["rank"] = 2
    with pytest.raises(ConfigError, match=r"weights are others than the run's"):
        run.fit(other, resume=folder)


def with_products() -> Any:
    groups = ParameterGroups(freeze=("backbone.0.*",), lora=LoRA(("head",), rank=2))
    task = make_task(TinyDetector(dropout=0.3, norm=True), groups=groups)
    groups.prepare(task.model)
    return task


def test_a_run_with_products_resumes_to_the_bit_and_its_average_holds_them(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [EMA(decay=0.9), Checkpoints()]

    fit(tmp_path / "whole", with_products(), TinyData(), callbacks(), max_epochs=2)
    fit(tmp_path / "half", with_products(), TinyData(), callbacks(), max_epochs=1)
    half = tmp_path / "half" / "last.ckpt"
    fit(tmp_path / "half", with_products(), TinyData(), callbacks(), max_epochs=2, resume=half)
    found, again = load_file(tmp_path / "whole" / "last.ckpt"), load_file(half)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, again[key][name]) for name, value in found[key].items())
    key = "model.head.parametrizations.weight.0.lora_B"
    assert found["state_dict"][key].any()
    assert not torch.equal(found["state_dict"][key], found["current_model_state"][key])


# ------------------------------------------------------------------ Muon


def test_muon_gets_the_hidden_weights_and_adamw_the_rest() -> None:
    model = vit()
    hidden = hidden_weights(model)
    assert "backbone.body.blocks.0.attn.qkv.weight" in hidden
    for name in ("patch_embed.proj.weight", "pos_embed", "head.weight", "blocks.0.attn.qkv.bias", "norm.weight"):
        assert f"backbone.body.{name}" in dict(model.named_parameters())
        assert f"backbone.body.{name}" not in hidden
    groups = ParameterGroups(fallback=True)(model, lr=0.02, weight_decay=0.01)
    of = {id(p): group["use_fallback"] for group in groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if not of[id(p)]} == hidden


def test_a_kernel_takes_an_orthogonal_step_in_its_flattened_form() -> None:
    """Flattened to `[out, in * k * k]`, a step's singular values are near one another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False))
    before = model[0].weight.detach().clone()
    optimizer = timm.optim.Muon([{"params": list(model.parameters()), "use_fallback": False}], lr=0.1)
    model(torch.randn(2, 4, 6, 6)).square().sum().backward()
    raw = torch.linalg.svdvals(model[0].weight.grad.flatten(1))
    optimizer.step()
    step = torch.linalg.svdvals((model[0].weight.detach() - before).flatten(1))
    assert raw[0] / raw[-1] > 5
    assert step[0] / step[-1] < 2.5


def test_a_config_names_muon() -> None:
    model = vit()
    node = {"type": "timm.optim.Muon", "lr": 1e-3, "weight_decay": 0.01}
    groups = build({"fallback": True}, ParameterGroups, where="optimizer.groups")
    optimizer = build(node, Factory[torch.optim.Optimizer], where="optimizer")(groups(model, 1e-3, 0.01))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.rand(2, 3, 160, 160)).square().sum().backward()
    optimizer.step()
    memory = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    hidden = hidden_weights(model)
    assert all("momentum_buffer" in memory[name] for name in hidden)
    assert all("exp_avg" in memory[name] for name in memory if name not in hidden)
    assert not torch.equal(before["backbone.body.head.weight"], model.backbone.body.head.weight)
