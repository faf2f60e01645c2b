"""Files in, JSON and pictures out, from a checkpoint alone, for every task."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from vistrain.errors import ConfigError, DataError
from vistrain.tasks.base.inputs import RECORD, InputFile
from vistrain.tasks.base.predictor import Predictor
from vistrain.writing import json_line, whole_file

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What `predict_paths` did.

    Attributes:
        output: the folder.
        entries: the inputs that were looked at, as `predictions.json` has them.
        failed: name and reason of each input that could not be read, or is too large for the memory.
        unwritten: file and reason of each picture that could not be written.
        alone: whether there is one input.
    """

    output: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    unwritten: list[tuple[str, str]] = field(default_factory=list)
    alone: bool = False


def load_predictor(
    checkpoint: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    allow: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    **options: Any,
) -> Predictor[Any]:
    """Rebuild the predictor of a checkpoint; neither config nor data set is needed. Or that of official weights.

    Args:
        checkpoint: a file that training wrote, or several, whose mean the task predicts; or None, and
        config: a composed config, for the network of
        weights: an official checkpoint.
        device: see `Predictor`.
        allow: packages beyond the default ones whose classes the config may name.
        options: of the task (`threshold`, `tile`); None counts as not given.

    Raises:
        ConfigError, WeightsError: something is the user's to mend.
    """
    from vistrain import run  # imports Lightning: a predictor built by hand does without

    others = []
    if checkpoint is not None:
        first, *more = [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint
        model, facts = run.load(first, allow)
        for file in more:
            other, known = run.load(file, allow)
            for key in ("labels", "evaluation"):
                if known[key] != facts[key]:
                    raise ConfigError("--ckpt", f"{file} has other {key} than {first}", "average networks of one kind")
            others.append(other)
    elif config is not None:
        run.task_class(config, allow).predictor.chosen(**options)  # before data is read, or generated, for its classes
        model, facts = run.load_official(dict(config), weights, allow)
    else:
        raise ConfigError("predict", "no network", "give --ckpt FILE, or --config FILE with --weights FILE")
    task = run.task_class(facts["config"], allow)
    if inspect.isabstract(task.predictor):
        raise ConfigError("predict", f"{task.__name__} does not predict")
    predictor = task.predictor.from_facts(model, facts, device, allow, **options)
    if others:
        predictor.average_with(others)
    return predictor


def predict_paths(
    checkpoint: str | Path | Sequence[str | Path] | None,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    batch_size: int = 1,
    device: str = "auto",
    save_json: bool = True,
    save_pictures: bool = True,
    allow: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    **options: Any,
) -> Summary:
    """Run a network on files and write what comes out.

    Into `output` go `predictions.json` (per input: id, file, size and what was found), pictures of what was found, or
    what was made of the inputs, under their relative paths, and what the task's predictor writes beside these. An input
    that cannot be read is named, skipped and counted; so is a picture that cannot be written. Where a run is stopped,
    what was found until then is written.

    Args:
        checkpoint: a file that training wrote, or several, see `load_predictor`; nothing else is needed.
        inputs: a file, a folder (searched for inputs of the task, with the folders in it), a pattern such as
            `photos/**/*.png`, or several of these.
        output: folder, made if needed.
        batch_size: inputs at a time.
        device: see `Predictor`.
        save_json, save_pictures: what to write.
        allow, config, weights, options: see `load_predictor`.

    Raises:
        DataError: there is no input, none can be read, or the results cannot be written.
        ConfigError, WeightsError: the arguments or the checkpoint are wrong.
    """
    if batch_size < 1:
        raise ConfigError("--batch-size", f"{batch_size} is too small", "use 1 or more")
    predictor = load_predictor(checkpoint, device, allow, config, weights, **options)
    files = predictor.find([inputs] if isinstance(inputs, str | Path) else inputs, Path(output))
    return predict_files(predictor, files, Path(output), batch_size, save_json, save_pictures)


def predict_files(
    predictor: Predictor[Any],
    files: Sequence[InputFile],
    output: Path,
    batch_size: int = 1,
    save_json: bool = True,
    save_pictures: bool = True,
) -> Summary:
    """As `predict_paths`, with a predictor and files that are there already."""
    summary, noun = Summary(output, alone=len(files) == 1), predictor.noun
    targets = predictor.picture_paths(files, output / predictor.pictures) if save_pictures else []
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(str(output), f"cannot be written ({error.strerror or error})") from error
    try:
        _predict_all(predictor, files, targets, batch_size, summary)
    except BaseException:  # Ctrl-C, too: what has been found so far is kept
        if save_json and summary.entries:
            with contextlib.suppress(DataError):
                _write_json(predictor, summary)
                log.warning("stopped after %d of %d %ss: %s", len(summary.entries), len(files), noun, output)
        raise
    if save_json:
        _write_json(predictor, summary)
    if summary.failed and not summary.entries:
        name, reason = summary.failed[0]
        raise DataError(
            name, f"is one of {len(files)} {noun}s, none of which can be read" if len(files) > 1 else reason
        )
    if summary.unwritten and len(summary.unwritten) == len(summary.entries):
        raise DataError(summary.unwritten[0][0], summary.unwritten[0][1] + ", nor any other picture")
    skipped = f", {len(summary.failed)} {noun}s skipped" if summary.failed else ""
    skipped += f", {len(summary.unwritten)} pictures could not be written" if summary.unwritten else ""
    log.info("%d %ss, %s%s: %s", len(summary.entries), noun, predictor.sentence(summary.entries), skipped, output)
    return summary


def _predict_all(
    predictor: Predictor[Any], files: Sequence[InputFile], targets: Sequence[Path], batch_size: int, summary: Summary
) -> None:
    """Fills the summary, and writes pictures where there are targets for them."""
    ids: dict[int | str, str] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predicting", total=len(files))
        for start in range(0, len(files), batch_size):
            chunk = range(start, min(start + batch_size, len(files)))
            inputs = {i: found for i in chunk if (found := _read(predictor, files[i], ids, summary)) is not None}
            for i, result in _results(predictor, files, inputs, summary):
                said = predictor.describe(inputs[i], result)
                summary.entries.append({"id": predictor.input_id(files[i]), "file": files[i].name, **said})
                if targets:
                    _write_picture(predictor, files[i], inputs[i], result, targets[i], summary)
            progress.advance(bar, len(chunk))


def _read(predictor: Predictor[Any], file: InputFile, ids: dict[int | str, str], summary: Summary) -> Any:
    """An input, or None: it cannot be read, or another has its id."""
    try:
        number = predictor.input_id(file)
        if number in ids:
            raise DataError(file.name, f"would be the same image as {ids[number]} (id {number})", "predict each once")
        found = predictor.read(file.path)
    except (DataError, MemoryError) as error:
        _skip(file, error, summary)
        return None
    ids[number] = file.name
    return found


def _results(
    predictor: Predictor[Any], files: Sequence[InputFile], inputs: Mapping[int, Any], summary: Summary
) -> Iterator[tuple[int, Any]]:
    """The number and result of each input; where a batch fails, of each alone, and what fails alone is skipped."""
    try:
        yield from zip(inputs, predictor.predict_batch(list(inputs.values())), strict=True)
    except (DataError, MemoryError, RuntimeError) as error:
        if not _is_of_input(error):
            raise
        if len(inputs) == 1:
            _skip(files[next(iter(inputs))], error, summary)
            return
    else:
        return
    for i, given in inputs.items():
        yield from _results(predictor, files, {i: given}, summary)


def _is_of_input(error: BaseException) -> bool:
    """Whether an error is of one input, and others may do without it."""
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
    return no_memory or isinstance(error, DataError)


def _skip(file: InputFile, error: BaseException, summary: Summary) -> None:
    reason = error.problem if isinstance(error, DataError) else "too large for the memory"
    if not summary.alone:  # else it is what ends the command
        log.warning("skipped: %s", error if isinstance(error, DataError) else f"{file.name}: {reason}")
    summary.failed.append((file.name, reason))


def _write_picture(
    predictor: Predictor[Any], file: InputFile, given: Any, result: Any, target: Path, summary: Summary
) -> None:
    try:
        predictor.write_picture(file, given, result, target)
    except (DataError, MemoryError) as error:
        reason = error.problem if isinstance(error, DataError) else "too large for the memory"
        log.warning("not written: %s: %s", target, reason)
        summary.unwritten.append((str(target), reason))


def _write_json(predictor: Predictor[Any], summary: Summary) -> None:
    """Lists one item a line: to be read by people, too."""

    def text(value: Any) -> str:
        return (
            "[" + ",".join(f"\n {json_line(v)}" for v in value) + "\n]" if isinstance(value, list) else json_line(value)
        )

    content = {**predictor.header(), "images": summary.entries}
    for key, found in (("failed", summary.failed), ("unwritten", summary.unwritten)):
        if found or key == "failed":
            content[key] = [{"file": name, "reason": reason} for name, reason in found]
    with whole_file(summary.output / RECORD) as partial:
        lines = ",\n".join(f'"{key}": {text(value)}' for key, value in content.items())
        partial.write_text("{" + lines + "}\n", encoding="utf-8")
    predictor.write(summary.entries, summary.output)
