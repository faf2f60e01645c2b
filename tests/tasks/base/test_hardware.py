"""What a task makes of its device: fused steps, TF32, order in memory, recomputing, compiling, what fits at once."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_tools import TinyData, TinyDetector, Watch, fit, make_task, make_trainer

from vistrain.backbones import Backbone
from vistrain.detection import DeformableDETR
from vistrain.errors import ConfigError
from vistrain.internals.lightning import take_in
from vistrain.layers.recompute import keep, recompute
from vistrain.structures import Factory
from vistrain.tasks.base import fitting, hardware
from vistrain.tasks.base.parallel import ShardedStrategy, trainer_arguments


def on(device: str, precision: str = "bf16-mixed") -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)


def test_optimizers_are_fused_on_cuda_unless_the_config_says_otherwise() -> None:
    def is_fused(optimizer: Factory[Any], trainer: Any) -> bool:
        made = hardware.optimizer_of(optimizer, [nn.Parameter(torch.ones(1))], trainer)
        return bool(made.defaults.get("fused"))

    adam = Factory(torch.optim.AdamW, lr=1.0)
    assert is_fused(adam, on("cuda"))
    assert not is_fused(adam, on("cpu"))
    assert not is_fused(adam, on("cuda", "16-mixed"))
    assert not is_fused(Factory(torch.optim.AdamW, lr=1.0, foreach=True), on("cuda"))
    assert not is_fused(Factory(torch.optim.RMSprop, lr=1.0), on("cuda"))


def test_fused_steps_clip_gradients_in_half_precision(tmp_path: Path) -> None:
    states = []
    for fused in (False, True):
        task = make_task(TinyDetector())
        task.optimizer = Factory(torch.optim.SGD, lr=0.05, fused=fused)  # whose step is as long as the gradient
        settings = {"precision": "bf16-mixed", "gradient_clip_val": 1e-3, "max_steps": 3, "limit_val_batches": 0}
        before = copy.deepcopy(task.state_dict())
        fit(tmp_path / str(fused), task, TinyData(), **settings)
        moved = [after - before[name] for name, after in task.model.state_dict(prefix="model.").items()]
        states.append(torch.cat([x.flatten().double() for x in moved]))
    assert 0 < float(states[1].norm()) <= 3 * 0.05 * 1e-3 * 1.01
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-7)


def test_tf32_is_what_the_config_says() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for allowed, name in ((True, "high"), (False, "highest")):
            hardware.allow_tf32(allowed)
            assert torch.get_float32_matmul_precision() == name
            assert torch.backends.cudnn.allow_tf32 == allowed
            hardware.allow_tf32(None)
            assert torch.get_float32_matmul_precision() == name
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def test_convolutions_lie_channels_last_on_cuda_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_turned(arguments: dict[str, Any], **more: Any) -> bool:
        task = make_task(**more)
        trainer_arguments(arguments, task)
        weight: Tensor = task.model.backbone[0].weight
        return weight.is_contiguous(memory_format=torch.channels_last)

    assert not is_turned({})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert is_turned({})
    assert not is_turned({"accelerator": "cpu"})
    assert not is_turned({"strategy": "fsdp2"})
    assert not is_turned({}, channels_last=False)


class Blocks(TinyDetector):
    """Two blocks with batch norms and dropout."""

    def __init__(self) -> None:
        super().__init__()
        make = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.3)]
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), *(nn.Sequential(*copy.deepcopy(make)) for _ in range(2)))


def test_recomputing_changes_neither_gradients_nor_statistics(tmp_path: Path) -> None:
    tasks = [make_task(Blocks(), recompute=flag) for flag in (False, True)]
    for number, task in enumerate(tasks):
        fit(tmp_path / str(number), task, TinyData(), max_epochs=1, logger=False)
    plain, again = (task.state_dict() for task in tasks)
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)
    assert "forward" not in vars(tasks[1].model.backbone[1])  # taken back


def test_recomputing_keeps_the_input_alone() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
    x = torch.randn(5, 8, requires_grad=True)

    def kept() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            block(x)
        return sum(sizes)

    before = kept()
    recompute(block)
    assert kept() <= x.numel() < before
    keep(block)
    assert kept() == before


class Whole(nn.Module):
    """A part of a class of its own: torch 2.11 compiles no `Sequential` alone."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, images: Tensor) -> Tensor:
        return self.part(images)


