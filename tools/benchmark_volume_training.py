"""A training step of the plain 3-D U-Net through `vistrain fit` against MONAI's SupervisedTrainer; the wait for data.

    python tools/benchmark_volume_training.py [--steps 8] [--repeats 3]

Both sides train a U-Net of one layout (MONAI's DynUNet) with SGD, cross-entropy and Dice on the same patches of the
generated brain tumours, in processes of their own that take turns. A step is all between the ends of two steps, the
loader and the logging included: processor time of one thread, the median. Memory is how far the peak of the resident
set rises above what is held at the end of the first step. Where MONAI is not installed, that part is left out. Exits
with 1 where a step is slower than MONAI's or takes more memory, or where more than 5 % of an epoch with two workers is
spent waiting for data.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from vistrain.config import compose
from vistrain.run import build_parts, build_trainer

WIDTHS = [16, 32, 64, 128]
LEAST, MOST_WAITING = 1.0, 0.05
CHANGES = [
    "data.number=10", "data.patch=[48,48,48]", "data.workers=0", "data.foreground=0",
    "data.augment={type: data.VolumeAugment, rotate: 0, scale: 0, noise: 0, blur: 0, brightness: 0, contrast: 0,"
    " low_resolution: 0, gamma: 0, inverted_gamma: 0, mirror: []}",
    f"model.network={{type: segmentation.UNet3d, widths: {WIDTHS}, deep: false}}", "model.outputs=softmax",
    "optimizer={type: torch.optim.SGD, lr: 0.01, momentum: 0.99, nesterov: true}", "schedule={type: optim.Constant}",
    "trainer.gradient_clip_val=null", "trainer.max_epochs=1", "trainer.limit_val_batches=0",
    "trainer.precision=32-true", "trainer.accelerator=cpu",
]  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of each turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--side", choices=("vistrain", "monai"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side is not None:
        print(json.dumps(one_turn(given.side, given.steps, given.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        failed = against_monai(given.steps, given.repeats, Path(name))
        share = waiting(Path(name))
    print(f"waiting for data with two workers: {100 * share:.1f} % of an epoch of demo/phantom (wall-clock)")
    return int(failed or share > MOST_WAITING)


def against_monai(steps: int, repeats: int, folder: Path) -> bool:
    """Print both sides, and say whether one of the aims is missed."""
    if importlib.util.find_spec("monai") is None or importlib.util.find_spec("ignite") is None:
        print("MONAI is not there (pip install monai pytorch-ignite): nothing to compare with")
        return False
    seconds: dict[str, list[float]] = {"vistrain": [], "monai": []}
    memory: dict[str, list[float]] = {"vistrain": [], "monai": []}
    for _ in range(repeats):
        for side in seconds:
            command = [sys.executable, __file__, "--side", side, "--steps", str(steps), "--folder", str(folder)]
            said = subprocess.run(
                command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE
            )
            found = json.loads(said.stdout.decode().splitlines()[-1])
            seconds[side] += found["seconds"]
            memory[side].append(found["gb"])
    ours, theirs = (statistics.median(seconds[side]) for side in seconds)
    mine, other = (max(memory[side]) for side in memory)
    print(f"a training step: {ours:.2f} s, MONAI {theirs:.2f} s: {theirs / ours:.2f} times as fast")
    print(f"memory above what is held between steps: {mine:.2f} GB, MONAI {other:.2f} GB")
    return theirs / ours < LEAST or mine > other


def one_turn(side: str, steps: int, folder: Path) -> dict[str, Any]:
    """Seconds of processor time of each step but the first, and GB that these took."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    changes = [
        *CHANGES,
        f"data.root={folder}",
        f"data.cache={folder / 'cache'}",
        f"trainer.limit_train_batches={steps}",
    ]
    config = compose(["vistrain:demo/phantom"], changes)
    parts = build_parts(config)
    parts.data.prepare_data()
    parts.data.setup("fit")
    clock = Clock()
    if side == "vistrain":
        trainer = build_trainer(config, parts, Path(tempfile.mkdtemp(dir=folder)))
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]  # Lightning hides the list
        trainer.fit(parts.task, datamodule=parts.data)
    else:
        with_monai(parts.data.train_dataloader(), parts.data.channels, len(parts.data.labels.names), steps, clock)
    ends = clock.ends
    return {"seconds": [b - a for a, b in itertools.pairwise(ends)], "gb": (peak() - clock.held) / 1e9}


def with_monai(loader: Any, channels: int, classes: int, steps: int, clock: Clock) -> None:
    """Its own trainer, network and loss on batches of ours."""
    from ignite.engine import Events
    from monai.engines import SupervisedTrainer
    from monai.losses import DiceCELoss
    from monai.networks.nets import DynUNet

    kernels, strides = [3] * len(WIDTHS), [1, *[2] * (len(WIDTHS) - 1)]
    network = DynUNet(3, channels, classes, kernels, strides, strides[1:], filters=WIDTHS, trans_bias=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    trainer = SupervisedTrainer(
        torch.device("cpu"), 1, Batches(loader), network, optimizer, loss, epoch_length=steps, decollate=False
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, clock.tick)
    trainer.run()


class Batches:
    """A loader's batches as MONAI names them.

    Args:
        loader: of `VolumeData`.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            labels = torch.stack([target["label_map"] for target in batch["target"]])[:, None]
            yield {"image": batch["image"].float(), "label": labels.long()}


class Clock(Callback):
    """Processor time at the end of each step, and bytes that are held after the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.held = 0

    def tick(self, *_: Any) -> None:
        """A step has ended."""
        if not self.ends:
            self.held = reset_peak()
        self.ends.append(time.process_time())

    def on_train_batch_end(self, *_: Any) -> None:
        """See Lightning."""
        self.tick()


def waiting(folder: Path) -> float:
    """Share of an epoch of the demo that its loop waited for two workers."""
    changes = [f"data.root={folder}", "data.workers=2", "trainer.max_epochs=1", "trainer.limit_val_batches=0",
               "trainer.accelerator=cpu", "trainer.log_every_n_steps=8"]  # fmt: skip
    config = compose(["vistrain:demo/phantom"], changes)
    parts, run = build_parts(config), Path(tempfile.mkdtemp(dir=folder))
    trainer = build_trainer(config, parts, run)
    trainer.fit(parts.task, datamodule=parts.data)
    with (run / "metrics.csv").open(newline="") as file:
        shares = [float(row["perf/data_share"]) for row in csv.DictReader(file) if row["perf/data_share"]]
    return statistics.fmean(shares)


def reset_peak() -> int:
    """Bytes that are held now; the peak starts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Bytes at the peak."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    raise SystemExit(main())
