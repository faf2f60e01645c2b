"""Files in, JSON and pictures out, from a checkpoint alone, for every task."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vistrain.errors import ConfigError, DataError
from vistrain.tasks.base.inputs import InputFile
from vistrain.tasks.base.predictor import Predictor
from vistrain.writing import whole_file

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What `predict_paths` did.

    Attributes:
        output: the folder.
        entries: the inputs that were looked at, as `predictions.json` has them.
        failed: name and reason of each input that could not be read.
    """

    output: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


def load_predictor(
    checkpoint: str | Path | None = None,
    device: str = "auto",
    allow: Collection[str] = (),
    config: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    **options: Any,
) -> Predictor[Any]:
    """Rebuild the predictor of a checkpoint; neither config nor data set is needed. Or that of official weights.

    Args:
        checkpoint: a file that training wrote; or None, and
        config: a composed config, for the network of
        weights: an official checkpoint.
        device: see `Predictor`.
        allow: packages beyond the default ones whose classes the config may name.
        options: of the task (`threshold`, `tile`); None counts as not given.

    Raises:
        ConfigError, WeightsError: something is the user's to mend.
    """
    from vistrain import run  # imports Lightning: a predictor built by hand does without

    if checkpoint is not None:
        model, facts = run.load(checkpoint, allow)
    elif config is not None:
        model, facts = run.load_official(dict(config), weights, allow)
    else:
        raise ConfigError("predict", "no network", "give --ckpt FILE, or --config FILE with --weights FILE")
    task = run.task_class(facts["config"], allow)
    if inspect.isabstract(task.predictor):
        raise ConfigError("predict", f"{task.__name__} does not predict")
    return task.predictor.from_facts(model, facts, device, allow, **options)


def predict_paths(
    checkpoint: str | Path | None,
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

    Into `output` go `predictions.json` (per input: file, size and what was found), pictures of what was found, or what
    was made of the inputs, under their relative paths, and what the task's predictor writes beside these. An input that
    cannot be read is named, skipped and counted.

    Args:
        checkpoint: a file that training wrote; nothing else is needed.
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
    summary, noun = Summary(output), predictor.noun
    targets = predictor.picture_paths(files, output / predictor.pictures) if save_pictures else []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predicting", total=len(files))
        for start in range(0, len(files), batch_size):
            chunk = range(start, min(start + batch_size, len(files)))
            inputs = {i: found for i in chunk if (found := _read(predictor, files[i], summary)) is not None}
            for i, result in zip(inputs, predictor.predict_batch(list(inputs.values())), strict=True):
                said = predictor.describe(inputs[i], result)
                summary.entries.append({"id": i + 1, "file": files[i].name, **said})
                if save_pictures:
                    predictor.write_picture(files[i], inputs[i], result, targets[i])
            progress.advance(bar, len(chunk))
    if save_json:
        _write_json(predictor.header(), summary)
        predictor.write(summary.entries, output)
    if summary.failed and not summary.entries:
        name, reason = summary.failed[0]
        raise DataError(name, f"{reason} - and no other {noun} could be read" if len(files) > 1 else reason)
    skipped = f", {len(summary.failed)} {noun}s skipped" if summary.failed else ""
    log.info("%d %ss, %s%s: %s", len(summary.entries), noun, predictor.sentence(summary.entries), skipped, output)
    return summary


def _read(predictor: Predictor[Any], file: InputFile, summary: Summary) -> Any:
    """An input, or None: it cannot be read."""
    try:
        return predictor.read(file.path)
    except DataError as error:
        log.warning("skipped: %s", error)
        summary.failed.append((file.name, error.problem))
        return None


def _write_json(header: Mapping[str, Any], summary: Summary) -> None:
    """Lists one item a line: to be read by people, too."""

    def text(value: Any) -> str:
        if not isinstance(value, list):
            return json.dumps(value, ensure_ascii=False)
        return "[" + ",".join(f"\n {json.dumps(item, ensure_ascii=False)}" for item in value) + "\n]"

    failed = [{"file": name, "reason": reason} for name, reason in summary.failed]
    content = {**header, "images": summary.entries, "failed": failed}
    with whole_file(summary.output / "predictions.json") as partial:
        lines = ",\n".join(f'"{key}": {text(value)}' for key, value in content.items())
        partial.write_text("{" + lines + "}\n", encoding="utf-8")
