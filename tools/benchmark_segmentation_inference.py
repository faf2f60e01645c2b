"""From logits to class maps: ADE20K's post-processing against the official order, and what windows cost put together.

    python tools/benchmark_segmentation_inference.py --output runs/benchmark_segmentation_inference

Official order (mmsegmentation 0.11): logits of 150 classes at a quarter of the image, enlarged to the image, then to
the original, softmax, arg-max. Ours gives the same labels but for near ties, which are counted. Windows: UPerNet with
Swin-T, 150 classes, an image in overlapping windows, against the same windows computed and thrown away; and, of images
of any size, what is allocated beside a window's network to put windows together. Both sides take turns in this process
on one thread; processor time. Medians are printed, and written as .json and .png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarking import allocated_mib, alternate, medians, peak_mib, ratio, write
from torch import Tensor
from torch.nn import functional as F

from vistrain.backbones import Backbone
from vistrain.layers.axis import Axis
from vistrain.segmentation import SemanticSegmenter, UPerHead
from vistrain.segmentation.inference import View, best_classes
from vistrain.segmentation.sliding_windows import Windows
from vistrain.structures import Factory, LabelSpace

CLASSES = 150
SIZES = {"512x683 as it is": (512, 683), "683x911": (683, 911), "1200x1600": (1200, 1600)}
NETWORK = (512, 683)
SIDES = (853, 853)  # four windows of 512, 341 apart
HEIGHTS = (853, 3411)
NEAR_TIES = 1e-5  # share of the pixels at which rounding may decide


def logits() -> Tensor:
    """`[150, 128, 171]`: blobs of classes with noise, as a network gives them."""
    torch.manual_seed(0)
    blobs = F.interpolate(torch.randn(1, CLASSES, 10, 14), (128, 171), mode="bicubic")[0]
    return 4 * blobs + 0.1 * torch.randn(CLASSES, 128, 171)


def official(x: Tensor, size: tuple[int, int]) -> Tensor:
    """mmsegmentation's order."""
    enlarged = F.interpolate(F.interpolate(x[None], NETWORK, mode="bilinear"), size, mode="bilinear")
    return enlarged.softmax(1).argmax(1)[0]


def ours(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Both enlargements at once, in tiles."""
    axes = (
        Axis.resized(cells, side).then(Axis.resized(side, whole))
        for cells, side, whole in zip(x.shape[1:], NETWORK, size, strict=True)
    )
    return best_classes([View(x, *axes)])


def windows(
    network: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int
) -> dict[str, Callable[[], object]]:
    """An image in windows to its class map; the windows alone; and what is done with their logits alone."""
    stored = network(image[None, :, :window, :window])

    def together(of: Callable[[Tensor], Tensor] = network) -> Tensor:
        size = (image.shape[1], image.shape[2])
        return Windows((window, window), (stride, stride), batch=1).class_map(of, image, size, size)

    def alone() -> None:
        for top in range(0, image.shape[1] - window + 1, stride):
            for left in range(0, image.shape[2] - window + 1, stride):
                network(image[None, :, top : top + window, left : left + window])

    return {"windows alone": alone, "class map": together, "logits put together": lambda: together(lambda _: stored)}


def coarse(images: Tensor) -> Tensor:
    """Logits as a network gives them, a quarter of the size, for nothing."""
    return images.new_zeros(len(images), CLASSES, *(side // 4 for side in images.shape[2:]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("runs/benchmark_segmentation_inference")
    parser.add_argument("--output", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, x = {}, logits()
    with torch.inference_mode():
        for name, size in SIZES.items():
            differing = int((official(x, size) != ours(x, size)).sum())
            if differing > NEAR_TIES * size[0] * size[1]:
                raise SystemExit(f"{differing} labels differ")
            sides = {"official": lambda s=size: official(x, s), "vistrain": lambda s=size: ours(x, s)}
            seconds = medians(alternate(sides, arguments.repeats, clock=time.process_time))
            memory = {side: peak_mib(run) for side, run in sides.items()}
            rows[f"post-processing, {name}"] = {
                "seconds": seconds,
                "MiB": memory,
                "ratio": seconds["official"] / seconds["vistrain"],
            }
        labels = LabelSpace(tuple(map(str, range(CLASSES))), tuple(range(CLASSES)), ignore_index=255)
        backbone = Backbone("swin_tiny_patch4_window7_224", strides=(4, 8, 16, 32), output_norm_eps=1e-5)
        model = SemanticSegmenter(backbone, labels, Factory(UPerHead)).eval()
        times = alternate(
            windows(model, torch.randn(3, *SIDES), 512, 341), max(1, arguments.repeats // 2), clock=time.process_time
        )
        rows["windows, UPerNet Swin-T"] = {
            "seconds": medians(times),
            "ratio": ratio(times, "class map", "windows alone"),
            "MiB of logits put together": {
                f"{height}x{SIDES[1]}": allocated_mib(
                    windows(coarse, torch.zeros(3, height, SIDES[1]), 512, 341)["logits put together"]
                )
                for height in HEIGHTS
            },
        }
    for name, row in rows.items():
        print(f"{name:40} {row['ratio']:5.2f}   {row}")
    ratios = {name: row["ratio"] for name, row in rows.items()}
    write(arguments.output, "benchmark_segmentation_inference", {"rows": rows}, ratios, "class maps from logits")


if __name__ == "__main__":
    main()
