"""Training-step throughput of a timm model through `vistrain fit`, against the loop of timm's train.py.

    python tools/benchmark_timm_training.py --output runs/benchmark_timm_training
    python tools/benchmark_timm_training.py --model resnet50 --size 176 --batch 8 --block 3 --blocks 4
    python tools/benchmark_timm_training.py --model resnet50 --size 224 --batch 128 --workers 8 --block 100   # on a GPU

timm's package does not hold train.py itself; its side is that loop of timm's own parts: `create_dataset`,
`create_loader` with its transforms, Mixup, `create_optimizer_v2`, the scheduler's update for each step, ModelEmaV3,
a mean of the loss every 50 steps, and a checkpoint at the end. Both sides read the same folder of JPEGs with the same
model, recipe, precision and threads. (The policy is one that timm and newer Pillows both carry out.)

Both live in one process and take turns within one run each: a block of steps of ours, a block of timm's. The first
block of each warms up and does not count; a ratio is that of two neighbouring blocks, printed is the median. What comes
before the first step and after the last one (building, the checkpoint) is reported apart. Processor time is what counts
on a machine that others use, too; it is of this process, so with `--workers` look at wall time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from benchmarking import write
from lightning.pytorch import Callback
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3

from vistrain.config import compose
from vistrain.data import GeneratedPatterns
from vistrain.run import build_parts, build_trainer

POLICY, MIXUP, CUTMIX, SMOOTHING, LR, DECAY, EMA = "rand-m6-inc1", 0.8, 1.0, 0.1, 1e-3, 0.05, 0.9998
CLASSES = 10
KINDS = {"wall time": time.perf_counter, "processor time": time.process_time}
Times = dict[str, float]


def timm_steps(arguments: argparse.Namespace, folder: Path, steps: int, device: torch.device) -> Iterator[int]:
    """Training as timm's train.py has it; gives 0 before the first step, and then each step's number."""
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, num_classes=CLASSES).to(device)
    dataset = create_dataset("", root=str(folder), split="train", is_training=True)
    loader = create_loader(
        dataset, (3, arguments.size, arguments.size), arguments.batch, is_training=True, auto_augment=POLICY,
        re_prob=0.25, re_mode="pixel", interpolation="bicubic", num_workers=arguments.workers, device=device,
        use_prefetcher=device.type == "cuda", persistent_workers=arguments.workers > 0,
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY)
    scheduler = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False)
    mix = Mixup(MIXUP, CUTMIX, label_smoothing=SMOOTHING, num_classes=CLASSES)
    ema, loss_of, meter = ModelEmaV3(model, decay=EMA), SoftTargetCrossEntropy(), AverageMeter()
    model.train()
    yield 0
    for step, (images, targets) in enumerate(loader):
        images, targets = images.to(device), targets.to(device)
        images, targets = mix(images, targets)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=step)
        scheduler.step_update(step + 1)
        if step % 50 == 0:
            meter.update(loss.item(), len(images))
        yield step + 1
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=tempfile.mkdtemp(dir=folder.parent))
    saver.save_checkpoint(0)


def config_of(arguments: argparse.Namespace, scratch: Path, images: int) -> dict[str, Any]:
    """The same recipe for vistrain."""
    data = {"root": str(scratch), "train_images": images, "val_images": 1, "batch_size": arguments.batch}
    data |= {"workers": arguments.workers, "image_size": arguments.size}
    augment = {"scale": [0.08, 1.0], "vertical_flip": 0.0, "color": 0.0, "policy": POLICY, "interpolation": "bicubic"}
    data |= {"augment": augment}
    model = {"backbone": {"name": arguments.model, "args": None}, "loss": {"smoothing": SMOOTHING}}
    model["augment"] = {"mixup": MIXUP, "cutmix": CUTMIX, "erasing": 0.25}
    changes = {"data": data, "model": model, "optimizer": {"lr": LR, "weight_decay": DECAY}}
    changes["task"] = {"channels_last": False}
    changes["callbacks"] = {"ema": {"decay": EMA}}
    changes["trainer"] = {"max_epochs": 1, "limit_val_batches": 0}
    return compose(["vistrain:demo/classification"], changes=changes)


class Turns(Callback):
    """Lets timm's loop take its turn after each block of ours, and keeps the seconds of each block.

    Args:
        theirs: timm's steps.
        block: steps in a turn.
        device: waited for before a clock is read.

    Attributes:
        seconds: side -> kind of time -> seconds of each block.
        begun: when the first step of ours began.
        finished: when the last turn ended.
    """

    def __init__(self, theirs: Iterator[int], block: int, device: torch.device) -> None:
        self.theirs, self.block, self.device = theirs, block, device
        self.seconds: dict[str, dict[str, list[float]]] = {side: {k: [] for k in KINDS} for side in ("ours", "timm")}
        self.begun, self.finished, self._mark = 0.0, 0.0, self.now()

    def now(self) -> Times:
        """All clocks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {kind: clock() for kind, clock in KINDS.items()}

    def on_train_start(self, *_: Any) -> None:
        """Ours begins, with the reading of its first batch."""
        self._mark = self.now()
        self.begun = self._mark["wall time"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Change sides where a block ends."""
        if (batch_idx + 1) % self.block:
            return
        self._keep("ours")
        for _ in range(self.block):
            next(self.theirs)
        self._keep("timm")
        self.finished = self._mark["wall time"]

    def _keep(self, side: str) -> None:
        now = self.now()
        for kind in KINDS:
            self.seconds[side][kind].append(now[kind] - self._mark[kind])
        self._mark = now


def compare(arguments: argparse.Namespace, scratch: Path, device: torch.device) -> dict[str, Any]:
    """Both sides from building to the checkpoint: seconds of blocks, and what comes before and after them."""
    steps = arguments.block * (arguments.blocks + 1)
    images = -(-steps * arguments.batch // CLASSES)
    config = config_of(arguments, scratch, images)
    config["trainer"]["max_steps"] = steps
    data = GeneratedPatterns(str(scratch), images, 1)
    data.prepare_data()
    start = time.perf_counter()
    theirs = timm_steps(arguments, data.root, steps, device)
    next(theirs)
    before = {"timm": time.perf_counter() - start}
    turns = Turns(theirs, arguments.block, device)
    start = time.perf_counter()
    torch.manual_seed(0)
    parts = build_parts(config)
    parts.data.setup("fit")
    trainer = build_trainer(config, parts, Path(tempfile.mkdtemp(dir=scratch)))
    trainer.callbacks.append(turns)  # type: ignore[attr-defined]  # last: what all others do counts as ours
    trainer.fit(parts.task, datamodule=parts.data)
    before["ours"], after = turns.begun - start, {"ours": time.perf_counter() - turns.finished}
    start = time.perf_counter()
    for _ in theirs:
        pass
    after["timm"] = time.perf_counter() - start
    return {"steps": steps, "block_seconds": turns.seconds, "seconds_before": before, "seconds_after": after}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96, help="of images, pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--block", type=int, default=8, help="steps in a turn")
    parser.add_argument("--blocks", type=int, default=6, help="turns of each side after the one that warms up")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(arguments, Path(scratch), device)
    seconds = found["block_seconds"]
    for times in seconds.values():
        for blocks in times.values():
            blocks.pop(0)  # warming up
    ratios = {
        kind: statistics.median(a / b for a, b in zip(seconds["timm"][kind], seconds["ours"][kind], strict=True))
        for kind in KINDS
    }
    print(f"{arguments.blocks} x {arguments.block} steps of {arguments.batch} images, {arguments.model}, {device}")
    for kind, ratio in ratios.items():
        each = {side: statistics.median(seconds[side][kind]) / arguments.block * 1000 for side in seconds}
        print(f"{kind}: vistrain / timm = {ratio:.3f}x; a step {each['ours']:.1f} / {each['timm']:.1f} ms")
    for when in ("before", "after"):
        sides = found[f"seconds_{when}"]
        print(f"{when} the steps: {sides['ours']:.2f} s / {sides['timm']:.2f} s")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    content = {"settings": settings, "ratios": ratios, **found}
    write(arguments.output, "timm_training", content, ratios, "Training throughput, vistrain / timm's loop")


if __name__ == "__main__":
    main()
