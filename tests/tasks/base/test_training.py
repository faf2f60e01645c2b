"""The task around a network: steps, numbers, checkpoints, and runs that continue as if nothing had happened."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_tools import LABELS, TinyData, TinyDetector, Watch, fit, make_task, make_trainer

from vistrain import __version__
from vistrain.attention import AttentionOperator
from vistrain.callbacks import EMA, Checkpoints, NaNGuard, Progress
from vistrain.callbacks.loggers import CSVMetrics
from vistrain.checkpoints import load_file
from vistrain.data import EvalCrop, EvalResize
from vistrain.data.base.transform import EvalTransform
from vistrain.errors import ConfigError, VistrainError
from vistrain.optim import Cosine
from vistrain.structures import Factory, Preprocessing
from vistrain.tasks import DetectionTask
from vistrain.tasks.base.looks import picture_of
from vistrain.tasks.base.parallel import Gatherer, merge
from vistrain.tasks.base.predictor import evaluation_transform
from vistrain.tasks.base.task import Task


def rows(folder: Path) -> list[dict[str, str]]:
    return CSVMetrics(folder).read()


def test_losses_learning_rate_and_numbers_reach_the_log(tmp_path: Path) -> None:
    task = make_task(schedule=Cosine(warmup_steps=4, warmup_factor=0.0))
    fit(tmp_path, task, TinyData(), max_epochs=2)
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == ["2", "4", "6", "8", "10", "12"]
    for row in logged:
        assert float(row["train/loss"]) == pytest.approx(float(row["train/box"]) + float(row["train/class"]), rel=1e-6)
    schedule = Cosine(warmup_steps=4, warmup_factor=0.0)
    rates = [0.05 * schedule.factor(step - 1, 12, 6) for step in range(2, 13, 2)]
    assert [float(row["lr"]) for row in logged] == pytest.approx(rates)
    assert [row["val/coco/AP"] != "" for row in logged] == [False, False, True, False, False, True]
    assert next(iter(task.numbers)) == "val/coco/AP"
    assert len(task.numbers) == 12


class Attentive(AttentionOperator):
    """An operator with a loss of its own, and a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))
        self.shares: list[float] = []

    def at_progress(self, share: float) -> None:
        self.shares.append(share)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.auxiliary["loss_attention"] = self.factor.square().sum()
        return x * self.factor[:, None, None]

    def path(self, device: torch.device) -> str:
        return f"on {device.type}"


def test_losses_of_attention_operators_are_trained_and_their_schedules_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = TinyDetector()
    operator = Attentive()
    model.backbone.append(operator)
    task = make_task(model)
    fit(tmp_path, task, TinyData(count=8, batch_size=4), [Progress()], max_epochs=2)
    assert operator.shares == [0.0, 0.25, 0.5, 0.75]
    assert set(task.losses) == {"box", "class", "loss_attention"}
    assert (operator.factor < 0.99).all()  # four steps of AdamW at 0.05, all downhill
    assert "attention Attentive x 1: on cpu" in capsys.readouterr().out


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    """The loss is divided by the number of targets of the whole global batch, however it is cut."""
    weights = []
    for per_device in (None, 4, 1):
        model = TinyDetector()
        task = make_task(model.double(), metrics=())
        task.optimizer = Factory(torch.optim.SGD, lr=0.1)
        trainer = fit(tmp_path, task, TinyData(batch_size=8, per_device=per_device), max_epochs=2, logger=False)
        assert trainer.global_step == 6
        assert model.steps == [1, 2, 3, 4, 5, 6]  # the network hears of optimizer steps, not of micro-batches
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-12)


class Copying(Checkpoints):
    """Keeps a copy of every `last.ckpt` that was ever written."""

    copies: list[tuple[int, Path]]

    def _save(self, trainer: Any, value: float | None) -> None:
        super()._save(trainer, value)
        assert self.folder is not None
        copy = self.folder / f"copy_{len(self.copies)}.ckpt"
        shutil.copy(self.folder / "last.ckpt", copy)
        self.copies.append((trainer.global_step, copy))


