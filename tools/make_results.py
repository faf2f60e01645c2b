"""Writes docs/results.md: every shipped config, what its paper publishes, what was measured, and how far it is checked.

    python tools/make_results.py                       write it
    python tools/make_results.py --check               exit with 1 if the committed one is stale
    python tools/make_results.py --add reproduced/med/wnet_drive runs/digits
                                                       keep what counts of these records in tools/results.json first: of
                                                       `vistrain reproduce`, or of a run that was trained and tested

Published numbers are of the configs (their index), measured ones of the records alone: a record that is partial, of
changed sources or another config, or that does not say of what it is, is refused. *Parity* is told by the tests that
must run (tests/parity/expected.txt): which classes they compare with their authors' code.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before what imports vistrain

from vistrain import config
from vistrain.config import index
from vistrain.run.reproduce import published

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
RECORDS = ROOT / "tools" / "results.json"
PARITY = ROOT / "tests" / "parity"
BACKBONES = ROOT / "vistrain" / "backbones"

# Networks around a network, a head or a backbone, which is what a paper is about.
WRAPPERS = ("Classifier", "SemanticSegmenter", "RestorationModel", "VolumeSegmenter", "Slices")
INSIDE = ("network", "head")
# Tests of names, shapes and refusals compare no numbers; these share a test with relatives, but have no fixture.
NO_NUMBERS = re.compile(r"names|shapes|spelling|refused|left_out|leaves_out|missing|sizes_of")
WITHOUT_FIXTURE = ("GFL", "GFLHead", "DAUNet", "VWCityHead")
LEARNT = ("model", "task", "optimizer", "schedule", "metrics", "seed")  # sections that decide what a run learns
LENGTHS = ("max_epochs", "max_steps", "precision")  # of its trainer
SHOWN = 2  # numbers of a trained run
ROUNDED = 1e-4  # of numbers in records
TASKS = {
    "cls": "Classification", "det": "Detection and instances", "seg": "Segmentation and lanes", "med": "Medical",
    "restore": "Restoration", "pretrain": "Pre-training", "match": "Correspondence", "demo": "Demonstrations",
}  # fmt: skip
HEAD = """\
# Results

Every shipped config: what its paper publishes, what was measured here, and how far the network is checked. This page
is written by `python tools/make_results.py` from the configs and the records in `tools/results.json`; a measured number
without a record does not get onto it.

| state | means | configs |
|---|---|---|
{states}

Percentages are 0 to 100, PSNR is in dB, and names of numbers begin with their protocol. Any row with a published number
is checked by

    vistrain reproduce -c vistrain:NAME --weights FILE data.root=FOLDER

and all for which data and weights are there, with a list of what is missing for the others, by

    vistrain reproduce --all --data FOLDER --weights FOLDER

