"""A training epoch as `vistrain fit` runs it, against a bare PyTorch loop over the same network and loader.

    python tools/benchmark_trainer.py --steps 40 --repeats 3
    python tools/benchmark_trainer.py --against ../older     # a worktree of an older commit takes turns, too

Both sides start from the same parts, built from one config (the demo's): the task, Lightning's Trainer and vistrain's
default callbacks, with log, progress, run folder and checkpoint, on one side; on the other a loop that a person would
write in ten lines, with the same optimizer, schedule, clipping and precision and one `torch.save` at the end.
Evaluation is off on both. Each side's time runs from ready parts to a saved epoch, so it includes making loaders and
optimizer. The processor time of the process is reported beside the wall time: on a machine that does other things at
once it is the steadier of the two, and without worker processes it misses nothing.
"""

from __future__ import annotations

import argparse
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarking import Elsewhere, alternate, medians, serve, write
from rich.console import Console

from vistrain.callbacks import Progress
from vistrain.config import compose
from vistrain.run import Parts, best_precision, build_parts, build_trainer

ROOT = Path(__file__).parent.parent


def bare_epoch(parts: Parts, config: dict[str, Any], folder: Path, device: torch.device) -> int:
    """Ten lines of PyTorch. Returns the number of steps."""
    model, task = parts.model.to(device).train(), parts.task
    arguments = task.optimizer.arguments
    optimizer = task.optimizer(task.groups(model, arguments["lr"], arguments.get("weight_decay", 0.0)))
    loader = parts.data.train_dataloader()
    total = len(loader)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: task.schedule.factor(step, total, total))
    mixed = best_precision("auto") == "bf16-mixed"
    for batch in loader:
        batch["image"] = batch["image"].to(device, non_blocking=True)
        batch["size"] = batch["size"].to(device)
        batch["target"] = [{k: v.to(device) for k, v in target.items()} for target in batch["target"]]
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = sum(model.losses(batch).values())  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()
        rate.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "epoch.pth")
    return total


def main() -> None:
    """Measure, print, and write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "configs/demo/detection_long.yaml"))
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of the epoch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of another commit, to compare with")
    parser.add_argument("--serve", type=int, metavar="STEPS", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="dotted.key=value changes to the config")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scratch = Path(tempfile.mkdtemp())
    changes = [
        "data.val_images=8", f"data.workers={arguments.workers}", f"data.root={scratch}", "data.keep_empty=true",
        "trainer.max_epochs=1", "trainer.limit_val_batches=0", *arguments.overrides,
    ]  # fmt: skip
    images = compose([arguments.config], changes)["data"]["batch_size"] * arguments.steps
    config = compose([arguments.config], [*changes, f"data.train_images={images}"])
    processor: dict[str, list[float]] = {"bare loop": [], "vistrain": []}
    measured: dict[str, list[float]] = {"bare loop": [], "vistrain": []}
    steps = 0

    def side(name: str) -> Callable[[], None]:
        def run() -> None:
            nonlocal steps
            torch.manual_seed(0)
            parts, folder = build_parts(config), Path(tempfile.mkdtemp(dir=scratch))
            parts.data.setup("fit")
            used, start = time.process_time(), time.perf_counter()
            if name == "bare loop":
                steps = bare_epoch(parts, config, folder, device)
            else:
                trainer = build_trainer(config, parts, folder)
                for callback in trainer.callbacks:
                    if isinstance(callback, Progress):
                        callback.console = Console(file=io.StringIO(), soft_wrap=True)  # plain lines, as in a log file
                trainer.fit(parts.task, datamodule=parts.data)
                if trainer.global_step != steps:
                    raise RuntimeError(f"{trainer.global_step} steps here, {steps} in the bare loop")
            if device.type == "cuda":
                torch.cuda.synchronize()
            measured[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)

        return run

    if arguments.serve is not None:
        steps, run = arguments.serve, side("vistrain")
        serve(lambda: (run(), processor["vistrain"][-1])[1])
        return
    sides = {name: side(name) for name in measured}
    if arguments.against is not None:
        words = ("--config", arguments.config, "--steps", arguments.steps, "--workers", arguments.workers)
        elsewhere = Elsewhere(arguments.against, __file__, *words, *arguments.overrides, serve=arguments.steps)
        processor["before"] = []
        sides["before"] = lambda: processor["before"].append(elsewhere())
    alternate(sides, arguments.repeats)
    wall, cpu = ({name: values[1:] for name, values in times.items()} for times in (measured, processor))
    ratios = {
        kind: statistics.median(a / b for a, b in zip(times["vistrain"], times["bare loop"], strict=True))
        for kind, times in (("wall time", wall), ("processor time", cpu))
    }
    if "before" in cpu:
        pairs = zip(cpu["vistrain"], cpu["before"], strict=True)
        ratios["processor time, vistrain / before"] = statistics.median(a / b for a, b in pairs)
    per_step = {name: 1000 * value / steps for name, value in medians(wall).items()}
    print(f"{steps} steps: " + ", ".join(f"{name} {value:.1f} ms/step" for name, value in per_step.items()))
    for kind, ratio in ratios.items():
        print(f"{kind}: {ratio:.3f}" if "before" in kind else f"{kind}: vistrain / bare loop = {ratio:.3f}")
    content = {"steps": steps, "ratios": ratios, "wall_seconds": wall, "processor_seconds": cpu, "device": str(device)}
    write(arguments.output, "trainer", content, ratios, "A training epoch, vistrain / bare PyTorch loop")


if __name__ == "__main__":
    main()
