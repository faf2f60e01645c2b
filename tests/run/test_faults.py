"""What clusters do to a run: lost processes, torn files, dead workers, bad images, SLURM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_tools import REPOSITORY, Job, environment, torchrun, vistrain
from pausing import VARIABLE
from training_tools import TinyData, Watch, fit, make_task

from vistrain import processes
from vistrain.callbacks import Checkpoints, Unreadable
from vistrain.checkpoints import load_file, save_durably
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.faults import Watched, dead_worker, replacement
from vistrain.data.base.module import Loader
from vistrain.data.base.workers import start_worker
from vistrain.errors import ConfigError, DataError

SLURM = REPOSITORY / "tools" / "slurm"


# ---------------------------------------------------------------- unreadable samples


class Holey(TinyData):
    """Some images of a split cannot be read."""

    def __init__(self, bad: tuple[int, ...], split: str = "train", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.bad = (split, bad)

    def dataset(self, split: str) -> Any:
        whole, bad = super().dataset(split), self.bad[1] if split == self.bad[0] else ()

        class Images(SampleSet):
            def __len__(self) -> int:
                return len(whole)

            def sample(self, index: int, seed: int | None = None) -> Any:
                if index in bad:
                    raise DataError(self.where(index), "damaged image")
                return whole[index if seed is None else (index, seed)]

            def where(self, index: int) -> str:
                return f"{index}.png"

        return Images()


def train(folder: Path, data: TinyData, limit: int, **more: Any) -> tuple[Any, Watch]:
    watch, task = Watch(), make_task()
    callbacks = [watch, Unreadable(limit), Checkpoints(every_n_steps=1)]
    fit(folder, task, data, callbacks, limit_val_batches=0, logger=False, **more)
    return task, watch


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_an_unreadable_ones_place(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole, first = train(tmp_path / "whole", Holey((3, 7)), 2)
    assert not {3, 7} & {index for batch in first.ids for index in batch}
    listed = (tmp_path / "whole" / "unreadable.txt").read_text().splitlines()
    assert sorted(listed) == ["3.png: damaged image", "7.png: damaged image"]
    assert "2 training images could not be read" in caplog.text
    # A resumed run, with or without workers, draws the same others.
    train(tmp_path / "cut", Holey((3, 7)), 2, max_steps=4)
    again = make_task()
    data, watch = Holey((3, 7), workers=workers), Watch()
    fit(tmp_path / "cut", again, data, [watch, Unreadable(2), Checkpoints()], limit_val_batches=0, logger=False,
        resume=tmp_path / "cut" / "last.ckpt")  # fmt: skip
    assert watch.ids == first.ids[4:]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_images_end_the_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(
        DataError, match=r"\d+\.png: damaged image; more than 2 training images cannot be read"
    ) as error:
        train(tmp_path, Holey((1, 3, 5, 7, 9, 11), workers=workers), 2)
    assert "\n" not in str(error.value)
    assert "callbacks.unreadable.limit" in str(error.value)
    with pytest.raises(DataError, match="damaged image; more than 0"):
        train(tmp_path / "none", Holey((3,), workers=workers), 0)
    with pytest.raises(ConfigError, match="negative"):
        Unreadable(-1)


def test_an_evaluation_is_of_all_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2\.png: damaged image$"):
        for _ in Loader(
            Watched(Holey((2,), "val").dataset("val"), 0), batch_size=None, collate_fn=lambda sample: sample
        ):
            pass


def test_a_replacement_depends_on_the_sample_alone() -> None:
    assert replacement((5, 17), 0, 100) == replacement((5, 17), 0, 100)
    drawn = {replacement((5, seed, 24), attempt, 100) for seed in range(5) for attempt in range(5)}
    assert len(drawn) == 25
    assert all(0 <= index < 100 and patch == 24 for index, _, patch in drawn)


def test_data_without_a_readable_image_gives_up(tmp_path: Path) -> None:
    data = Watched(Holey(tuple(range(24))).dataset("train"), 0, limit=1000)
    assert isinstance(data[(1, 2)], DataError)


# ---------------------------------------------------------------- data workers


class Deadly(SampleSet):
    """Reading image 5 kills the process that does it."""

    def __len__(self) -> int:
        return 12

    def sample(self, index: int, seed: int = 0) -> Any:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index

    def where(self, index: int) -> str:
        return f"folder/{index}.jpg"


def test_a_dead_worker_names_the_sample() -> None:
    data, died = Watched(Deadly(), 1), None
    try:
        # One worker: at the end of a second one torch would raise the same again, wherever Python then is. No tensors:
        # they would have to be fetched from a process that may be gone already.
        for _ in Loader(data, batch_size=2, num_workers=1, worker_init_fn=start_worker, collate_fn=list):
            pass
    except RuntimeError as error:
        died = error.with_traceback(None)  # which would hold the loader, and torch would tell of it at each child's end
    assert died is not None
    error = dead_worker(died, [Watched(Deadly(), 1), data])
    assert isinstance(error, DataError)
    assert str(error).startswith("folder/5.jpg: data worker ")
    assert "while it was at this sample - continue with --resume" in str(error)
    assert "\n" not in str(error)
    reset = ConnectionResetError("a tensor of the dead worker's")
    reset.__context__ = died
    assert str(dead_worker(reset, [data])) == str(error)
    assert dead_worker(RuntimeError("anything else"), [data]) is None
    assert dead_worker(ValueError("DataLoader worker (pid 1) died"), [data]) is None


class Patient(torch.utils.data.Dataset[Any]):
    """Each worker sends itself what a process group gets when a run is told to stop."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return index