{templates} more are templates, which want a file or a folder of yours first; they are named at the end.
"""
STATES = {
    "reproduced": "the published numbers came back from the published weights, on all images",
    "trained": "trained here, by its config, and tested",
    "parity": "on fixed weights network, or head and backbone, compute what their authors' code does",
    "parity in part": "so do all parts but those named",
    "timm": "the network is timm's own code",
    "configured": "the network as a whole is compared with no authors' code there, and nothing was measured",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is stale")
    parser.add_argument(
        "--add", metavar="FOLDER", type=Path, nargs="+", default=[], help="folders of records to keep first"
    )
    arguments = parser.parse_args(argv)
    kept: dict[str, Any] = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    for folder in arguments.add:
        leaf, record = reproduction(folder) if (folder / "reproduction.json").exists() else training(folder)
        kept[leaf] = record
    if arguments.add:
        RECORDS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    made = page(kept)
    if arguments.check:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == made
        print("fresh" if fresh else "stale: run `python tools/make_results.py`")
        return int(not fresh)
    PAGE.write_text(made, encoding="utf-8")
    return 0


# ---------------------------------------------------------------- records


def reproduction(folder: Path) -> tuple[str, dict[str, Any]]:
    """The config of a record of `vistrain reproduce`, and what the page and its readers need of it.

    Raises:
        SystemExit: it is partial, or of no shipped config as it is now.
    """
    record = read(folder / "reproduction.json")
    if not record["complete"] or not record["reproduced"] or record.get("limit") is not None:
        raise SystemExit(f"{folder}: is partial, or a number is outside its tolerance")
    same = [
        name
        for name, entry in index.load("configs").items()
        if name.rpartition("/")[2] == record["config"] and _numbers(entry) and _numbers(entry) == _numbers(record)
    ]
    if len(same) != 1:
        raise SystemExit(f"{folder}: no shipped config called {record['config']} publishes these numbers")
    weights = record["weights"]
    return same[0], {
        "state": "reproduced",
        "measured": {row["metric"]: round(row["measured"], 6) for row in record["results"]},
        "weights": weights and {"file": Path(weights["file"]).name, "sha256": weights["sha256"]},
        **_surroundings(folder, record, record["environment"]),
    }


def training(folder: Path) -> tuple[str, dict[str, Any]]:
    """As `reproduction`, of a run's folder, trained and then tested by `vistrain test`.

    Raises:
        SystemExit: it is not of a shipped config, but for where its data are and what it ran on.
    """
    from vistrain.metrics import unit

    record, environment = read(folder / "test.json"), read(folder / "environment.json")
    run = config.read_file(folder / "config.yaml")
    same = [
        name
        for name, entry in index.load("configs").items()
        if name.rpartition("/")[2] == run["run"]["name"] and "classes" in entry and _trains_as(name, run)
    ]
    if len(same) != 1:
        raise SystemExit(f"{folder}: no shipped config called {run['run']['name']} trains as its config.yaml says")
    numbers = {name.removeprefix("test/"): value for name, value in record["numbers"].items()}
    return same[0], {
        "state": "trained",
        "measured": {n: round(v * (100 if unit(n).percent else 1), 6) for n, v in [*numbers.items()][:SHOWN]},
        "images": record["images"]["of"],
        "weights": None,
        **_surroundings(folder, environment, environment),
    }


def _trains_as(name: str, run: Mapping[str, Any]) -> bool:
    shipped = config.compose([f"vistrain:{name}"])
    return all(shipped.get(section) == run.get(section) for section in LEARNT) and all(
        (shipped.get("trainer") or {}).get(key) == (run.get("trainer") or {}).get(key) for key in LENGTHS
    )


def _surroundings(folder: Path, record: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """When, of which sources and on what."""
    if not record.get("commit") or record["commit"]["changed"] is not False:
        raise SystemExit(f"{folder}: does not say of which commit it is, or its sources were changed")
    return {
        "date": (record.get("date") or environment["date"])[:10],
        "commit": record["commit"]["id"],
        "processor": record["hardware"]["processor"],
        "devices": environment["devices"],
        "python": environment["python"],
        "versions": {name: environment["versions"][name] for name in ("torch", "lightning", "timm", "numpy")},
    }


def read(file: Path) -> dict[str, Any]:
    """A file of JSON.

    Raises:
        SystemExit: there is none.
    """
    if not file.is_file():
        raise SystemExit(f"{file}: there is no such record")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _numbers(entry: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Metric -> published value and tolerance, of a config or of a record."""
    reference = entry.get("reference") or {}
    if not {"value", "values"} & reference.keys():
        return {}
    return {row.metric: (row.published, row.tolerance) for row in published(reference)}


def refuse_stale(kept: Mapping[str, Any]) -> None:
    """Refuse records that say nothing of a config as it is.

    Raises:
        SystemExit: such a record is kept.
    """
    for leaf, record in kept.items():
        where = f"{RECORDS.name}: {leaf}"
        if leaf not in index.load("configs"):
            raise SystemExit(f"{where}: there is no such config")
        if record["state"] not in ("reproduced", "trained") or not (record["date"] and record["commit"]):
            raise SystemExit(f"{where}: does not say what it is, when, and of which commit")
        if record["state"] == "trained":
            continue
        numbers = _numbers(index.load("configs")[leaf])
        if record["measured"].keys() != numbers.keys():
            raise SystemExit(f"{where}: does not publish what its record measured; run it again")
        for metric, value in record["measured"].items():
            if abs(value - numbers[metric][0]) > numbers[metric][1] + ROUNDED:
                raise SystemExit(f"{where}: {metric} is outside its tolerance now; run it again")


