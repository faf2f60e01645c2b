"""`vistrain doctor`: is this installation well, and what a bug report needs to say about it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from pathlib import Path

import vistrain
from vistrain.errors import first_line
from vistrain.processes import available_cores, total_memory

SUMMARY = "check the installation, and print what a bug report needs"
USAGE = ""
CHANGES = False
EXAMPLES = ""
PACKAGES = (
    "torch", "torchvision", "lightning", "timm", "omegaconf", "pydantic", "numpy", "scipy", "opencv-python-headless",
    "albumentations", "pycocotools", "pillow", "wandb", "rich",
)  # fmt: skip
EXTRAS = {
    "faster-coco-eval": "nine times faster COCO evaluation: pip install 'vistrain[fast]'",
    "simplejpeg": "twice as fast JPEG decoding: pip install 'vistrain[fast]'",
    "onnx": "networks as ONNX files: pip install 'vistrain[export]'",
    "onnxruntime": "running and measuring these: pip install 'vistrain[export]'",
    "tensorboard": "the logger tensorboard: pip install 'vistrain[tensorboard]'",
    "natten": "fused neighbourhood attention on CUDA: pip install 'vistrain[natten]'",
}
IMPORTED = ("lightning", "timm", "omegaconf", "pydantic", "scipy", "albumentations", "pycocotools")
LEAST_SHARED_MEMORY = 1 << 30  # a few batches of a few loader processes; containers have 64 MB by default
MISMATCH = (
    "torch and torchvision do not fit together (a CPU-only torch beside PyPI's torchvision, or two releases apart); "
    "install both from one index: pip install --force-reinstall torch torchvision, "
    "or for CPU only add --index-url https://download.pytorch.org/whl/cpu"
)


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: nothing."""


def run(arguments: argparse.Namespace) -> int:
    """Print the state of the installation."""
    text, is_well = report()
    sys.stdout.write(text)
    return 0 if is_well else 2


def report() -> tuple[str, bool]:
    """The report as text, and whether nothing needs to be mended."""
    problems: list[str] = []
    facts = [("vistrain", f"{vistrain.__version__} in {Path(vistrain.__file__).parent}"), *_platform()]
    facts += [(name, version_of(name)) for name in PACKAGES]
    problems += [f"{name} is not installed" for name in PACKAGES if not version_of(name)]
    facts += [(name, version_of(name) or f"not installed - {gain}") for name, gain in EXTRAS.items()]
    pair = torch_pair()
    facts.append(("torchvision.ops.nms", pair or "works"))
    problems += [pair] if pair else []
    broken = [] if pair else unimportable()
    problems += broken
    if not pair and not broken:
        facts += _devices()
        from vistrain.devices import unusable_gpu

        reason = unusable_gpu()
        problems += [reason] if reason else []
        stale = stale_names()
        facts.append(("index of names", "fresh" if not stale else f"stale: {', '.join(stale[:5])}"))
        problems += ["the index of names is stale; in a checkout run `make index`"] if stale else []
    for name, value, problem in (_shared_memory(), _data()):
        facts.append((name, value))
        problems += [problem] if problem else []
    width = max(len(name) for name, _ in facts)
    lines = [f"{name.ljust(width)}  {value or 'not installed'}" for name, value in facts]
    lines += ["", *(f"problem: {p}" for p in problems)] if problems else ["", "all is well"]
    return "\n".join(lines) + "\n", not problems


def version_of(package: str) -> str:
    """The installed version of a distribution; empty if there is none."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def torch_pair() -> str:
    """What is wrong between torch and torchvision, found by running a compiled operator of torchvision; empty if well.

    Their versions do not tell: torchvision's wheels name a lower bound of torch only, and builds for CPU and CUDA have
    the same version.
    """
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    try:
        ops = importlib.import_module("torchvision.ops")
        kept = ops.nms(
            torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9], [20, 20, 30, 30]]), torch.tensor([0.9, 0.8, 0.7]), 0.5
        )
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return f"{MISMATCH} (it says: {str(error).splitlines()[0]})"
    return "" if kept.tolist() == [0, 2] else f"{MISMATCH} (nms gives {kept.tolist()}, not [0, 2])"


def unimportable() -> list[str]:
    """Of the packages that are installed and cannot be imported: what they say."""
    found = []
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever is broken in it
            reason = first_line(error)
            found.append(f"{name} cannot be imported ({reason}): pip install --force-reinstall {name}")
    return found


def stale_names() -> list[str]:
    """Classes of ours whose constructor has other parameters than the index says, or that are gone."""
    from vistrain.config import index
    from vistrain.config.builder import signature

    stale = []
    for name, entry in index.load("classes").items():
        module, _, bare = entry["path"].rpartition(".")
        if module.startswith("vistrain."):
            cls = getattr(importlib.import_module(module), bare, None)
            if cls is None or list(signature(cls)[0]) != list(entry["parameters"]):
                stale.append(name)
    return stale


def _platform() -> list[tuple[str, str]]:
    return [
        ("python", f"{platform.python_version()} in {sys.prefix}"),
        ("system", platform.platform()),
        ("cores, memory", f"{available_cores()}, {total_memory() / 2**30:.0f} GiB"),
        ("free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"),
    ]


def _devices() -> list[tuple[str, str]]:
    import torch

    from vistrain.devices import DRIVER, triton_lacks

    facts = [("CUDA of torch", str(torch.version.cuda))]
    for i in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(i)
        facts.append(
            (f"cuda:{i}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {device.major}.{device.minor}")
        )
    if torch.backends.mps.is_available():
        facts.append(("mps", "available"))
    if len(facts) == 1:
        why = "this torch cannot use its GPU" if DRIVER.exists() else "no driver of NVIDIA's runs here"
        facts.append(("accelerator", f"none ({why}): training runs on the processor"))
    return [*facts, ("triton", triton_lacks() or version_of("triton"))]


def _shared_memory() -> tuple[str, str, str]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return "shared memory", "not a file system here", ""
    size = shutil.disk_usage(path).total
    remedy = "start the container with --shm-size=8g or --ipc=host, or set data.workers=0"
    return (
        "shared memory",
        f"{size / 2**30:.2f} GiB",
        f"/dev/shm is small - {remedy}" if size < LEAST_SHARED_MEMORY else "",
    )


def _data() -> tuple[str, str, str]:
    folder = Path(os.environ.get("VISTRAIN_DATA") or "data")
    state = "" if folder.is_dir() else ", which does not exist yet"
    return "data", f"{folder}{state} ({'VISTRAIN_DATA' if 'VISTRAIN_DATA' in os.environ else 'the default'})", ""
