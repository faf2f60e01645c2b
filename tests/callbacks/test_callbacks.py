"""The callbacks of every run: averaging, checkpoints, progress, the run folder, the NaN guard and the loggers."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from PIL import Image
from rich.console import Console
from training_tools import TinyData, TinyDetector, fit, make_task, make_trainer

from vistrain.callbacks import EMA, Checkpoints, NaNGuard, Progress, RunFolder, default_callbacks
from vistrain.callbacks import loggers as loggers_module
from vistrain.callbacks.loggers import CSVMetrics, make_loggers
from vistrain.callbacks.progress import duration
from vistrain.checkpoints import load_file
from vistrain.errors import ConfigError, VistrainError, WeightsError
from vistrain.metrics import Metric, Unit
from vistrain.structures import Factory
from vistrain.surroundings import environment


def flat(state: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([v.double().flatten() for v in state.values()])


class Snapshots(Callback):
    """The network after each step, and what evaluation saw."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []
        self.evaluated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.steps.append({k: v.clone() for k, v in pl_module.state_dict().items()})

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.evaluated.append({k: v.clone() for k, v in pl_module.state_dict().items()})


# -------------------------------------------------------------------- EMA


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_ema_ramps_evaluates_and_is_what_a_checkpoint_holds(tmp_path: Path, buffers: Any) -> None:
    seen, task = Snapshots(), make_task(TinyDetector(norm=True))
    expected = {k: v.double().clone() for k, v in task.state_dict().items()}
    fit(tmp_path, task, TinyData(), [EMA(decay=0.3, buffers=buffers), seen, Checkpoints()], max_epochs=1)
    assert len(seen.steps) == 6
    averaged_buffers = {"running_mean", "running_var"} if buffers == "average" else set()
    parameters = {k for k, _ in task.named_parameters()}
    for t, current in enumerate(seen.steps):
        decay = min(0.3, (1 + t) / (10 + t))
        for name, value in current.items():
            average = name in parameters or name.split(".")[-1] in averaged_buffers
            expected[name] = decay * expected[name] + (1 - decay) * value.double() if average else value.double()
    assert [round(EMA(0.9997).decay_at(t), 4) for t in (0, 8, 90, 10**6)] == [0.1, 0.5, 0.91, 0.9997]
    checkpoint = load_file(tmp_path / "last.ckpt")
    for holder in (seen.evaluated[-1], checkpoint["state_dict"], task.state_dict()):
        torch.testing.assert_close(flat(holder), flat(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(flat(checkpoint["current_model_state"]), flat(seen.steps[-1]))


def test_ema_follows_optimizer_steps_not_micro_batches(tmp_path: Path) -> None:
    results = []
    for per_device in (None, 1):
        task = make_task(TinyDetector().double(), metrics=())
        fit(tmp_path, task, TinyData(per_device=per_device), [EMA(decay=0.5)], max_epochs=1, logger=False)
        results.append(flat(task.state_dict()))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)
    with pytest.raises(ConfigError, match="decay"):
        EMA(decay=1.5)


# -------------------------------------------------------------------- checkpoints


class Scored(Callback):
    """Reports a given value at each evaluation; None reports nothing."""

    def __init__(self, *values: float | None) -> None:
        self.values: Iterator[float | None] = iter(values)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        value = next(self.values)
        trainer.callback_metrics.pop("val/score", None)
        if value is not None:
            trainer.callback_metrics["val/score"] = torch.tensor(value)


def step_of(path: Path) -> int:
    return int(load_file(path)["global_step"])


def run_scored(folder: Path, *values: float | None, **arguments: Any) -> Checkpoints:
    saving = Checkpoints(monitor="val/score", **arguments)
    task = make_task(metrics=())
    fit(folder, task, TinyData(count=8), [Scored(*values), saving], max_epochs=len(values), logger=False)
    return saving


def test_no_metrics_have_no_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saving = Checkpoints()
    fit(tmp_path, make_task(metrics=()), TinyData(count=8), [saving], max_epochs=1, logger=False)
    assert caplog.text.count("no best checkpoint (best.ckpt): the config names no metrics") == 1
    assert not (tmp_path / "best.ckpt").exists()


def test_best_is_kept_and_what_is_missing_or_nan_never_becomes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saving = run_scored(tmp_path, None, float("nan"), 0.2, 0.5, float("inf"), 0.4, 0.1, float("nan"), keep_best=2)
    assert step_of(tmp_path / "last.ckpt") == 16
    assert step_of(tmp_path / "best.ckpt") == 8
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == [
        "best.ckpt", "last.ckpt", "step_00000008.ckpt", "step_00000012.ckpt"
    ]  # fmt: skip
    assert [step for _, step in saving.best] == [8, 12]
    assert caplog.text.count("no best checkpoint") == 1
    assert not list(tmp_path.glob(".*tmp"))


def test_low_can_be_good_and_equals_keep_the_older(tmp_path: Path) -> None:
    run_scored(tmp_path, 0.5, 0.2, 0.2, mode="min")
    assert step_of(tmp_path / "best.ckpt") == 4
    run_scored(tmp_path / "none", None, None)
    assert sorted(p.name for p in (tmp_path / "none").iterdir()) == ["last.ckpt"]


def test_without_a_mode_the_metric_says_what_is_good(tmp_path: Path) -> None:
    class Distance(Metric):
        """Grows with each evaluation."""

        families = ("distance",)
        value = 0.0

        def update(self, ids: Any, predictions: Any, targets: Any) -> list[dict[str, Any]]:
            return [{"id": i} for i in ids]

        def compute(self, records: Any) -> dict[str, float]:
            self.value += 1
            return {"distance/far": self.value}

        @classmethod
        def unit(cls, name: str) -> Unit:
            return Unit(lower_is_better=True)

    for mode, best in ((None, 2), ("min", 2), ("max", 6)):
        task = make_task(metrics=())
        task.build_metrics = lambda split: {"distance": Distance()}
        folder = tmp_path / str(mode)
        fit(folder, task, TinyData(count=8), [Checkpoints(mode=mode)], max_epochs=3, logger=False)
        assert step_of(folder / "best.ckpt") == best
    assert task.units["val/distance/far"].lower_is_better
    assert task.unit("train/loss").lower_is_better
    assert task.unit("val/loss_box").lower_is_better
    assert not task.unit("val/score").lower_is_better


def test_the_ranking_survives_a_resume(tmp_path: Path) -> None:
    run_scored(tmp_path, 0.5, 0.9, 0.1)
    saving = Checkpoints(monitor="val/score")
    arguments = {"max_epochs": 5, "logger": False, "resume": tmp_path / "last.ckpt"}
    fit(tmp_path, make_task(metrics=()), TinyData(count=8), [Scored(0.6, 0.7), saving], **arguments)
    assert step_of(tmp_path / "best.ckpt") == 4
    assert step_of(tmp_path / "last.ckpt") == 10


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, writes: range) -> None:
    """The disk has no room for the given writes, counted from 0; a part of each file arrives."""
    count = iter(range(10**6))
    save = torch.save

    def full(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if next(count) in writes:
            file.write(b"PK half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)


def test_a_full_disk_costs_nothing_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill_the_disk(monkeypatch, range(2, 10**6))  # before and after the first evaluation there was room
    with pytest.raises(WeightsError, match="No space left on device") as error:
        run_scored(tmp_path, 0.5, 0.6, 0.7)
    assert "\n" not in str(error.value)
    assert step_of(tmp_path / "last.ckpt") == step_of(tmp_path / "best.ckpt") == 2
    assert not list(tmp_path.glob(".*tmp"))
    assert caplog.text.count("No space left") >= 2


def test_a_disk_that_is_full_for_a_while_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch, range(3, 4))  # after the second evaluation
    saving = run_scored(tmp_path, 0.5, 0.6, 0.3)
    assert step_of(tmp_path / "last.ckpt") == 6
    assert step_of(tmp_path / "best.ckpt") == 2
    assert [step for _, step in saving.best] == [2]  # the better one of step 4 is on no disk


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    run_scored(tmp_path, 0.5, 0.6)
    assert step_of(tmp_path / "best.ckpt") == step_of(tmp_path / "last.ckpt") == 4


def test_an_evaluation_inside_an_accumulation_group_is_not_resumed_from(tmp_path: Path) -> None:
    saving = Checkpoints(monitor="val/score")
    settings = {"max_epochs": 1, "val_check_interval": 3, "logger": False}
    data = TinyData(count=8, per_device=1)
    fit(tmp_path, make_task(metrics=()), data, [Scored(0.9, 0.1), saving], **settings)  # after batches 3 and 6 of 8
    assert load_file(tmp_path / "last.ckpt")["vistrain"]["progress"]["consumed"] == 0  # the end of the epoch
    assert step_of(tmp_path / "best.ckpt") == 0


def test_a_torn_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    run_scored(tmp_path, 0.5)
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((tmp_path / "last.ckpt").read_bytes()[:3000])
    with pytest.raises(WeightsError) as error:
        fit(tmp_path, make_task(), TinyData(), [Checkpoints()], resume=torn)
    assert "torn.ckpt" in str(error.value)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------- progress


def plain(**arguments: Any) -> tuple[Progress, io.StringIO]:
    """Progress into a file, as on a cluster."""
    progress, out = Progress(**arguments), io.StringIO()
    progress.console = Console(file=out, soft_wrap=True)
    return progress, out


def test_plain_lines_say_what_a_person_asks(tmp_path: Path) -> None:
    progress, out = plain(every_n_steps=3)
    fit(tmp_path, make_task(), TinyData(), [progress])
    lines = out.getvalue().splitlines()
    steps = [line for line in lines if line.startswith("epoch")]
    assert [line.split("  ")[:2] for line in steps] == [
        [f"epoch {1 + (step - 1) // 6}/2", f"step {step}"] for step in (3, 6, 9, 12)
    ]
    for word in ("loss ", "lr 0.05", "img/s", "data ", "%", "mem ", "GiB", "left 0:00:0"):
        assert word in steps[0]
    assert sum("val/coco/AP" in line for line in lines) == 2
    assert "\x1b" not in out.getvalue()
    assert float(CSVMetrics(tmp_path).read()[0]["train/loss"]) > 0


def test_a_run_that_shares_the_processor_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for load, threads in ((None, 2), (1.2, 2), (6.31, 2), (6.32, 1)):
        monkeypatch.setattr("vistrain.callbacks.progress.torch.get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr("vistrain.callbacks.progress.os.cpu_count", lambda: 2)
        monkeypatch.setattr("vistrain.callbacks.progress.load_average", lambda load=load: load)
        progress, out = plain(every_n_steps=3)
        fit(tmp_path / str(load), make_task(), TinyData(), [progress], limit_val_batches=0)
        said.append([line for line in out.getvalue().splitlines() if "other programs" in line])
    assert said[:2] == [[], []]
    assert len(said[2]) == 1
    assert "6.3 threads want its 2 cores" in said[2][0]
    assert said[2][0].endswith("end them, or leave them room: OMP_NUM_THREADS=1")
    assert said[3][0].endswith("end them")  # what it has already is not asked for


def test_the_shown_loss_is_the_mean_of_the_steps(tmp_path: Path) -> None:
    progress, out = plain(every_n_steps=6)
    data = TinyData(per_device=2)
    fit(tmp_path, make_task(), data, [progress], max_epochs=1, log_every_n_steps=1)
    losses = [float(row["train/loss"]) for row in CSVMetrics(tmp_path).read() if row["train/loss"]]
    shown = float(out.getvalue().split("loss ")[1].split()[0])
    assert shown == pytest.approx(np.mean(losses), rel=1e-3)


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path) -> None:
    progress, out = plain(every_n_steps=6)
    fit(tmp_path, make_task(), TinyData(), [progress, Checkpoints()], max_epochs=1, limit_val_batches=0)
    assert "goes on" not in out.getvalue()
    fit(tmp_path, make_task(), TinyData(), [progress, Checkpoints()], limit_val_batches=0,
        resume=tmp_path / "last.ckpt")  # fmt: skip
    assert "goes on after step 6\n" in out.getvalue()


def test_a_terminal_gets_a_live_line(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress()
    progress.console = Console(file=out, force_terminal=True, width=160)
    fit(tmp_path, make_task(), TinyData(), [progress], max_epochs=1)
    assert "\x1b" in out.getvalue()
    assert "val/coco/AP" in out.getvalue()
    assert duration(3723) == "1:02:03"
    assert duration(float("inf")) == "?"


def test_steps_do_not_wait_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are read where they are shown, not at each step; the NaN guard alone asks, once a step."""
    reads = {"item": 0, "tolist": 0}
    for name in reads:
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, name: str = name, original: Any = original) -> Any:
            reads[name] += 1
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    callbacks = [EMA(), plain()[0]]
    task = make_task(metrics=())
    task.optimizer = Factory(torch.optim.SGD, lr=0.1)  # AdamW reads its step counters, which lie on the processor
    fit(tmp_path, task, TinyData(count=80), callbacks, max_epochs=1, log_every_n_steps=10, limit_val_batches=0)
    assert reads["item"] <= 8  # two lines of twenty steps, and what Lightning reads of its own
    assert reads["tolist"] <= 4


# -------------------------------------------------------------------- run folder


def test_the_run_folder_holds_what_a_person_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("VISTRAIN_API_KEY", "hush")
    task = make_task()
    task.checkpoint_facts = {"config": {"seed": 3, "model": {"type": "x"}}}
    fit(tmp_path, task, TinyData(), [RunFolder(side=64)])
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\nmodel:\n  type: x\n"
    written = (tmp_path / "environment.json").read_text()
    assert json.loads(written)["variables"]["NCCL_DEBUG"] == "WARN"
    assert "hush" not in written
    assert set(environment()["versions"]) >= {"torch", "lightning", "numpy"}
    for name in ("first_batch.png", "curves.png", "eval/epoch_001.png", "eval/epoch_002.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 0, name
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert {r["image_id"] for r in results} == set(range(6))
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}


@pytest.mark.parametrize(
    ("per_batch", "images", "shown"), [(1, 2, [0, 3]), (6, 3, [0, 2, 4]), (4, 9, [0, 1, 2, 3, 4, 5])]
)
def test_pictures_show_images_from_all_over_the_set(
    tmp_path: Path, per_batch: int, images: int, shown: list[int]
) -> None:
    task, drawn = make_task(), []

    def draw(batch: Any, i: int, found: Any, side: int, threshold: float) -> list[tuple[str, np.ndarray]]:
        drawn.append(int(batch["id"][i]))
        return [("", np.zeros((8, 8, 3), np.uint8))]

    task.draw_sample = draw
    trainer = make_trainer(tmp_path, [RunFolder(images=images, extremes=False)], logger=False)
    trainer.test(task, datamodule=TinyData(eval_batch_size=per_batch), verbose=False)
    assert drawn == shown


def test_the_first_batch_is_not_drawn_again_and_pictures_never_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "eval").write_text("a file where a folder should be")
    fit(tmp_path, make_task(), TinyData(), [RunFolder(), Checkpoints()], max_epochs=1)
    assert "epoch_001.png could not be written" in caplog.text
    (tmp_path / "first_batch.png").unlink()
    fit(tmp_path, make_task(), TinyData(), [RunFolder(), Checkpoints()], resume=tmp_path / "last.ckpt")
    assert not (tmp_path / "first_batch.png").exists()
    trainer = make_trainer(tmp_path / "test", [RunFolder()], logger=False)
    trainer.test(make_task(), datamodule=TinyData(), verbose=False)
    assert sorted(p.name for p in (tmp_path / "test").rglob("*.*")) == [
        "best.png", "predictions.json", "summary.json", "test.png", "worst.png",
    ]  # fmt: skip


# -------------------------------------------------------------------- NaN


def test_nan_stops_the_run_and_names_images_and_state(tmp_path: Path) -> None:
    task = make_task(TinyDetector(poison=frozenset({5})))
    with pytest.raises(VistrainError) as error:
        fit(tmp_path, task, TinyData(), [NaNGuard(), Checkpoints()], max_epochs=1)
    message = str(error.value)
    (path,) = tmp_path.glob("nan_step_*_rank0.pt")
    state = load_file(path)
    assert 5 in state["batch"]["id"]
    for part in (str(state["batch"]["id"]), str(path), "box is not finite", f"training step {state['step']}"):
        assert part in message
    assert "\n" not in message
    assert flat(state["state_dict"]).isfinite().all()  # from before the broken update
    assert not np.isfinite(state["losses"]["box"])
    assert np.isfinite(state["losses"]["class"])
    assert state["batch"]["image"].dtype == torch.uint8


def test_nan_is_reported_even_where_the_state_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch, range(10**6))
    with pytest.raises(VistrainError, match=r"not finite.*could not be saved"):
        fit(tmp_path, make_task(TinyDetector(poison=frozenset(range(24)))), TinyData(), [NaNGuard()], logger=False)


# -------------------------------------------------------------------- loggers


def test_metrics_csv_has_one_row_per_step_and_continues_after_a_resume(tmp_path: Path) -> None:
    fit(tmp_path, make_task(), TinyData(), [RunFolder(), Checkpoints(every_n_steps=8)], max_epochs=2)
    whole = CSVMetrics(tmp_path).read()
    (tmp_path / "metrics.csv").write_text((tmp_path / "metrics.csv").read_text() + "14,0.1")  # cut off by a crash
    fit(tmp_path, make_task(), TinyData(), [RunFolder()], max_epochs=3, resume=tmp_path / "last.ckpt")
    resumed = CSVMetrics(tmp_path).read()
    assert [row["step"] for row in resumed] == [str(n) for n in range(2, 19, 2)]
    names = [name for name in whole[0] if not name.startswith("perf/")]
    assert [[row[n] for n in names] for row in resumed[:6]] == [[row[n] for n in names] for row in whole]


def test_rows_merge_and_columns_grow(tmp_path: Path) -> None:
    logger = CSVMetrics(tmp_path)
    logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 2.0}, 2)
    logger.log_metrics({"b": torch.tensor(3.0)}, 2)
    logger.log_metrics({"b": 4.0}, 2)
    logger.log_metrics({"a": 5.0}, 3)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a,b", "1,1,", "2,2,4", "3,5,"]
    again = CSVMetrics(tmp_path)
    again.resume_at(2)
    again.log_metrics({"b": 6.0}, 3)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a,b", "1,1,", "2,2,4", "3,,6"]
    fresh = CSVMetrics(tmp_path)
    fresh.resume_at(0)
    assert fresh.read() == []


def test_loggers_on_request(tmp_path: Path) -> None:
    assert [type(x).__name__ for x in make_loggers(None, tmp_path)] == ["CSVMetrics"]
    names = [type(x).__name__ for x in make_loggers({"tensorboard": {}, "wandb": None}, tmp_path)]
    assert names == ["CSVMetrics", "TensorBoard"]
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        make_loggers(["tensorbord"], tmp_path)
    with pytest.raises(ConfigError, match=r"logger\.wandb\.projekt: no such key - did you mean 'project'"):
        make_loggers({"wandb": {"projekt": "x"}}, tmp_path)
    loggers = make_loggers("tensorboard", tmp_path)
    fit(tmp_path, make_task(), TinyData(), max_epochs=1, logger=loggers)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(loggers_module, "WANDB_INIT_SECONDS", 1.0)
    monkeypatch.setattr(loggers_module, "WANDB_FINISH_SECONDS", 2.0)


@pytest.mark.usefixtures("no_account")
@pytest.mark.parametrize("case", ["offline by default", "online without an account", "online without a network"])
def test_wandb_never_stops_or_blocks_a_run(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    if case == "online without a network":
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    section = {"wandb": {} if case == "offline by default" else {"mode": "online"}}
    begin, given = wandb.init, []
    monkeypatch.setattr(wandb, "init", lambda **words: (given.append(words["settings"]), begin(**words))[1])
    loggers = make_loggers(section, tmp_path, {"seed": 1})
    fit(tmp_path, make_task(), TinyData(), max_epochs=1, logger=loggers)
    wandb.finish()
    assert {(settings.init_timeout, getattr(settings, "finish_timeout", 2.0)) for settings in given} == {(1.0, 2.0)}
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert ("recorded offline" in caplog.text) == (case != "offline by default")


# -------------------------------------------------------------------- the list


def test_the_default_list_and_its_order(tmp_path: Path) -> None:
    names = [type(c).__name__ for c in default_callbacks(tmp_path)]
    assert names == ["NaNGuard", "Unreadable", "Progress", "RunFolder", "Checkpoints", "Preemption"]
    mine = [Checkpoints(keep_best=3), LearningRateMonitor(), EMA(), RunFolder(folder=str(tmp_path / "else"))]
    given = default_callbacks(tmp_path, mine)
    assert [type(c).__name__ for c in given] == [
        "NaNGuard", "EMA", "Unreadable", "LearningRateMonitor", "Progress", "RunFolder", "Checkpoints", "Preemption"
    ]  # fmt: skip
    assert given[-2] is mine[0]
    assert given[-2].folder == tmp_path
    assert given[-3].folder == tmp_path / "else"
    assert [type(c).__name__ for c in default_callbacks(tmp_path, mine[:3], evaluate_only=True)] == [
        "LearningRateMonitor", "Progress", "RunFolder", "Preemption"
    ]  # fmt: skip