# ---------------------------------------------------------------- parity


@functools.cache
def compared() -> frozenset[str]:
    """Names of classes, and of modules of backbones, that the parity tests compare in numbers with authors' code."""
    lines = (PARITY / "expected.txt").read_text(encoding="utf-8").splitlines()
    tests: dict[str, set[str]] = {}
    for line in lines:
        file, _, test = line.partition("::")
        if test and not NO_NUMBERS.search(test.partition("[")[0]):
            tests.setdefault(Path(file).name, set()).add(test.partition("[")[0])
    found: set[str] = set()
    for file, functions in tests.items():
        found |= _used(PARITY / file, functions)
    return frozenset(found - set(WITHOUT_FIXTURE))


def _used(file: Path, wanted: Iterable[str]) -> set[str]:
    """Names of ours that some functions of a file use, in what they call in it or in the fixtures' helpers, too; of an
    import `from vistrain.backbones.cswin import CSWin` also `cswin`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    ours: dict[str, set[str]] = {}
    helpers: dict[str, Path] = {}
    defined: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if node.module.startswith("vistrain"):
                    ours[alias.asname or alias.name] = {alias.name, node.module.rpartition(".")[2]}
                elif node.module.startswith("parity."):
                    helpers[alias.name] = PARITY / f"{node.module.rpartition('.')[2]}.py"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {t.id: node for t in targets if isinstance(t, ast.Name)}
    found: set[str] = set()
    open_names, seen = list(wanted), set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        found |= ours.get(name, set())
        if name in helpers and name not in ("fixtures",):
            found |= _used(helpers[name], [name])
        if name in defined:
            open_names += [n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)]
    return found


@functools.cache
def _modules() -> dict[str, str]:
    """Backbone of ours -> the module that defines it."""
    names = index.load("our_backbones")
    found = {}
    for file in sorted(BACKBONES.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        defined = set(re.findall(r"^def (\w+)\(", text, re.M)) | set(re.findall(r'^    "(\w+)":', text, re.M))
        found |= {name: file.stem for name in names if name in defined}
    return found


def parts_of(entry: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """What of a config's network is written here: its class, or the one that it stands around, and the module of its
    backbone; empty: it is timm's.

    Args:
        entry: of the index.
        model: its section; needed where the class is a wrapper.
    """
    cls = entry["classes"][0].rpartition(".")[2]
    inside = [str(model[key]["type"]).rpartition(".")[2] for key in INSIDE if (model.get(key) or {}).get("type")]
    backbone = str(entry.get("backbone") or "").partition(".")[0]
    ours = [_modules().get(backbone, backbone)] if backbone in index.load("our_backbones") else []
    return [*(inside if cls in WRAPPERS else [cls]), *ours]


# ---------------------------------------------------------------- the page


def page(kept: Mapping[str, Any]) -> str:
    """The page, in Markdown.

    Args:
        kept: config -> its record, see `condensed`.
    """
    refuse_stale(kept)
    known = index.load("configs")
    templates = [name for name, entry in known.items() if "classes" not in entry]
    rows: dict[str, list[tuple[str, ...]]] = {}
    states: Counter[str] = Counter()
    for name, entry in known.items():
        if "classes" not in entry:
            continue
        wraps = entry["classes"][0].rpartition(".")[2] in WRAPPERS[1:]
        parts = parts_of(entry, config.compose([f"vistrain:{name}"])["model"] if wraps else {})
        state, said = state_of(parts, kept.get(name))
        states[state] += 1
        rows.setdefault(name.partition("/")[0], []).append(_row(name, entry, parts, kept.get(name), said))
    meanings = "\n".join(f"| {state} | {meaning} | {states[state]} |" for state, meaning in STATES.items())
    made = [HEAD.format(states=meanings, templates=len(templates))]
    made.append(_measured_by(kept))
    for task, heading in TASKS.items():
        lines = sorted(rows.pop(task, []), key=lambda row: (row[1].lower(), row[0]))
        made.append(f"\n## {heading}\n\n`vistrain:{task}/...`\n\n" + _table(lines))
    if rows:
        raise SystemExit(f"no heading for {', '.join(rows)}")
    listed = "\n".join(f"- `{name}`" for name in sorted(templates))
    made.append(
        f"\n## Templates\n\nUntil they are given what is yours there is nothing to build, or to measure.\n\n{listed}\n"
    )
    return "".join(made)


def state_of(parts: Sequence[str], record: Mapping[str, Any] | None) -> tuple[str, str]:
    """The state of a config, a key of `STATES`, and how its row says it.

    Args:
        parts: see `parts_of`.
        record: of it, if there is one.
    """
    if record is not None:
        return record["state"], f"**{record['state']}**"
    missing = [part for part in parts if part not in compared()]
    if not missing:
        return ("parity", "parity") if parts else ("timm", "timm")
    return ("parity in part", f"parity but for {', '.join(missing)}") if missing != parts else ("configured",) * 2


def _row(
    name: str, entry: Mapping[str, Any], parts: Sequence[str], record: Mapping[str, Any] | None, state: str
) -> tuple[str, ...]:
    reference = entry.get("reference") or {}
    numbers = _numbers(entry)
    measured = {} if record is None else record["measured"]
    if record is not None and record["state"] == "trained":
        told = [f"{metric} {value:g}" for metric, value in measured.items()]
    else:
        told = [_digits(measured[metric], tolerance) for metric, (_, tolerance) in numbers.items() if measured]
    return (
        f"`{name.partition('/')[2]}`",
        _model(entry, parts),
        _paper(reference),
        _weights(reference),
        "<br>".join(f"{metric} {value:g}" for metric, (value, _) in numbers.items()),
        "<br>".join(told),
        state,
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    heading = "| config | network | paper | weights | published | measured | state |\n|---|---|---|---|---|---|---|\n"
    return heading + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _digits(value: float, tolerance: float) -> str:
    """One digit more than the tolerance has."""
    return f"{value:.{len(f'{tolerance:g}'.partition('.')[2]) + 1}f}"


def _model(entry: Mapping[str, Any], parts: Sequence[str]) -> str:
    """The network, or what is in it, and its backbone."""
    backbone = str(entry.get("backbone") or "").partition(".")[0]
    return ", ".join(part for part in (*(p for p in parts if p != _modules().get(backbone)), backbone) if part)


def _paper(reference: Mapping[str, Any]) -> str:
    found = reference.get("paper")
    number = f"{found:.5f}" if isinstance(found, float) else str(found or "")
    return f"[{number}](https://arxiv.org/abs/{number})" if re.fullmatch(r"\d{4}\.\d{4,5}", number) else number


def _weights(reference: Mapping[str, Any]) -> str:
    name, source = str(reference.get("weights") or ""), str(reference.get("source") or "")
    name = name.rpartition("/")[2]
    if source.startswith("http"):
        return f"[{name or 'authors'}]({source})"
    return f"`{name}`" if name else ""


def _measured_by(kept: Mapping[str, Any]) -> str:
    """How to run each record again, and of what it is."""
    lines = []
    for leaf, record in sorted(kept.items()):
        if record["state"] == "trained":
            command, weights = f"fit -c vistrain:{leaf}", "trained"
        else:
            weights = f"`{record['weights']['sha256'][:12]}`" if record["weights"] else "none"
            words = f" --weights {record['weights']['file']}" if record["weights"] else ""
            command = f"reproduce -c vistrain:{leaf}{words} data.root=FOLDER"
        lines.append(f"| `vistrain {command}` | {weights} | {record['date']} | `{record['commit'][:10]}` |\n")
    places = {
        f"{', '.join([r['processor'], *r['devices']])}, Python {r['python']}, "
        + ", ".join(f"{name} {version}" for name, version in r["versions"].items())
        for r in kept.values()
    }
    return (
        "\n## Measured\n\nBy these commands; the numbers stand in the tables below.\n\n"
        "| command | SHA-256 of the weights | date | commit |\n|---|---|---|---|\n"
        f"{''.join(lines)}\nOn {'; '.join(sorted(places)) or 'nothing yet'}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