def test_workers_outlive_the_signals_that_stop_a_run() -> None:
    loader = Loader(Patient(), batch_size=2, num_workers=1, worker_init_fn=start_worker)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]


@pytest.mark.slow
def test_a_process_that_ends_takes_its_workers_along() -> None:
    """An error in an evaluation ends a run while the training set's workers wait for work, deaf to SIGTERM."""
    program = """
import sys
from vistrain.data.base.module import Loader
from vistrain.data.base.workers import start_worker
loader = Loader(list(range(64)), batch_size=1, num_workers=2, persistent_workers=True, worker_init_fn=start_worker)
batches = iter(loader)
next(batches)
print("workers", *(worker.pid for worker in loader._iterator._workers), flush=True)
sys.exit(2)
"""
    with Job([sys.executable, "-c", program]) as job:
        assert job.wait() == 2, job.output
        assert "workers" in job.output
        assert job.leaves_nothing()


# ---------------------------------------------------------------- torn files

TORN = """
import io, os, signal, sys, torch
from vistrain.checkpoints import save_durably
class Cut(io.FileIO):
    written = 0
    def write(self, data):
        n = super().write(data)
        Cut.written += n
        if Cut.written > 200_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return n
import pathlib
pathlib.Path.open = lambda self, mode: Cut(str(self), mode)
save_durably({"x": torch.zeros(1_000_000), "many": [torch.ones(1000) for _ in range(500)]}, sys.argv[1])
"""


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_durably({"step": 7}, path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", TORN, str(path)], env=environment(), capture_output=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_bytes() == before
    assert load_file(path) == {"step": 7}
    remains = tmp_path / ".last.ckpt.tmp"
    assert remains.stat().st_size > 100_000
    (tmp_path / ".metrics.csv.123.partial").touch()
    fit(tmp_path, make_task(), TinyData(), [Checkpoints()], max_steps=1, limit_val_batches=0, logger=False)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------- launchers


def test_the_launcher_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    assert processes.launched() == {}
    assert not processes.restarted()
    srun = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_NNODES": "2"}
    for name, value in {**srun, "SLURM_JOB_NAME": "train", "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert processes.launched() == {"devices": 8, "num_nodes": 2}
    assert processes.restarted()
    assert not processes.is_first()
    elastic = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "12", "RANK": "0"}
    for name, value in elastic.items():
        monkeypatch.setenv(name, value)
    assert processes.launched() == {"devices": 4, "num_nodes": 3}
    assert processes.is_first()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert processes.launched() == {}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """A cluster of programs that write down how they were called; srun does what `$FAKE` says."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    scripts = {
        "srun": 'eval "$FAKE"',
        "scontrol": '[ "$1" = show ] && echo node1',
        "scancel": 'kill -TERM "$(cat "$CALLS.step")"',
    }
    for name, body in scripts.items():
        path = bin_folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{body}\n')
        path.chmod(0o755)
    return {
        "PATH": f"{bin_folder}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (2, False), (1, False)])
def test_train_sbatch_requeues_what_was_told_to_stop(cluster: dict[str, str], code: int, requeued: bool) -> None:
    env = {**cluster, "FAKE": f"exit {code}"}
    done = subprocess.run(["bash", str(SLURM / "train.sbatch"), "--config", "x y.yaml"], env=env, capture_output=True)
    calls = Path(cluster["CALLS"]).read_text()
    assert done.returncode == code
    assert "srun --kill-on-bad-exit=1 python -m vistrain fit --resume auto --config x y.yaml" in calls
    assert ("scontrol requeue 77" in calls) == requeued


def test_torchrun_sbatch_remembers_that_it_was_told_to_stop(cluster: dict[str, str]) -> None:
    waits = 'trap "exit 1" TERM; echo $$ > "$CALLS.step"; while :; do sleep 0.05; done'
    script = ["bash", str(SLURM / "torchrun.sbatch"), "--config", "x.yaml"]
    with subprocess.Popen(script, env={**cluster, "FAKE": waits}, stdout=subprocess.DEVNULL) as job:
        step = Path(cluster["CALLS"] + ".step")
        while not (step.exists() and step.read_text().strip()):
            assert job.poll() is None
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 75
    calls = Path(cluster["CALLS"]).read_text()
    assert "torchrun --nnodes=2 --nproc-per-node=8 --max-restarts=20" in calls
    assert "--rdzv-endpoint=node1:20077" in calls
    assert "scancel --signal=TERM 77.0" in calls
    assert "scontrol requeue 77" in calls
    Path(cluster["CALLS"]).unlink()
    assert subprocess.run(script, env={**cluster, "FAKE": "exit 1"}).returncode == 1
    assert "requeue" not in Path(cluster["CALLS"]).read_text()
    assert subprocess.run(script, env={**cluster, "FAKE": "exit 0"}).returncode == 0


# ---------------------------------------------------------------- real commands

PAUSED = 7  # the step at which a run waits to be interrupted, see `pausing`
CONFIG = {
    "base": "vistrain:demo/restoration",
    "data": {"train_images": 8, "val_images": 2, "workers": 0, "batch_size": 4, "patch": 8, "repeat": 6},
    "model": {"network": {"num_feat": 4, "num_block": 1}},
    "schedule": {"warmup_steps": 2},
    "callbacks": {
        "checkpoints": {"type": "callbacks.Checkpoints", "every_n_steps": 2},
        "pause": {"type": "pausing.Pause", "step": PAUSED},
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 3, "check_val_every_n_epoch": 1, "log_every_n_steps": 1},
}
LIMIT = 60.0  # seconds; grows with the load of the machine


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**CONFIG, "data": {**CONFIG["data"], "root": str(folder / "data")}}))  # type: ignore[dict-item]
    return path


def arguments(config: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("fit", "--config", str(config), "--resume", "auto", "--allow", "pausing", f"run.folder={folder}"),
        *more,
    ]


def go(folder: Path) -> Path:
    """The file that a run waits for at `PAUSED`, where `pauses` asked it to."""
    return folder.with_suffix(".go")


def pauses(folder: Path) -> dict[str, str]:
    """What makes a run pause. Once it is told to go on, a continued one does not."""
    return {VARIABLE: str(go(folder))}


def elastic(config: Path, folder: Path, restarts: int = 0, **env: str) -> Job:
    # A store that outlives a restart holds the addresses of processes that are gone.
    env = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **env}
    return torchrun(["vistrain", *arguments(config, folder)], restarts=restarts, env=env)


def steps(folder: Path) -> int:
    """Optimizer steps that the run's log tells of."""
    path = folder / "metrics.csv"
    rows = path.read_text().splitlines()[1:] if path.exists() else []
    return max((int(row.split(",")[0]) for row in rows if row[:1].isdigit()), default=0)


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "last.ckpt") for folder in (one, other))
    assert a["global_step"] == b["global_step"] == 36
    pairs = [(a[part][k], b[part][k]) for part in ("state_dict", "current_model_state") for k in a[part]]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """An undisturbed run of two processes."""
    folder = config.parent / "whole"
    with elastic(config, folder) as job:
        assert job.wait(LIMIT) == 0, job.output
    return folder


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_the_run_ends_with_the_same_bits(whole: Path, config: Path) -> None:
    folder = config.parent / "killed"
    with elastic(config, folder, 2, **pauses(folder)) as job:
        job.wait_for(lambda: steps(folder) >= 5, LIMIT)
        os.kill(job.wait_for(lambda: job.rank_pid(1)), signal.SIGKILL)
        go(folder).touch()
        assert job.wait(LIMIT) == 0, job.output
    assert same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank", "agent"])
