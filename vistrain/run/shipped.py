"""All shipped configs that publish a number: which of them the data and weights at hand can check, and what is missing.

Data are recognised by asking each config's data module whether a folder is laid out as it expects. Weights are
recognised by their SHA-256 where the config's `reference` states one; else by names and shapes, and where several
configs fit, by the file's name.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vistrain.checkpoints import (
    disagreements,
    find_state_dict,
    likeness,
    load_file,
    renamed,
    strip_prefixes,
)
from vistrain.checkpoints.fetching import sha256
from vistrain.config import compose, index
from vistrain.errors import ConfigError, DataError, VistrainError, WeightsError, nearest
from vistrain.run.networks import build_without_memory
from vistrain.run.parts import data_of
from vistrain.run.reproduce import Report, published, reproduce

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

# Of files in a folder that is named; a file that is named itself is read whatever it is called.
SUFFIXES = (
    *(".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl", ".npz", ".h5", ".hdf5", ".keras"),
    *(".tar", ".zip", ".gz", ".tgz"),
)
_SAID = 4  # configs named of those that a file fits


@dataclass(frozen=True)
class Claim:
    """A shipped config that publishes a number, and what there is to check it.

    Attributes:
        leaf: such as `med/wnet_drive`.
        config: composed, with the data's root where that was found.
        data: the folder; None: nowhere.
        weights: the file; None: not found, or not needed.
        missing: what is missing, and where to get it; empty: nothing.
    """

    leaf: str
    config: dict[str, Any]
    data: Path | None
    weights: Path | None
    missing: str

    @property
    def kind(self) -> str:
        """The class of its data, as configs write it."""
        return str(self.config["data"].get("type"))


@dataclass(frozen=True)
class Survey:
    """What a machine can check.

    Attributes:
        claims: of all configs that were asked for, by name.
        notes: lines on files of weights that belong to none, or to which of several nobody can tell.
        absent: class of data -> what it says of the first folder that it is not in.
    """

    claims: tuple[Claim, ...]
    notes: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> tuple[Claim, ...]:
        """Those that can be checked."""
        return tuple(claim for claim in self.claims if not claim.missing)


def survey(
    data: Sequence[Path], weights: Sequence[str | Path], *, only: str = "*", overrides: Collection[str] = ()
) -> Survey:
    """Find out which shipped configs can be checked.

    Args:
        data: folders that hold a set, or several in folders of their own.
        weights: files, or folders of files at any depth.
        only: a pattern of names, such as `restore/*`.
        overrides: `dotted.key=value` changes to each config.

    Raises:
        ConfigError: no published config has such a name, or a change is wrong.
        DataError, WeightsError: a folder or file that was named is not there.
    """
    known = publishing()
    names = [name for name in known if fnmatch.fnmatchcase(name, only)]
    if not names:
        raise ConfigError("--only", f"no config that publishes a number matches {only!r}", nearest(only, known))
    roots, files = _roots(data), _files(weights)
    owners, notes = _owners(files, names)
    asked: dict[str, str | Path] = {}
    absent: dict[str, str] = {}
    claims = []
    for name in names:
        config = compose([f"vistrain:{name}"], overrides, start={"run": {"name": PurePosixPath(name).name}})
        root, problem = _where_it_lies(config, roots, asked)
        if root is None:
            absent.setdefault(str(config["data"].get("type")), problem)
        else:
            config = {**config, "data": {**config["data"], "root": str(root)}}
        missing = [] if root is not None else [f"data {config['data'].get('type')}"]
        if name not in owners and known[name]["parameters"]:
            missing.append(f"weights {_source(config['reference'])}")
        claims.append(Claim(name, config, root, owners.get(name), "; ".join(missing)))
    return Survey(tuple(claims), tuple(notes), absent)


def publishing() -> dict[str, dict[str, Any]]:
    """What the index says of each shipped config whose reference has a number, by name."""
    configs: dict[str, dict[str, Any]] = index.load("configs")
    return {
        name: entry for name, entry in configs.items() if {"value", "values"} & (entry.get("reference") or {}).keys()
    }


def check_all(
    found: Survey, folder: Path, *, limit: int | None = None, allow: Collection[str] = ()
) -> Iterator[tuple[Claim, Report | Exception]]:
    """Evaluate each config that can be checked; one that fails does not end the rest.

    Args:
        found: see `survey`.
        folder: for the records, `FOLDER/med/wnet_drive/reproduction.json`.
        limit: see `reproduce`.
        allow: see `reproduce`.

    Yields:
        What came out of each: its report, or what was raised.
    """
    for number, claim in enumerate(found.ready, 1):
        with_what = f" with {claim.weights}" if claim.weights else ""
        log.info("[%d/%d] %s on %s%s", number, len(found.ready), claim.leaf, claim.data, with_what)
        weights = None if claim.weights is None else str(claim.weights)
        try:
            published(claim.config["reference"])
            out: Report | Exception = reproduce(
                claim.config, weights=weights, folder=folder / claim.leaf, allow=allow, limit=limit
            )
        except VistrainError as error:
            out = error
        except Exception as error:  # a bug of ours: said in full, and the others still run
            log.exception("%s", claim.leaf)
            out = error
        log.info("[%d/%d] %s: %s", number, len(found.ready), claim.leaf, verdict(out))
        yield claim, out


def verdict(out: Report | Exception) -> str:
    """What came out of a config, in a few words."""
    return out.verdict if isinstance(out, Report) else f"failed: {out}"


def exit_code(outcomes: Collection[Report | Exception]) -> int:
    """0: all measured numbers within tolerance; 3: one outside; 2: one could not be compared, or nothing was there to
    be; 1: a bug."""
    if any(not isinstance(out, Report | VistrainError) for out in outcomes):
        return 1
    reports = [out for out in outcomes if isinstance(out, Report)]
    if not all(report.passed for report in reports):
        return 3
    return 0 if reports and len(reports) == len(outcomes) else 2


def table(found: Survey, outcomes: Mapping[str, Report | Exception]) -> Table:
    """One row for each config: what came out, or what is missing, for a Rich console."""
    from rich.table import Table

    counts = Counter("checked" if claim.leaf in outcomes else "missing something" for claim in found.claims)
    title = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    made = Table(title=f"{len(found.claims)} configs with published numbers: {title}", title_justify="left")
    for heading in ("config", "outcome, or what is missing"):
        made.add_column(heading, overflow="fold")
    for claim in sorted(found.claims, key=lambda claim: claim.leaf not in outcomes):
        out = outcomes.get(claim.leaf)
        made.add_row(claim.leaf, f"missing: {claim.missing}" if out is None else verdict(out))
    return made


def advice(found: Survey) -> list[str]:
    """Lines below the table: where data that are missing are looked for, and what files of weights are left over."""
    counts = Counter(claim.kind for claim in found.claims if claim.data is None)
    lines = [
        f"data {kind} (for {counts[kind]} configs): {problem}"
        for kind, problem in sorted(found.absent.items())
        if counts[kind]
    ]
    return [*lines, *found.notes]


# ---------------------------------------------------------------- data


def _roots(data: Sequence[Path]) -> list[Path]:
    """The folders that were named, and those in them: a set's root may be either."""
    found: list[Path] = []
    for folder in map(Path, data):
        if not folder.is_dir():
            raise DataError(str(folder), "no such folder", "give --data FOLDER, which holds data sets")
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        found += [folder, *inner]
    return list(dict.fromkeys(found))


