"""A CT that does not fit into memory several times over, through `vistrain predict`: what it takes.

    python tools/large_volume.py [--sides 1000 512 512] [--classes 60] [--window 64 128 128] [--overlap 0.5]
        [--threads 2] [--kept FOLDER]

A CT is generated (z, y, x of `--sides`, 16-bit, uncompressed), a tiny network for `--classes` classes is made by
`vistrain fit` in two steps, and `vistrain predict` runs in a process of its own without mirror images. Printed are
its peak resident memory, the most that its scratch and output folders held, and its processor time. Exits with 1 where
the memory reaches 6 GB or the files 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

GB = 1e9
MEMORY, SCRATCH = 6.0, 2.0  # GB
SPACING = (0.8, 0.8, 0.8)  # mm
CONFIG = """
base: vistrain:med/custom_nifti
data: {{root: set, patch: {window}, batch_size: 1, patches: 1, workers: 0, cache: cache, intensities: [window],
  window: [-1000, 1000, 0, 400], within: all, augment: {{type: data.VolumeAugment, rotate: 0, scale: 0}}}}
model:
  network: {{type: segmentation.UNet3d, widths: [4, 8], depths: [1, 1], decoder_depth: 1, deep: false}}
  mirror: []
trainer: {{max_epochs: 1, limit_train_batches: 2, check_val_every_n_epoch: 2, accelerator: cpu}}
run: {{folder: run}}
"""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs=3, default=[1000, 512, 512], help="voxels along z, y, x")
    parser.add_argument("--classes", type=int, default=60, help="with the background")
    parser.add_argument("--window", type=int, nargs=3, default=[64, 128, 128], help="voxels along z, y, x")
    parser.add_argument("--overlap", type=float, default=0.5, help="of windows, as a share of their sides")
    parser.add_argument("--threads", type=int, default=2, help="of the prediction")
    parser.add_argument("--kept", type=Path, help="work here, and keep the files")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.kept or Path(name)
        found = measured(folder, given.sides, given.classes, given.window, given.overlap, given.threads)
    print(json.dumps(found))
    return int(found["peak_memory_gb"] >= MEMORY or found["scratch_gb"] >= SCRATCH)


def measured(
    folder: Path, sides: Sequence[int], classes: int, window: Sequence[int], overlap: float, threads: int
) -> dict[str, Any]:
    """Peak memory and files in GB, and minutes of processor time, of one prediction.

    Args:
        folder: to work in.
        sides: of the CT, voxels along z, y, x.
        classes: with the background.
        window: of the network, voxels along z, y, x.
        overlap: of windows, as a share of their sides.
        threads: of the prediction.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_set(folder / "set", classes)
    write_ct(folder / "ct" / "large.nii", sides)
    (folder / "tiny.yaml").write_text(CONFIG.format(window=list(window)))
    scratch, output = folder / "scratch", folder / "output"
    scratch.mkdir(exist_ok=True)
    around = {**os.environ, "OMP_NUM_THREADS": str(threads), "TMPDIR": str(scratch.resolve())}
    program = [sys.executable, "-m", "vistrain"]
    subprocess.run([*program, "fit", "-c", "tiny.yaml"], cwd=folder, env=around, check=True)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            most[0] = max(most[0], size_of(scratch) + size_of(output))

    watcher = threading.Thread(target=watch)
    watcher.start()
    command = ["predict", "--ckpt", "run/last.ckpt", "--input", "ct", "--output", "output", "--device", "cpu"]
    command += ["--overlap", str(overlap)]
    child = subprocess.Popen([*program, *command], cwd=folder, env=around)
    _, status, used = os.wait4(child.pid, 0)
    done.set()
    watcher.join()
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    written = nib.load(output / "pictures" / "labels" / "large.nii")
    assert written.shape == tuple(reversed(sides)), written.shape
    return {
        "sides": list(sides),
        "window": list(window),
        "overlap": overlap,
        "peak_memory_gb": round(used.ru_maxrss * 1024 / GB, 2),
        "scratch_gb": round(max(most[0], size_of(scratch) + size_of(output)) / GB, 2),
        "processor_minutes": round((used.ru_utime + used.ru_stime) / 60, 1),
    }


def write_set(folder: Path, classes: int) -> None:
    """Five tiny cases in nnU-Net's folders, so that a network can be made."""
    names = {"background": 0, **{f"class_{number}": number for number in range(1, classes)}}
    draw = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(5):
        name, affine = f"case_{number}", np.diag((*SPACING, 1.0))
        image, label = draw.normal(0, 300, (16, 16, 16)), draw.integers(0, classes, (16, 16, 16))
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), folder / "labelsTr" / f"{name}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 5, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def write_ct(path: Path, sides: Sequence[int]) -> None:
    """A cylinder of soft tissue in air with noise, written plane by plane."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(tuple(reversed(sides)))
    header.set_zooms(SPACING)
    header.set_sform(np.diag((*SPACING, 1.0)), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    draw = np.random.default_rng(0)
    y, x = np.ogrid[: sides[1], : sides[2]]
    body = ((y / sides[1] - 0.5) ** 2 + (x / sides[2] - 0.5) ** 2) < 0.16
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(sides[0]):
            noise = draw.integers(-60, 60, body.shape, dtype=np.int16)
            file.write(np.where(body, 40 + noise, -1000 + noise).astype("<i2").tobytes())


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


if __name__ == "__main__":
    raise SystemExit(main())