def test_a_termination_saves_on_all_ranks(whole: Path, config: Path, victim: str) -> None:
    folder = config.parent / f"terminated_{victim}"
    with elastic(config, folder, **pauses(folder)) as job:
        job.wait_for(lambda: steps(folder) >= 5, LIMIT)
        os.kill(job.process.pid if victim == "agent" else job.wait_for(lambda: job.rank_pid(1)), signal.SIGTERM)
        go(folder).touch()
        assert job.wait(LIMIT) != 0
        assert "told to stop at step" in job.output, job.output
        assert f"vistrain fit --resume {folder}" in job.output
        if victim == "rank":
            assert "exitcode  : 75" in job.output
    with elastic(config, folder) as job:
        assert job.wait(LIMIT) == 0, job.output
    assert same(folder, whole)


@pytest.mark.slow
def test_lightnings_launcher_and_ctrl_c(whole: Path, config: Path) -> None:
    folder = config.parent / "interrupted"
    with vistrain(*arguments(config, folder, "trainer.devices=2"), env=pauses(folder)) as job:
        job.wait_for(lambda: steps(folder) >= 3, LIMIT)
        os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does
        go(folder).touch()
        assert job.wait(LIMIT) == 130, job.output
        assert "interrupted at step" in job.output
        assert "Traceback" not in job.output
        assert job.leaves_nothing()
    with vistrain(*arguments(config, folder, "trainer.devices=2")) as job:
        assert job.wait(LIMIT) == 0, job.output
    assert same(folder, whole)
    with vistrain(*arguments(config, folder, "trainer.devices=2")) as job:  # nothing is left to do
        assert job.wait(LIMIT) == 0, job.output


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once() -> None:
    """Whatever the process is doing: here it waits for nothing but signals."""
    program = """
import signal
from vistrain import processes
from vistrain.callbacks import Preemption
processes.install({signal.SIGINT: Preemption()._note})
print("ready", flush=True)
while True:
    signal.pause()
"""
    with Job([sys.executable, "-c", program]) as job:
        job.wait_for(lambda: "ready" in job.output)
        job.process.send_signal(signal.SIGINT)
        job.wait_for(lambda: "Ctrl-C again ends at once" in job.output)
        assert job.process.poll() is None
        job.process.send_signal(signal.SIGINT)
        assert job.wait() == -signal.SIGINT


