"""Where a run is kept: a new run never writes into an older one's folder, a restarted one finds its own again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vistrain import processes
from vistrain.config import read_file, to_yaml
from vistrain.errors import ConfigError
from vistrain.internals.omegaconf import read_yaml

# What makes two runs the same one, and what of it may change from one machine to the next.
IDENTITY = ("model", "data", "task", "optimizer", "schedule", "metrics", "stages", "seed")
MOVABLE = ("data.root", "data.workers", "data.per_device")


def run_folder(config: Mapping[str, Any], resume: Path | None, refuse_first: Callable[[], None] = lambda: None) -> Path:
    """The folder of this run; a new run never writes into that of an older one.

    Args:
        config: composed.
        resume: the folder of a run that goes on; None: a new one.
        refuse_first: called before a folder is refused: another one would not mend a config.

    Raises:
        ConfigError: it holds a run already, or there is nothing to resume.
    """
    if resume is not None:
        if not (resume / "last.ckpt").is_file():
            raise ConfigError("--resume", f"{resume} has no last.ckpt", "it must be the folder of an interrupted run")
        return resume
    folder = folder_of(config)
    if processes.is_first() and any((folder / name).exists() for name in ("last.ckpt", "best.ckpt", "stage_1")):
        refuse_first()
        raise ConfigError(
            "run.folder", f"{folder} holds a run already", f"continue it with --resume {folder}, or set run.folder"
        )
    return folder


def own_run(config: Mapping[str, Any]) -> Path | None:
    """The folder of the config's run, if that very run was begun there and has saved something; else None.

    It is the same run if what it computes is the same: data, network, task, optimizer, schedule and seed. How long it
    trains, on how many devices, what it logs, and where its data lies may have changed.

    Raises:
        ConfigError: another run is in the folder; it names the first key that differs. Or its config cannot be read.
    """
    folder = folder_of(config)
    if not any((folder / name).exists() for name in ("last.ckpt", "stage_1")):
        return None
    written = folder / "config.yaml"
    there = read_file(written) if written.is_file() else {}
    here = read_yaml(to_yaml(dict(config)))  # through YAML, as the other one
    for section in IDENTITY:
        found = differences(there.get(section), here.get(section), section)
        differing = next((key for key in found if key not in MOVABLE), None)
        if differing is not None:
            raise ConfigError(
                "run.folder",
                f"{folder} holds another run: {differing} is different there",
                f"set run.folder, or continue that run with --resume {folder}",
            )
    return folder


def differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """The dotted keys below `key` at which two configs differ."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*there, *here]):
            yield from differences(there.get(name), here.get(name), f"{key}.{name}".lstrip("."))
    elif there != here:
        yield key


def folder_of(config: Mapping[str, Any]) -> Path:
    """Where the config's run is kept: `run.folder`, or a folder of its name in `runs/`."""
    run = config.get("run") or {}
    return Path(run.get("folder") or Path("runs") / (run.get("name") or "run"))
