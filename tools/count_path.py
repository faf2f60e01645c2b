"""How much of the package one training run goes through: what somebody reads who follows it from command to numbers.

    python tools/count_path.py
    python tools/count_path.py --package ../older/checkout --files --json path.json

Trains a tiny Focus-DETR on generated shapes, on the processor: `vistrain fit` of the shipped long detection demo,
made small: writes the data, takes two steps, evaluates once with `coco_box`, saves. A file is on the path if one of its
functions was called. Importing is not following: code of modules and classes does not count, and neither does what is
called while a module is imported. Lines are counted in two ways:

    lines     all lines of the files on the path
    entered   lines of the functions that were called, from `def` to their end; a function inside of another belongs to
              it, and every line counts once

The run is a process of its own, with the checkout in PYTHONPATH, so that any two checkouts are measured alike. The exit
code is that of the run.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGE = "vistrain"
SHOWN = 4000  # characters of a failed run's output
RUN = [
    *("run.folder=run",),
    *("data.workers=0", "data.train_images=4", "data.val_images=2", "data.batch_size=2", "data.scale=0.5"),
    *("data.augment.scales=[64]", "data.augment.long_side=96", "data.eval_short_side=64", "data.eval_long_side=96"),
    *("model.embed_dim=32", "model.encoder_layers=1", "model.decoder_layers=1", "model.cascade=[1.0]"),
    *("model.num_queries=20", "model.ffn_dim=32", "model.topk_sa=10", "model.denoising.number=8"),
    *("schedule.warmup_steps=1", "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"),
    *("trainer.accelerator=cpu", "metrics=[coco_box]"),
]


@dataclass(frozen=True)
class Counts:
    """What is on the path of one file, or of several.

    Attributes:
        lines: of the files.
        entered: of the functions that were called.
        files: how many.
    """

    lines: int = 0
    entered: int = 0
    files: int = 1

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.lines + other.lines, self.entered + other.entered, self.files + other.files)


@dataclass
class Calls:
    """A profiler that notes which code is called, outside of imports.

    Attributes:
        codes: code objects by identity: equal ones of two files are two.
    """

    codes: dict[int, CodeType] = field(default_factory=dict)
    _imports: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # that each thread is inside of

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """See `sys.setprofile`."""
        code = frame.f_code
        if code.co_name == "<module>":
            self._imports[threading.get_ident()] += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not self._imports[threading.get_ident()]:
            self.codes[id(code)] = code

    def __enter__(self) -> Calls:
        threading.setprofile(self)
        sys.setprofile(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


def measure(output: Path) -> int:
    """Train in this process and write which functions of the package were called, and its folder.

    Returns:
        The exit code of the run.
    """
    with Calls() as calls:
        from vistrain import config
        from vistrain.cli import main as vistrain

        code = vistrain(["fit", "--config", _recipe(config), *RUN])
    package = Path(sys.modules[PACKAGE].__file__ or "").resolve().parent
    called: dict[str, list[int]] = {}
    for found in calls.codes.values():
        path = Path(found.co_filename)
        # Only functions have fast locals; comprehensions have them too, and are told apart by the sources.
        if found.co_flags & inspect.CO_OPTIMIZED and package in path.parents:
            called.setdefault(path.relative_to(package).as_posix(), []).append(found.co_firstlineno)
    output.write_text(json.dumps({"package": str(package), "called": called}))
    return code


def _recipe(config: Any) -> str:
    """The address of the long demo, which older checkouts have under the other name."""
    root = Path(config.__file__).resolve().parents[1 if config.__file__.endswith("config.py") else 2]
    long = root / "configs" / "demo" / "detection_long.yaml"
    return f"vistrain:demo/{'detection_long' if long.is_file() else 'detection'}"


def count(source: str, called: Iterable[int]) -> Counts | None:
    """Counts of one file; None if none of its functions was called.

    Args:
        source: of the file.
        called: first lines of the code that was called, decorators included; of functions and comprehensions.
    """
    first_lines, entered = set(called), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            if min([node.lineno, *(d.lineno for d in decorators)]) in first_lines:
                entered |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return Counts(len(source.splitlines()), len(entered)) if entered else None


def follow(checkout: Path) -> dict[str, Counts]:
    """Counts of each file on the path, by its place in the package.

    Args:
        checkout: the folder that the package lies in.

    Raises:
        SystemExit: the run failed, or was one of another checkout.
    """
    package = checkout.resolve() / PACKAGE
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "called.json"
        environment = {**os.environ, "PYTHONPATH": str(package.parent), "VISTRAIN_DATA": str(Path(folder) / "data")}
        command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(output)]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            sys.stderr.write((run.stdout + run.stderr)[-SHOWN:])
            raise SystemExit(run.returncode)
        measured = json.loads(output.read_text())
    if Path(measured["package"]) != package:
        raise SystemExit(f"measured {measured['package']} instead of {package}")
    counts = {name: count((package / name).read_text(encoding="utf-8"), measured["called"][name])
              for name in sorted(measured["called"])}  # fmt: skip
    return {name: found for name, found in counts.items() if found is not None}


def by_room(files: Mapping[str, Counts]) -> dict[str, Counts]:
    """Sums by the first part of the files' places: a folder, or a module that lies in the package itself."""
    rooms: dict[str, Counts] = {}
    for name, counts in files.items():
        room = name.partition("/")[0]
        rooms[room] = rooms[room] + counts if room in rooms else counts
    return rooms


def show(title: str, rows: Mapping[str, Counts]) -> None:
    """Print a table, the total last."""
    width = max(map(len, [title, *rows]))
    print(f"{title:{width}} {'files':>6} {'lines':>7} {'entered':>8}")
    for name, counts in {**rows, "total": sum(rows.values(), Counts(files=0))}.items():
        print(f"{name:{width}} {counts.files:6} {counts.lines:7} {counts.entered:8}")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--package", metavar="FOLDER", type=Path, default=Path(__file__).parents[1],
        help="the checkout whose package is counted (default: this one)",
    )  # fmt: skip
    parser.add_argument("--files", action="store_true", help="a line for each file")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the counts here")
    parser.add_argument("--measure", metavar="FILE", type=Path, help=argparse.SUPPRESS)  # the process that trains
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure)
    if not (arguments.package / PACKAGE / "__init__.py").is_file():
        parser.error(f"no package {PACKAGE} in {arguments.package}")
    files = follow(arguments.package)
    rooms = by_room(files)
    if arguments.files:
        show("file", files)
        print()
    show("room", rooms)
    if arguments.json:
        content = {
            "total": vars(sum(files.values(), Counts(files=0))),
            "rooms": {name: vars(counts) for name, counts in rooms.items()},
            "files": {name: {"lines": c.lines, "entered": c.entered} for name, c in files.items()},
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
