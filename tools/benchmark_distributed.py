"""What many processes and safe runs cost: throughput of two processes, recovery, checkpoints, and resuming.

    python tools/benchmark_distributed.py --output runs/benchmark_distributed
    python tools/benchmark_distributed.py --only save resume

- throughput: the demo's detector, same global batch: one process on two threads against two processes under torchrun
  on one thread each. Images per second of the steps after the first ten, loading included (no worker processes).
- recovery: rank 1 of two under torchrun gets SIGKILL; time until rank 0 ends its next optimizer step, and until it ends
  a step that it had not done before. Processes start anew, so most of it is importing and setting up.
- save: the checkpoint of that detector (weights, EMA, AdamW's two moments, all of Lightning's state), as a run writes
  it (temporary name, flush to the disk, rename, flush of the folder), against a plain `torch.save` of its tensors
  alone, with and without a flush. The sides take turns; processor time is given beside the time that passes, as on a
  machine that does other things at once it is the steadier of the two, and disks are shared.
- resume: loaders of a COCO set of 120,000 (generated) images, from their making to their first batch: at the middle of
  an epoch minus at its start. The sides take turns; no worker processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from benchmarking import alternate, write
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from vistrain.config import compose
from vistrain.data import CocoDetection, CocoSplit, DetrAugment
from vistrain.data.base.shards import ShardWriter
from vistrain.run import build_parts, build_trainer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from distributed_tools import Job, torchrun, vistrain  # noqa: E402  # the tests' way to start and end processes

WARM_UP = 10  # steps
SMALL = [
    "data.scale=0.75", "data.batch_size=8", "data.val_images=8", "data.workers=0", "data.keep_empty=true",
    "data.eval_long_side=116", "data.augment.scales=[88,96,104]", "data.augment.long_side=116",
    "trainer.max_epochs=1", "trainer.limit_val_batches=0", "trainer.accelerator=cpu",
]  # fmt: skip


class Stamp(Callback):
    """Appends `rank step seconds` to a file after every optimizer step.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the line."""
        with open(self.path, "a") as file:
            file.write(f"{trainer.global_rank} {trainer.global_step} {time.time()}\n")


def stamps(path: Path, rank: int = 0) -> list[tuple[int, float]]:
    """(step, time) of a rank so far."""
    rows = [line.split() for line in path.read_text().splitlines()] if path.is_file() else []
    return [(int(row[1]), float(row[2])) for row in rows if len(row) == 3 and int(row[0]) == rank]


def start(folder: Path, name: str, processes: int, threads: int, changes: list[str], restarts: int = 0) -> Job:
    """The demo, made small, in a run folder of its own; its stamps go to `folder/name.txt`."""
    arguments = [
        "vistrain", "fit", "-c", str(ROOT / "configs/demo/detection_long.yaml"), "--allow", "benchmark_distributed",
        *SMALL,
        f"data.root={folder}", f"run.folder={folder / name}", "callbacks.stamp.type=benchmark_distributed.Stamp",
        f"callbacks.stamp.path={folder / name}.txt", *changes,
    ]  # fmt: skip
    env = {"OMP_NUM_THREADS": str(threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tools"), str(ROOT / "tests")])
    if processes == 1:
        return vistrain(*arguments[1:], env=env)
    distributed = [f"trainer.devices={processes}", "trainer.strategy=ddp"]
    return torchrun([*arguments, *distributed], processes=processes, restarts=restarts, env=env)


def throughput(folder: Path, steps: int, repeats: int, limit: float) -> dict[str, Any]:
    """Images per second of both sides, in turns."""
    sides = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for number, (side, (processes, threads)) in enumerate(sides.items()):
            name = f"speed-{number}-{repeat}"
            with start(folder, name, processes, threads, [f"data.train_images={8 * steps}"]) as job:
                if job.wait(limit):
                    raise RuntimeError(job.output[-4000:])
            done = stamps(folder / f"{name}.txt")
            rates[side].append(8 * (len(done) - WARM_UP) / (done[-1][1] - done[WARM_UP - 1][1]))
    one, two = rates.values()
    ratio = median(b / a for a, b in zip(one, two, strict=True))
    return {"images per second": {k: [round(v, 2) for v in r] for k, r in rates.items()}, "ratio": round(ratio, 3)}


def recovery(folder: Path, repeats: int, limit: float) -> dict[str, Any]:
    """Seconds from SIGKILL of rank 1 to rank 0's next step, and to its first step beyond those that it had done."""
    found: dict[str, list[float]] = {"start to first step": [], "kill to next step": [], "kill to new step": []}
    for repeat in range(repeats):
        path = folder / f"kill-{repeat}.txt"
        changes = ["data.train_images=2400", "callbacks.checkpoints.type=callbacks.Checkpoints"]
        begun = time.time()
        job = start(folder, path.stem, 2, 1, [*changes, "callbacks.checkpoints.every_n_steps=5"], restarts=1)
        with job:
            job.wait_for(lambda path=path: len(stamps(path)) >= 12, limit)
            victim = job.rank_pid(1)
            if victim is None:
                raise RuntimeError("rank 1 is not there")
            killed = time.time()
            os.kill(victim, signal.SIGKILL)
            # What rank 0 still did, before its peer's death stopped it, is no recovery: steps go back by then.
            job.wait_for(lambda path=path: _again(stamps(path)) and stamps(path)[-1][0] > 13, limit)
        done = stamps(path)
        back = _again(done)
        highest = max(step for step, _ in done[:back])
        found["start to first step"].append(done[0][1] - begun)
        found["kill to next step"].append(done[back][1] - killed)
        found["kill to new step"].append(next(t for step, t in done[back:] if step > highest) - killed)
    return {f"{name}, s": [round(v, 2) for v in values] for name, values in found.items()}


