"""What a run ran in, for its records: versions, processor, devices, an allow-list of variables, the sources' commit."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vistrain.processes import available_cores, total_memory

PACKAGES = (
    "vistrain", "torch", "torchvision", "lightning", "timm", "numpy", "scipy", "opencv-python-headless", "pillow",
    "albumentations", "pycocotools", "faster-coco-eval", "omegaconf", "pydantic", "wandb",
)  # fmt: skip

# An allow-list: everything else (tokens, paths, host names) stays out of a folder that people share.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "WANDB_MODE",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
)  # fmt: skip
PREFIXES = ("NCCL_", "VISTRAIN_", "GLOO_")
SLURM = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_CPUS_PER_TASK", "SLURM_GPUS", "SLURM_GPUS_PER_NODE",
    "SLURM_RESTART_COUNT", "SLURM_JOB_PARTITION",
)  # fmt: skip
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def environment() -> dict[str, Any]:
    """What a bug report or a reproduction needs to know: versions, hardware and an allow-list of variables."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": available_cores(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if _allowed(name)},
    }


def _allowed(name: str) -> bool:
    listed = name in VARIABLES or name in SLURM or name.startswith(PREFIXES)
    return listed and not any(part in name for part in SECRETS)


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, threads of torch, memory in GiB."""
    return {
        "processor": processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(total_memory() / 2**30, 1),
    }


def processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def commit() -> dict[str, Any] | None:
    """The commit that these sources are of, and whether they were changed since; None outside a work tree of git."""
    sources = Path(__file__).parent
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(sources), *words], capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"id": head, "changed": bool(changes)}