def test_compiled_graphs_are_counted_epoch_by_epoch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = TinyDetector()
    model.backbone = Whole(model.backbone)
    assert hardware.Prepared(model, compiled=False, recomputed=False).report() == 0
    monkeypatch.setattr(hardware, "HANDFUL", 0)
    names, compile_part = list(model.state_dict()), model.backbone.compile
    monkeypatch.setattr(model.backbone, "compile", lambda: compile_part(backend="eager"))
    torch.compiler.reset()
    prepared = hardware.Prepared(model, compiled=True, recomputed=False)
    prepared.begin()
    made = []
    with caplog.at_level(logging.INFO):
        for sides in ((8, 9, 10, 11), (13,)):  # the second size becomes a symbol, which serves all others
            for side in sides:
                model(torch.rand(1, 3, side, side + 1))
            made.append(prepared.report())
        model.double()(torch.rand(1, 3, 8, 9, dtype=torch.float64))
        made.append(prepared.report())
    assert made[:2] == [2, 0]
    assert made[2] > 0
    assert "epoch 1: 2 graphs of backbone were compiled" in caplog.text
    assert "shapes keep changing" in caplog.text
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_a_detector_of_many_sizes_is_compiled_a_handful_of_times() -> None:
    """Images of ten sizes, as in multi-scale training."""
    sizes: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "ffn_dim": 16, "num_queries": 4, "encoder_layers": 1}
    body = Backbone("test_resnet", strides=(8, 16), frozen_norm=True)
    model = DeformableDETR(body, TinyDetector().labels, decoder_layers=1, num_levels=2, **sizes).train()
    torch.compiler.reset()
    before = hardware.graphs_compiled()
    model.encoder.compile(backend="eager")
    for side in (64, 96, 128, 160, 192):
        for longer in (0, 32):
            image = torch.randint(256, (1, 3, side, side + longer), dtype=torch.uint8)
            size = torch.tensor([image.shape[2:]])
            target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1])}
            losses = model.losses({"image": image, "size": size, "target": [target]})
            torch.stack(list(losses.values())).sum().backward()
    assert 0 < hardware.graphs_compiled() - before <= 4


# ---------------------------------------------------------------- what fits at once


def standing(folder: Path, **more: Any) -> Any:
    """A task in a trainer that stands before a fit."""
    task, data = make_task(TinyDetector(norm=True, dropout=0.5)), TinyData(batch_size=12, per_device="auto", **more)
    take_in(make_trainer(folder, logger=False), task, data)
    return task


def test_what_fits_is_the_largest_divisor_of_the_share(tmp_path: Path) -> None:
    task = standing(tmp_path)
    weights = sum(4 * p.numel() for p in task.model.parameters())
    state = copy.deepcopy(task.model.state_dict())
    generator = torch.get_rng_state()
    seen: list[int] = []

    def peak(run: Any) -> int:
        gradients = run()
        seen.append(len(gradients))
        return 10_000 + (1000, 2000)[len(seen) % 2 == 0]  # of 2 samples and of 4: 500 bytes each

    fixed = 10_000 + 2 * weights
    for budget, expected in ((12, 12), (11, 6), (5, 4), (3, 3), (1, 1), (-20, 1)):
        assert fitting.fitting(task, 12, peak, fixed + 500 * budget) == expected
    assert set(seen) == {len(list(task.model.parameters()))}
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert torch.get_rng_state().equal(generator)
    for name, value in task.model.state_dict().items():
        assert value.equal(state[name]), name
    assert fitting.fitting(task, 1, peak, 0) == 1


def test_a_processor_takes_its_whole_share_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, watch = TinyData(batch_size=12, per_device="auto"), Watch()
    with caplog.at_level(logging.INFO):
        fit(tmp_path, make_task(), data, [watch], max_epochs=1, logger=False)
    assert "data.per_device=auto: all 12 samples at once" in caplog.text
    assert data.per_device == 12
    assert [len(ids) for ids in watch.ids] == [12, 12]
    with pytest.raises(ConfigError, match="per_device"):
        TinyData(per_device=0)


def test_what_sharded_weights_leave_room_for_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = standing(tmp_path)
    monkeypatch.setattr(type(task.trainer), "strategy", ShardedStrategy())
    with pytest.raises(ConfigError, match=r"data\.per_device: auto cannot be measured where weights are sharded"):
        fitting.settle_per_device(task)


def test_a_gpu_takes_what_fits_and_accumulates_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = standing(tmp_path)
    trainer = task.trainer
    monkeypatch.setattr(fitting, "fitting", lambda task, share, peak, budget: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    monkeypatch.setattr(torch, "tensor", lambda value, device: value)
    with caplog.at_level(logging.INFO):
        fitting.settle_per_device(task)
    assert "3 of 12 samples at once, batches of 12" in caplog.text
    assert task.datamodule.per_device == 3
    assert trainer.accumulate_grad_batches == 4