@pytest.mark.slow
def test_a_signal_before_training_ends_at_once(config: Path) -> None:
    folder = config.parent / "early"
    with vistrain(*arguments(config, folder)) as job:
        # The handler is there once the config is composed; before that Python itself is starting.
        job.wait_for(lambda: "torch" in Path(f"/proc/{job.process.pid}/maps").read_text(), LIMIT)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait(LIMIT) == 75, job.output
    assert not (folder / "last.ckpt").exists()


@pytest.mark.slow
def test_srun_starts_the_processes_and_is_told_75(whole: Path, config: Path) -> None:
    """Two tasks as srun would start them, USR1 to one of them, and the same job again."""
    folder = config.parent / "slurm"
    from distributed_tools import free_port

    def tasks() -> list[Job]:
        port = free_port()
        common = {
            "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "x",
            "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port),
            "MASTER_ADDR": "127.0.0.1",
        }  # fmt: skip
        return [
            vistrain(
                *arguments(config, folder),
                env={**common, **pauses(folder), "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            )
            for i in range(2)
        ]

    first, second = tasks()
    with first, second:
        first.wait_for(lambda: steps(folder) >= 3, LIMIT)
        second.process.send_signal(signal.SIGUSR1)
        go(folder).touch()
        assert [job.wait(LIMIT) for job in (first, second)] == [75, 75], first.output + second.output
        assert not list(folder.glob("hpc_ckpt*"))
    first, second = tasks()
    with first, second:
        assert [job.wait(LIMIT) for job in (first, second)] == [0, 0], first.output + second.output
    assert same(folder, whole)
    shutil.rmtree(folder)
