"""What `task.recompute` saves and costs, network by network: memory of a training step, and its processor time.

    python tools/benchmark_recompute.py --output runs/benchmarks

Memory is what torch has allocated at once beyond weights and gradients, counted by its profiler; time is processor time
of one thread, both sides in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from benchmarking import allocated_mib, alternate, ratio, write
from torch import nn

import vistrain.backbones  # registers ours
from vistrain.layers.recompute import keep, recompute
from vistrain.tasks.base.hardware import repeated_blocks

assert vistrain.backbones
# name: (image, batch)
NETWORKS = {"resnet50": (224, 4), "vit_small_patch16_224": (224, 4), "swin_tiny_patch4_window7_224": (224, 4)}
NETWORKS |= {"nat_mini": (224, 4)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found, shown = {}, {}
    for name in arguments.only:
        side, batch = NETWORKS[name]
        torch.manual_seed(0)
        model, images = timm.create_model(name).train(), torch.randn(batch, 3, side, side)
        blocks = repeated_blocks([model])
        runs = {"kept": _step(model, images, []), "again": _step(model, images, blocks)}
        memory = {how: allocated_mib(run) for how, run in runs.items()}
        times = alternate(runs, arguments.repeats, clock=time.process_time)
        slower = ratio(times, "again", "kept")
        found[name] = {"mib": memory, "time": slower, "blocks": len(blocks)}
        shown[f"{name}: memory"], shown[f"{name}: time"] = memory["again"] / memory["kept"], slower
        said = f"{memory['kept']:8.0f} MiB -> {memory['again']:8.0f} MiB, {slower:.2f} of the time"
        print(f"{name:32s} {said}", flush=True)
    write(arguments.output, "recompute", found, shown, "Recomputed over kept activations")


def _step(model: nn.Module, images: torch.Tensor, blocks: Sequence[nn.Module]) -> Callable[[], None]:
    def run() -> None:
        for block in blocks:
            recompute(block)
        try:
            model(images).square().mean().backward()
        finally:
            for block in blocks:
                keep(block)

    return run


if __name__ == "__main__":
    main()
