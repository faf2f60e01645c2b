"""Training-step throughput of a timm model through `vistrain fit`, against the loop of timm's train.py.

    python tools/benchmark_timm_training.py --output runs/benchmark_timm_training
    python tools/benchmark_timm_training.py --model resnet50 --size 224 --batch 128 --workers 8      # on a GPU

timm's package does not hold train.py itself; its side is that loop of timm's own parts: `create_dataset`,
`create_loader` with its transforms, Mixup, `create_optimizer_v2`, the scheduler's update for each step, ModelEmaV3,
a mean of the loss every 50 steps, and a checkpoint at the end of the epoch. Both sides read the same folder of JPEGs
with the same model, recipe and precision, for one epoch, in turns, in one process. (The policy is one that timm and
newer Pillows both carry out.)
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from benchmarking import alternate, write
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3

from vistrain.config import compose
from vistrain.data import GeneratedPatterns
from vistrain.run import build_parts, build_trainer

POLICY, MIXUP, CUTMIX, SMOOTHING, LR, DECAY, EMA = "rand-m6-inc1", 0.8, 1.0, 0.1, 1e-3, 0.05, 0.9998


def timm_epoch(arguments: argparse.Namespace, folder: Path, steps: int, device: torch.device) -> None:
    """One epoch as timm's train.py has it."""
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, num_classes=10).to(device)
    dataset = create_dataset("", root=str(folder), split="train", is_training=True)
    loader = create_loader(
        dataset, (3, arguments.size, arguments.size), arguments.batch, is_training=True, auto_augment=POLICY,
        re_prob=0.25, re_mode="pixel", interpolation="bicubic", num_workers=arguments.workers, device=device,
        use_prefetcher=device.type == "cuda", persistent_workers=arguments.workers > 0,
    )  # fmt: skip
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, weight_decay=DECAY)
    scheduler = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False)
    mix = Mixup(MIXUP, CUTMIX, label_smoothing=SMOOTHING, num_classes=10)
    ema, loss_of, meter = ModelEmaV3(model, decay=EMA), SoftTargetCrossEntropy(), AverageMeter()
    model.train()
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
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=tempfile.mkdtemp(dir=folder.parent))
    saver.save_checkpoint(0)


def config_of(arguments: argparse.Namespace, scratch: Path, images: int) -> dict[str, Any]:
    """The same recipe for vistrain."""
    data = {"root": str(scratch), "train_images": images, "val_images": 1, "batch_size": arguments.batch}
    data |= {"workers": arguments.workers, "image_size": arguments.size}
    data |= {"augment": {"policy": POLICY, "interpolation": "bicubic"}}
    model = {"backbone": {"name": arguments.model, "args": None}, "loss": {"smoothing": SMOOTHING}}
    model["augment"] = {"mixup": MIXUP, "cutmix": CUTMIX, "erasing": 0.25}
    changes = {"data": data, "model": model, "optimizer": {"lr": LR, "weight_decay": DECAY}}
    changes["callbacks"] = {"ema": {"decay": EMA}}
    changes["trainer"] = {"max_epochs": 1, "limit_val_batches": 0}
    return compose(["vistrain:demo/classification"], changes=changes)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scratch = Path(tempfile.mkdtemp())
    images = -(-arguments.steps * arguments.batch // 10)
    config = config_of(arguments, scratch, images)
    data = GeneratedPatterns(str(scratch), images, 1)
    data.prepare_data()
    steps = images * 10 // arguments.batch
    wall: dict[str, list[float]] = {"timm": [], "vistrain": []}
    used: dict[str, list[float]] = {"timm": [], "vistrain": []}

    def ours() -> None:
        torch.manual_seed(0)
        parts = build_parts(config)
        parts.data.setup("fit")
        trainer = build_trainer(config, parts, Path(tempfile.mkdtemp(dir=scratch)))
        trainer.fit(parts.task, datamodule=parts.data)

    def timed(name: str, run: Any) -> Any:
        def measured() -> None:
            processor, start = time.process_time(), time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            wall[name].append(time.perf_counter() - start)
            used[name].append(time.process_time() - processor)

        return measured

    theirs = timed("timm", lambda: timm_epoch(arguments, data.root, steps, device))
    alternate({"timm": theirs, "vistrain": timed("vistrain", ours)}, arguments.repeats)
    kinds = (("wall time", wall), ("processor time", used))
    ratios = {
        kind: statistics.median(a / b for a, b in zip(times["timm"][1:], times["vistrain"][1:], strict=True))
        for kind, times in kinds
    }
    print(f"{steps} steps of {arguments.batch} images, {arguments.model} at {arguments.size} pixels, {device}")
    for kind, ratio in ratios.items():
        print(f"throughput by {kind}: vistrain / timm = {ratio:.3f}")
    settings = {key: str(value) for key, value in vars(arguments).items()}
    content = {"settings": settings, "steps": steps, "ratios": ratios, "wall_seconds": wall, "processor_seconds": used}
    write(arguments.output, "timm_training", content, ratios, "Training throughput, vistrain / timm's loop")


if __name__ == "__main__":
    main()