def _where_it_lies(
    config: dict[str, Any], roots: Sequence[Path], asked: dict[str, str | Path]
) -> tuple[Path | None, str]:
    """The first folder in which a config's test images lie, or None and what its data module says of the first.

    Args:
        config: composed.
        roots: folders.
        asked: answers by what names files in the data's section; more are added.
    """
    section = config["data"]
    key = json.dumps(_texts({name: value for name, value in section.items() if name != "root"}))
    if key not in asked:
        problem: str | Path = ""
        for root in roots or [Path("FOLDER")]:
            said = _said_of(root, config)
            if not said:
                problem = root
                break
            problem = problem or said
        asked[key] = problem
    answer = asked[key]
    return (answer, "") if isinstance(answer, Path) else (None, answer)


def _said_of(root: Path, config: dict[str, Any]) -> str:
    """What a config's data module finds missing in a folder; empty: nothing."""
    level = logging.getLogger("vistrain").level
    logging.getLogger("vistrain").setLevel(logging.ERROR)  # of sets that are not there, folder by folder
    try:
        data_of({**config, "data": {**config["data"], "root": str(root)}}).recognise("test")
    except VistrainError as error:
        return str(error)
    finally:
        logging.getLogger("vistrain").setLevel(level)
    return ""


def _texts(value: Any) -> Any:
    """The texts of a section, which name folders, files and classes; numbers say how images are batched and drawn."""
    if isinstance(value, Mapping):
        return {key: _texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return value if isinstance(value, str) else None


# ---------------------------------------------------------------- weights


def _files(weights: Sequence[str | Path]) -> list[Path]:
    """The files that were named, and those of weights in the folders that were."""
    found: list[Path] = []
    for place in map(Path, weights):
        if place.is_dir():
            inner = (p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            found += sorted(p for p in inner if not any(part.startswith(".") for part in p.relative_to(place).parts))
        elif place.is_file():
            found.append(place)
        else:
            raise WeightsError(str(place), "no such file or folder", "give --weights FOLDER, which holds checkpoints")
    return list(dict.fromkeys(found))


def _owners(files: Sequence[Path], names: Collection[str]) -> tuple[dict[str, Path], list[str]]:
    """Config -> its file of weights, and lines on files that are nobody's, or of which nobody can tell whose.

    Args:
        files: of weights.
        names: of configs; others own files, too, but do not count.
    """
    known = publishing()
    stated: dict[str, list[str]] = {}
    for name, entry in known.items():
        if entry["reference"].get("sha256"):
            stated.setdefault(str(entry["reference"]["sha256"]).lower(), []).append(name)
    owners: dict[str, Path] = {}
    notes = []
    for file in files:
        try:
            fitting = stated.get(sha256(file)) or _named(file, _fitting(file, known))
        except VistrainError as error:
            notes.append(f"weights {error}")
            continue
        published_as = {str(known[name]["reference"].get("weights") or name) for name in fitting}
        if not fitting:
            notes.append(f"weights {file}: of no config that publishes a number")
        elif len(published_as) > 1:
            few = ", ".join(fitting[:_SAID]) + (f" and {len(fitting) - _SAID} more" if len(fitting) > _SAID else "")
            remedy = "name it as their reference does, or give it to one with `vistrain reproduce -c ... --weights`"
            notes.append(f"weights {file}: fits {few} - {remedy}")
        else:
            owners |= {name: file for name in fitting if name in names and name not in owners}
    return owners, notes


def _fitting(file: Path, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Configs into whose network a file's tensors go without one left over, of those that it looks most like.

    Raises:
        WeightsError: it cannot be read.
    """
    foreign, _ = find_state_dict(load_file(file, mapped=True), str(file))
    sketch = likeness.sketch(strip_prefixes(foreign, {}))
    sketches = index.load("weights")
    shares = {name: likeness.alike(sketch, sketches[name]) for name in known if sketches.get(name)}
    for share in sorted({s for s in shares.values() if s >= likeness.ALIKE}, reverse=True):
        alike = [name for name, s in shares.items() if s == share]
        free = [name for name in alike if not known[name]["reference"].get("sha256")]  # the others want their own file
        if fitting := [name for name in free if _fits(foreign, name, file)]:
            return fitting
    return []


def _fits(foreign: Mapping[str, Any], leaf: str, file: Path) -> bool:
    model = build_without_memory(compose([f"vistrain:{leaf}"]))
    own = model.state_dict()
    try:
        ours, _ = renamed(strip_prefixes(dict(foreign), own), own, model.key_maps, str(file))
    except WeightsError:
        return False
    left_out, problems = disagreements(ours, own, model.class_layers, model.scale_layers)
    return not left_out and not problems


def _named(file: Path, fitting: Sequence[str]) -> list[str]:
    """Of several configs that a file fits, those whose reference calls it by its name, if there are any."""
    known = publishing()
    called = [n for n in fitting if PurePosixPath(str(known[n]["reference"].get("weights"))).stem == file.stem]
    return called or list(fitting)


def _source(reference: Mapping[str, Any]) -> str:
    """Where a config's published weights are, for a line."""
    name, source = reference.get("weights"), reference.get("source")
    if source == "timm":
        return f"timm://{name}"
    place = str(source or (f"arXiv:{paper(reference)}" if reference.get("paper") else "its authors"))
    return f"{name} of {place}" if name else f"of {place}"


def paper(reference: Mapping[str, Any]) -> str:
    """The arXiv number of a reference, which YAML may have read as a number; empty: there is none."""
    found = reference.get("paper")
    return f"{found:.5f}" if isinstance(found, float) else str(found or "")