@pytest.mark.parametrize(
    ("workers", "per_device", "which"),
    # Checkpoints 1 and 10 follow a step, 3 an evaluation inside an epoch, 6 an epoch's last step, 7 its evaluation.
    [(0, None, (1, 3, 6, 7, 10)), (0, 2, (1, 3, 7, 10)), (2, 2, (3, 6, 10))],
)
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, workers: int, per_device: int | None, which: tuple[int, ...]
) -> None:

    def parts() -> tuple[DetectionTask, TinyData]:
        model = TinyDetector(dropout=0.3, norm=True)  # random numbers and batch statistics
        return make_task(model, schedule=Cosine(warmup_steps=3)), TinyData(workers=workers, per_device=per_device)

    def averaged() -> list[Any]:
        return [NaNGuard(), EMA(decay=0.9)]

    settings: dict[str, Any] = {"max_epochs": 3, "val_check_interval": 0.5, "logger": False}
    task, data = parts()
    watch, saving = Watch(), Copying(every_n_steps=1)
    saving.copies = []
    fit(tmp_path, task, data, [*averaged(), watch, saving], **settings)
    assert len(saving.copies) == 18 + 6
    for step, path in (saving.copies[i] for i in which):
        torch.manual_seed(step)  # whatever the process drew before must not matter
        again, data = parts()
        seen = Watch()
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        fit(folder, again, data, [*averaged(), seen, Checkpoints()], resume=path, **settings)
        assert seen.ids == watch.ids[step * len(watch.ids) // 18 :], f"{path} continues at other samples"
        for (name, ours), theirs in zip(again.state_dict().items(), task.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), f"{path}: {name}"


def test_an_interrupted_run_continues_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = make_task(TinyDetector(dropout=0.3))
    fit(tmp_path / "whole", whole, TinyData(), [Checkpoints(every_n_steps=1)])
    cut = make_task(TinyDetector(dropout=0.3))
    with pytest.raises(InterruptedError):
        fit(tmp_path / "cut", cut, TinyData(), [Watch(8), Checkpoints(every_n_steps=3)])
    again = make_task(TinyDetector(dropout=0.3))
    trainer = fit(tmp_path / "cut", again, TinyData(), [Checkpoints()], resume=tmp_path / "cut" / "last.ckpt")
    assert trainer.global_step == 12
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_evaluating_in_between_changes_nothing(tmp_path: Path) -> None:
    results = []
    for limit in (0, 1.0):
        task = make_task(TinyDetector(dropout=0.5))
        fit(tmp_path, task, TinyData(), limit_val_batches=limit, logger=False)
        results.append(torch.cat([p.detach().flatten() for p in task.parameters()]))
    assert torch.equal(*results)


def test_resuming_elsewhere_says_that_bits_may_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = TinyData()
    fit(tmp_path, make_task(), data, [Checkpoints(every_n_steps=4)], max_steps=4, max_epochs=-1)
    checkpoint = load_file(tmp_path / "last.ckpt")
    assert checkpoint["vistrain"]["progress"] == {"epoch": 0, "consumed": 16, "world_size": 1}
    checkpoint["vistrain"]["progress"]["world_size"] = 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    data = TinyData()
    fit(tmp_path, make_task(), data, resume=tmp_path / "two.ckpt", max_epochs=1)
    assert data.resume == (0, 16)
    assert "not be equal to the bit" in caplog.text


def test_checkpoints_carry_what_rebuilds_the_network(tmp_path: Path) -> None:
    task = make_task()
    task.checkpoint_facts = {"config": {"model": {"type": "tests.Tiny"}, "seed": 3}}
    fit(tmp_path, task, TinyData(), [Checkpoints()], max_epochs=1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    facts = checkpoint["vistrain"]
    assert facts["version"] == __version__
    assert facts["config"] == task.checkpoint_facts["config"]
    assert type(LABELS).from_dict(facts["labels"]) == LABELS
    assert type(task.model.preprocessing).from_dict(facts["preprocessing"]) == task.model.preprocessing
    assert facts["progress"] == {"epoch": 1, "consumed": 0, "world_size": 1}
    assert {k.removeprefix("model.") for k in checkpoint["state_dict"]} == set(task.model.state_dict())


class Halved(EvalTransform):
    """Every second pixel."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image[::2, ::2]

    def to_node(self) -> dict[str, Any]:
        return {"type": f"{__name__}.Halved"}


def test_checkpoints_carry_the_evaluation_transform(tmp_path: Path) -> None:
    class Data(TinyData):
        eval_transform = Halved()

    for data, kind in ((TinyData(), type(None)), (Data(), Halved)):
        task = make_task()
        fit(tmp_path / kind.__name__, task, data, [Checkpoints()], max_epochs=1, limit_val_batches=0, logger=False)
        facts = torch.load(tmp_path / kind.__name__ / "last.ckpt", weights_only=True)["vistrain"]
        assert isinstance(evaluation_transform(facts, Preprocessing(), (__name__,)), kind)
    with pytest.raises(ConfigError, match="--allow"):
        evaluation_transform(facts, Preprocessing())
    for whole in (EvalResize(64, 96, "detectron2", "bicubic"), EvalCrop((32, 48), 0.9)):
        assert evaluation_transform({"evaluation": whole.to_node()}, Preprocessing()) == whole
    # Of before: the config's data module knows it.
    old = {"config": {"data": {"type": "data.GeneratedShapes", "root": str(tmp_path), "eval_short_side": 64}}}
    made: Any = evaluation_transform(old, Preprocessing(interpolation="bicubic"))
    assert (made.short, made.interpolation) == (64, "bicubic")


class Plain(Task):
    """Says nothing of itself."""


def test_a_task_that_says_nothing_is_shown_plainly_and_refuses_the_rest(tmp_path: Path) -> None:
    task = Plain(model=TinyDetector(), optimizer=Factory(torch.optim.SGD, lr=0.1))
    volume = torch.stack([torch.full((1, 9, 8), float(depth) / 4) for depth in range(4)], 1)
    batch = {"image": volume[None], "size": torch.tensor([[3, 6, 5]]), "id": ["scan"]}
    ((caption, picture),) = task.draw_sample(batch, 0, None, 100, 0.3)
    assert caption == "scan"
    assert picture.shape == (15, 12, 3)  # enlarged 2.5 times
    assert np.unique(picture).tolist() == [64]  # the middle of three slices
    deep = {"image": torch.full((1, 2, 4, 4), 65535, dtype=torch.uint16), "size": torch.tensor([[4, 4]]), "id": [1]}
    assert (picture_of(deep, 0) == 255).all()
    task.write_predictions(tmp_path / "predictions.json")
    assert task.facts_of_test() == {}
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="evaluate: Plain reads no files"):
        Plain.evaluate_file(tmp_path)
    task.analysis_folder = tmp_path / "analysis"
    with pytest.raises(ConfigError, match="--analysis: Plain has none"):
        make_trainer(tmp_path, logger=False).test(task, datamodule=TinyData(), verbose=False)
    with pytest.raises(TypeError, match="did you mean 'draw_sample'"):
        type("Wrong", (Plain,), {"draw_samples": None})


def test_a_test_prints_the_protocol_and_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, trainer = make_task(), make_trainer(tmp_path, logger=False)
    returned = trainer.test(task, datamodule=TinyData(), verbose=False)[0]
    shown = capsys.readouterr().out
    assert "coco_box, 6 images" in shown
    assert "dog" in shown
    assert returned == pytest.approx(task.numbers)
    assert set(returned) >= {"test/coco/AP", "test/coco/AR100"}


def test_compiling_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, *args, **kwargs: compiled.append(module))
    task = make_task(compile=True)
    task.model.compiled_parts = ("backbone.0", "head")
    before = list(task.state_dict())
    fit(tmp_path, task, TinyData(), max_epochs=1, logger=False)
    assert compiled == [task.model.backbone[0], task.model.head]
    assert list(task.state_dict()) == before


def test_channels_last_changes_the_order_in_memory_alone(tmp_path: Path) -> None:
    tasks = [make_task(channels_last=flag) for flag in (False, True)]
    for number, task in enumerate(tasks):
        fit(tmp_path / str(number), task, TinyData(), max_epochs=1, logger=False)
    plain, last = (task.state_dict() for task in tasks)
    assert last["model.backbone.0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert not plain["model.backbone.0.weight"].is_contiguous(memory_format=torch.channels_last)
    for name, value in plain.items():
        torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'coco_box'"):
        fit(tmp_path, make_task(metrics=("coco_bx",)), TinyData())
    task = make_task()
    task.optimizer = Factory(torch.optim.SGD, momentum=0.9)
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        fit(tmp_path, task, TinyData())
    with pytest.raises(ConfigError, match="needs a run with an end"):
        fit(tmp_path, make_task(schedule=Cosine()), TinyData(), max_epochs=-1, max_time="00:00:01:00")


def test_records_are_counted_once_and_in_order() -> None:
    first, second = [{"id": 3, "x": 1}, {"id": 1, "x": 2}], [{"id": 2, "x": 3}, {"id": 3, "x": 4}]
    assert merge([first, second]) == [{"id": 1, "x": 2}, {"id": 2, "x": 3}, {"id": 3, "x": 1}]
    alone = Gatherer()
    assert alone.gather(first) == [{"id": 1, "x": 2}, {"id": 3, "x": 1}]
    with alone.from_rank_zero() as numbers:
        numbers["a"] = 0.5
    assert numbers == {"a": 0.5}


def _evaluate(rank: int, world: int, address: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    gatherer = Gatherer(rank, world)
    records = gatherer.gather([{"id": i, "x": 0.1 * i} for i in range(rank, 7, world)] + [{"id": 0, "x": 0.0}])
    with gatherer.from_rank_zero() as numbers:
        if records is not None:
            numbers["sum"] = sum(r["x"] for r in records)
            numbers["count"] = len(records)
    failed = False
    try:
        with gatherer.from_rank_zero():
            if rank == 0:
                raise ZeroDivisionError
    except (VistrainError, ZeroDivisionError) as error:
        failed = isinstance(error, ZeroDivisionError) == (rank == 0)
    results[rank] = (numbers, failed)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_to_the_last_digit(tmp_path: Path) -> None:
    """Seven samples over two processes, one of them seen by both; an error on rank 0 leaves nobody waiting."""
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        address = f"file://{tmp_path}/rendezvous"
        processes = [context.Process(target=_evaluate, args=(rank, 2, address, results)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert results[0][0] == results[1][0]
        assert results[0][0] == {"sum": sum(0.1 * i for i in range(7)), "count": 7}
        assert results[0][1]
        assert results[1][1]


def test_a_metric_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="metrics: 'coco_box' is named 2 times - name it once"):
        make_task(metrics=("coco_box", "coco_box"))