def _again(done: list[tuple[int, float]]) -> int:
    """Where in the list steps go back, as after a restart; 0 if they do not."""
    return next((i for i in range(1, len(done)) if done[i][0] <= done[i - 1][0]), 0)


def both_clocks(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds that passed, and of processor time, of each side and round; the sides take turns."""
    processor: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> None:
        before = time.process_time()
        sides[name]()
        processor[name].append(time.process_time() - before)

    passed = alternate({name: functools.partial(timed, name) for name in sides}, repeats)
    return {"time": passed, "processor time": {name: values[1:] for name, values in processor.items()}}


def save(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds and bytes of a run's checkpoint, of plain `torch.save` of the same tensors, and of that with a flush."""
    changes = [*SMALL, "data.train_images=16", f"data.root={folder}"]
    config = compose([str(ROOT / "configs/demo/detection_long.yaml")], changes)
    parts = build_parts(config, stage="fit")
    trainer = build_trainer(config, parts, folder / "save")
    trainer.fit(parts.task, datamodule=parts.data)
    content = trainer._checkpoint_connector.dump_checkpoint(False)
    tensors = {key: content[key] for key in ("state_dict", "optimizer_states", "current_model_state") if key in content}
    paths = {name: folder / "save" / f"{name}.pth" for name in ("checkpoint", "plain", "plain, flushed")}

    def plain(path: Path, flush: bool) -> None:
        torch.save(tensors, path)
        if flush:
            with path.open("rb+") as file:
                os.fsync(file.fileno())

    sides: dict[str, Callable[[], object]] = {
        "checkpoint": lambda: trainer.save_checkpoint(paths["checkpoint"], weights_only=False),
        "plain": lambda: plain(paths["plain"], False),
        "plain, flushed": lambda: plain(paths["plain, flushed"], True),
        "collecting the state": lambda: trainer._checkpoint_connector.dump_checkpoint(False),
    }
    kinds = both_clocks(sides, repeats)
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    ratios = {
        f"{kind}, {name}": round(median(a / b for a, b in zip(times["checkpoint"], times[name], strict=True)), 3)
        for kind, times in kinds.items()
        for name in ("plain", "plain, flushed")
    }
    return {
        **{kind: {name: round(median(values), 4) for name, values in times.items()} for kind, times in kinds.items()},
        "bytes": sizes,
        "ratios": {**ratios, "size": round(sizes["checkpoint"] / sizes["plain"], 4)},
    }


def write_large_set(folder: Path, count: int) -> None:
    """A COCO set of so many tiny images, in shards, with one box each."""
    tiny = cv2.imencode(".jpg", np.full((32, 48, 3), 90, np.uint8))[1].tobytes()
    with ShardWriter(folder / "images") as writer:
        for number in range(count):
            writer.add(f"{number:012d}.jpg", tiny)
    size = {"width": 48, "height": 32}
    images = [{"id": n, "file_name": f"{n:012d}.jpg", **size} for n in range(count)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 5, 20, 15], "area": 300} for n in range(count)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "train.json").write_text(json.dumps(content))


def resume(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    """Seconds from making a loader to its first batch, at the start and in the middle of an epoch, on both clocks."""
    write_large_set(folder, count)
    split = CocoSplit("images", "train.json")
    augment = DetrAugment(scales=(32,), long_side=64, crop=0.0)
    data = CocoDetection(split, split, root=str(folder), batch_size=16, workers=0, augment=augment)
    data.setup("fit")

    def first(consumed: int) -> None:
        data.resume = (0, consumed)
        next(iter(data.train_dataloader()))

    sides = {"start": lambda: first(0), "middle": lambda: first(count // 32 * 16)}
    found: dict[str, Any] = {"images": count}
    for kind, times in both_clocks(sides, repeats).items():
        extra = median(m - s for s, m in zip(times["start"], times["middle"], strict=True))
        found[kind] = {name: round(median(values), 4) for name, values in times.items()} | {"skipping": round(extra, 4)}
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("throughput", "recovery", "save", "resume")
    default = Path("runs/benchmark_distributed")
    parser.add_argument("--output", type=Path, default=default, help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="these parts alone")
    parser.add_argument("--steps", type=int, default=50, help="of throughput (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each part (default: %(default)s)")
    parser.add_argument("--images", type=int, default=120_000, help="of the large set (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a started run (default: %(default)s)")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "throughput": lambda: throughput(folder, arguments.steps, arguments.repeats, arguments.limit),
            "recovery": lambda: recovery(folder, arguments.repeats, arguments.limit),
            "save": lambda: save(folder, arguments.repeats),
            "resume": lambda: resume(folder, arguments.images, arguments.repeats),
        }
        for name in arguments.only:
            results[name] = measures[name]()
            print(f"{name}: {json.dumps(results[name], indent=1)}", flush=True)
    bars = {}
    if "throughput" in results:
        bars["two processes' throughput / one's (higher is better)"] = results["throughput"]["ratio"]
    if "save" in results:
        bars |= {f"checkpoint / torch.save: {k} (lower is better)": v for k, v in results["save"]["ratios"].items()}
    write(arguments.output, "benchmark_distributed", {"results": results}, bars, "many processes, safe runs: ratios")


if __name__ == "__main__":
    main()
