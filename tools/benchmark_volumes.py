"""Patches from the cache against nibabel's, and sliding windows against the windows alone; both sides in one run.

    python tools/benchmark_volumes.py [--repeats N]

Processor time of one thread, sides in turn. Exits with 1 where a ratio is missed: a patch at least 20 times as fast,
windows at most 1.05 times their networks' time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from vistrain.data.volumes.cases import Case
from vistrain.data.volumes.labels import VoxelLabels
from vistrain.data.volumes.preparation import VolumePreparation
from vistrain.data.volumes.prepared import Cache
from vistrain.data.volumes.samples import Patches
from vistrain.segmentation.unet import UNet3d
from vistrain.segmentation.volume_windows import sliding_planes, window_starts

SIDES, PATCH = (240, 240, 155), (128, 128, 128)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each side; the fastest counts")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    patches, windows = patch_ratio(repeats), window_ratio(repeats)
    print(f"a patch from the cache: {patches:.1f} times as fast as one by nibabel")
    print(f"sliding windows: {windows:.3f} times their windows' time")
    return int(patches < 20 or windows > 1.05)


def patch_ratio(repeats: int) -> float:
    """Of a case of two modalities as BraTS has them, compressed."""
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{modality}.nii.gz" for modality in ("a", "b")]
        for file in files:
            nib.save(nib.Nifti1Image(draw.integers(1, 900, SIDES).astype(np.int16), np.eye(4)), file)
        label = folder / "label.nii.gz"
        nib.save(nib.Nifti1Image(draw.integers(0, 2, SIDES).astype(np.uint8), np.eye(4)), label)
        labels = VoxelLabels({"background": 0, "x": 1})
        cache = Cache(folder / "cache", VolumePreparation(("a", "b"), within="all"), labels)
        sampler = Patches(cache.get([Case("case", tuple(files), label)]), PATCH, 0.5, None, 255)

        def by_nibabel() -> None:
            for file in (*files, label):
                np.ascontiguousarray(np.asanyarray(nib.load(file).dataobj)[:128, :128, :128]).astype(np.float32)

        ours, theirs = fastest([lambda: sampler.sample(0, 1), by_nibabel], repeats)
    return theirs / ours


def window_ratio(repeats: int) -> float:
    """Of a small U-Net on a case of 96 x 96 x 96 voxels in windows of 48 at half overlap."""
    network = UNet3d(2, 4, (8, 16, 32)).eval()
    image = torch.randn(2, 96, 96, 96)
    count = len(window_starts(96, 48, 0.5)) ** 3
    window = image[None, :, :48, :48, :48].contiguous()

    @torch.inference_mode()
    def alone() -> None:
        for _ in range(count):
            network(window)

    @torch.inference_mode()
    def sliding() -> None:
        for _ in sliding_planes(network, image, (48, 48, 48), 0.5, 4):
            pass

    ours, theirs = fastest([sliding, alone], repeats)
    return ours / theirs


def fastest(sides: list[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of processor time of each side, in turn, the fastest of the repeats."""
    seconds: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(repeats):
        for taken, side in zip(seconds, sides, strict=True):
            start = time.process_time()
            side()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in seconds]


if __name__ == "__main__":
    raise SystemExit(main())
