"""Objects in pictures, from a checkpoint alone: files in, JSON and annotated pictures out."""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from torch import nn

from vistrain.data.collate import Sample, collate
from vistrain.data.images import read_image
from vistrain.data.transforms import EvalResize
from vistrain.errors import ConfigError, DataError
from vistrain.files import whole_file
from vistrain.metrics.files import write_results
from vistrain.pictures import class_colours, draw_boxes
from vistrain.structures import Detections, LabelSpace, Preprocessing

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
PICTURES = "pictures"  # folder below the output


class Predictor:
    """A network with everything around it: any picture in, boxes in its own coordinates out.

    Args:
        model: a detector (`predict(batch) -> list[Detections]`); it is moved to the device and put in evaluation mode.
        labels: of the checkpoint.
        preprocessing: of the checkpoint.
        resize: the evaluation resize.
        device: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1`, `mps` ...

    Raises:
        ConfigError: there is no such device.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: LabelSpace,
        preprocessing: Preprocessing,
        resize: EvalResize,
        device: str = "auto",
    ) -> None:
        self.labels, self.preprocessing, self.resize = labels, preprocessing, resize
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()

    def predict(self, image: str | Path | np.ndarray | Image.Image) -> Detections:
        """The objects of one picture.

        Args:
            image: a file or a PIL image (its EXIF orientation is respected), or uint8 `[H, W, 3]` (RGB) or `[H, W]`.

        Returns:
            Boxes in pixels of the upright picture, best first, on the CPU; all that the network gives, down to its
            lowest score.

        Raises:
            DataError: the file cannot be read, or the picture is of another kind.
        """
        return self.predict_batch([_pixels(image)])[0]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """As `predict`, for several uint8 `[H, W, 3]` pictures at a time; they are padded to one size.

        Padding can change a score in its third digit, so one at a time is what evaluation does.
        """
        if not images:
            return []
        samples = [Sample(self.resize(image), i, (image.shape[0], image.shape[1])) for i, image in enumerate(images)]
        batch = collate(samples, self.preprocessing.size_divisor)
        moved = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        found: list[Detections] = self.model.predict(moved)  # type: ignore[operator]
        return [Detections(d.boxes.float().cpu(), d.scores.float().cpu(), d.labels.cpu()) for d in found]

    def select(self, detections: Detections, threshold: float = 0.3) -> Detections:
        """Those of at least this score, without what is not finite and what no class is named for (COCO's raw ids)."""
        named = torch.tensor(list(self.labels.name_of), dtype=torch.int64)
        kept = (
            (detections.scores >= threshold) & detections.boxes.isfinite().all(1) & torch.isin(detections.labels, named)
        )
        return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])

    def draw(self, image: np.ndarray, detections: Detections, threshold: float = 0.3) -> np.ndarray:
        """A copy of a uint8 `[H, W, 3]` picture with its detections of at least this score, in stable colours."""
        shown = self.select(detections, threshold)
        names, colours = self.labels.name_of, class_colours(self.labels)
        return draw_boxes(image, shown.boxes, shown.labels, shown.scores, names, colours=colours)


@dataclass(frozen=True)
class ImageFile:
    """A picture to look at.

    Attributes:
        path: where it is.
        name: relative path below what was asked for, with `/`; no two files share one.
    """

    path: Path
    name: str


@dataclass
class Summary:
    """What `predict_paths` did.

    Attributes:
        output: the folder.
        images: pictures that were looked at.
        detections: objects that were found in them.
        failed: name and reason of each picture that could not be read.
    """

    output: Path
    images: int = 0
    detections: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def load_predictor(checkpoint: str | Path, device: str = "auto", allow: Collection[str] = ()) -> Predictor:
    """Rebuild network, classes and preprocessing from a checkpoint; neither config nor data set is needed.

    Args:
        checkpoint: a file that training wrote.
        device: see `Predictor`.
        allow: packages beyond the default ones whose classes the checkpoint's config may name.

    Raises:
        ConfigError, WeightsError: something is the user's to mend.
    """
    from vistrain import run  # imports Lightning: a predictor built by hand does without
    from vistrain.building import build
    from vistrain.data import CocoDetection

    model, facts = run.load(checkpoint, allow)
    labels, preprocessing = LabelSpace.from_dict(facts["labels"]), Preprocessing.from_dict(facts["preprocessing"])
    # The data module knows the evaluation resize; constructing it touches no files
    data = build(facts["config"]["data"], CocoDetection, where="data", allow=allow)
    data.preprocessing = preprocessing
    return Predictor(model, labels, preprocessing, data.eval_resize, device)


def predict_paths(
    checkpoint: str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    threshold: float = 0.3,
    batch_size: int = 1,
    device: str = "auto",
    save_json: bool = True,
    save_pictures: bool = True,
    allow: Collection[str] = (),
) -> Summary:
    """Find objects in files and write what was found.

    Into `output` go `predictions.json` (per picture: file, size and detections with class name, category id, score and
    box in both notations), `coco_results.json` (the same as a COCO results list, whose `image_id` is the picture's `id`
    in `predictions.json`) and `pictures/` (the inputs with boxes, under their relative paths). A picture that cannot be
    read is named, skipped and counted.

    Args:
        checkpoint: a file that training wrote; nothing else is needed.
        inputs: a file, a folder (searched for pictures, with the folders in it), a pattern such as `photos/**/*.png`,
            or several of these.
        output: folder, made if needed.
        threshold: detections with lower scores are left out everywhere; 0 keeps all.
        batch_size: pictures at a time.
        device: see `Predictor`.
        save_json, save_pictures: what to write.
        allow: see `load_predictor`.

    Raises:
        DataError: there is no picture, none can be read, or the results cannot be written.
        ConfigError, WeightsError: the arguments or the checkpoint are wrong.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError("--threshold", f"{threshold} is not in 0..1")
    if batch_size < 1:
        raise ConfigError("--batch-size", f"{batch_size} is too small", "use 1 or more")
    files = find_images([inputs] if isinstance(inputs, str | Path) else inputs, exclude=Path(output, PICTURES))
    predictor = load_predictor(checkpoint, device, allow)
    return predict_files(predictor, files, Path(output), threshold, batch_size, save_json, save_pictures)


def predict_files(
    predictor: Predictor,
    files: Sequence[ImageFile],
    output: Path,
    threshold: float = 0.3,
    batch_size: int = 1,
    save_json: bool = True,
    save_pictures: bool = True,
) -> Summary:
    """As `predict_paths`, with a predictor and files that are there already."""
    summary = Summary(output)
    entries: list[dict[str, Any]] = []
    targets = _picture_paths(files, output / PICTURES) if save_pictures else []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predicting", total=len(files))
        for start in range(0, len(files), batch_size):
            chunk = range(start, min(start + batch_size, len(files)))
            images = {i: image for i in chunk if (image := _read(files[i], summary)) is not None}
            for i, found in zip(images, predictor.predict_batch(list(images.values())), strict=True):
                found = predictor.select(found, threshold)
                entry = _entry(i + 1, files[i].name, images[i], found, predictor.labels)
                entries.append(entry)
                summary.images += 1
                summary.detections += len(entry["detections"])
                if save_pictures:
                    _save_picture(predictor.draw(images[i], found, threshold), targets[i])
            progress.advance(bar, len(chunk))
    if save_json:
        _write_json(entries, summary, predictor.labels, threshold)
    if summary.failed and not summary.images:
        name, reason = summary.failed[0]
        raise DataError(name, f"{reason} - and no other picture could be read" if len(files) > 1 else reason)
    skipped = f", {len(summary.failed)} pictures skipped" if summary.failed else ""
    log.info(
        "%d pictures, %d objects of score >= %g%s: %s", summary.images, summary.detections, threshold, skipped, output
    )
    return summary


def find_images(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[ImageFile]:
    """The pictures that files, folders and patterns name, each once, sorted by name.

    Args:
        inputs: a folder is searched with the folders in it, for the usual suffixes, without hidden files; a pattern
            knows `*`, `?`, `[...]` and `**`.
        exclude: a folder to leave out when searching one around it (pictures of an earlier run).

    Raises:
        DataError: an input does not exist, or holds no picture.
    """
    found: dict[Path, None] = {}
    bases: list[Path] = []
    for one in inputs:
        base, paths = _expand(str(one), exclude)
        bases.append(Path(os.path.abspath(base)))
        found.update(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))
    root = Path(os.path.commonpath(bases)) if bases else Path()
    names = {path: path.relative_to(root).as_posix() for path in found}
    return [ImageFile(path, name) for path, name in sorted(names.items(), key=lambda item: _natural(item[1]))]


def choose_device(name: str) -> torch.device:
    """The device that a name stands for.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch has no common error for this; a CPU-only build raises AssertionError for cuda
        reason = str(error).partition("\n")[0]
        raise ConfigError("--device", f"{name!r} is not available ({reason})", "use 'auto' or 'cpu'") from error
    return device


def _pixels(image: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image, apply_exif=True)
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise DataError("image", f"PIL mode {image.mode} has no agreed range", "convert it to 8 bits")
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype == np.uint8 and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError("image", f"{image.dtype} {list(image.shape)} is not uint8 [H, W, 3] or [H, W]")
    return np.ascontiguousarray(image)


def _read(file: ImageFile, summary: Summary) -> np.ndarray | None:
    try:
        return read_image(file.path, apply_exif=True)
    except DataError as error:
        log.warning("skipped: %s", error)
        summary.failed.append((file.name, error.problem))
        return None


def _entry(number: int, name: str, image: np.ndarray, found: Detections, labels: LabelSpace) -> dict[str, Any]:
    """One picture of `predictions.json`."""
    detections = []
    columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
    for (x1, y1, x2, y2), score, label in zip(*columns, strict=True):
        detections.append(
            {
                "name": labels.name_of[label],
                "category_id": labels.category_of[label],
                "score": score,
                "box_xyxy": [x1, y1, x2, y2],
                "box_xywh": [x1, y1, x2 - x1, y2 - y1],
            }
        )
    return {"id": number, "file": name, "width": image.shape[1], "height": image.shape[0], "detections": detections}


def _write_json(entries: Sequence[dict[str, Any]], summary: Summary, labels: LabelSpace, threshold: float) -> None:
    def rows(items: Sequence[Any]) -> str:  # one a line: to be read by people, too
        return "[" + ",".join(f"\n {json.dumps(item, ensure_ascii=False)}" for item in items) + "\n]"

    categories = [{"id": i, "name": n} for i, n in zip(labels.ids, labels.names, strict=True)]
    failed = [{"file": name, "reason": reason} for name, reason in summary.failed]
    parts = {"threshold": json.dumps(threshold), "categories": rows(categories), "images": rows(entries)}
    parts["failed"] = rows(failed)
    with whole_file(summary.output / "predictions.json") as partial:
        text = ",\n".join(f'"{key}": {value}' for key, value in parts.items())
        partial.write_text("{" + text + "}\n", encoding="utf-8")
    results = (
        {"image_id": entry["id"], "category_id": d["category_id"], "bbox": d["box_xywh"], "score": d["score"]}
        for entry in entries
        for d in entry["detections"]
    )
    write_results(results, summary.output / "coco_results.json")


def _picture_paths(files: Sequence[ImageFile], folder: Path) -> list[Path]:
    """Where the annotated pictures go: JPEG stays JPEG, all else becomes PNG; no two are the same, none is an input.

    Raises:
        DataError: an annotated picture would replace an input.
    """
    taken: set[str] = set()
    inputs = {os.path.realpath(file.path) for file in files}
    paths = []
    for file in files:
        name = file.name if Path(file.name).suffix.lower() in (*JPEG_SUFFIXES, ".png") else f"{file.name}.png"
        while name.lower() in taken:  # lower: some file systems do not tell `A.png` from `a.png`
            name = f"{Path(name).with_suffix('')}_{Path(name).suffix}"
        taken.add(name.lower())
        paths.append(folder / name)
        if os.path.realpath(paths[-1]) in inputs:
            raise DataError(str(paths[-1]), "the annotated picture would replace an input", "choose another --output")
    return paths


def _save_picture(image: np.ndarray, path: Path) -> None:
    is_jpeg = path.suffix.lower() in JPEG_SUFFIXES
    with whole_file(path) as partial:
        Image.fromarray(image).save(partial, **({"format": "JPEG", "quality": 92} if is_jpeg else {"format": "PNG"}))


def _expand(given: str, exclude: Path | None) -> tuple[Path, list[Path]]:
    """The base that relative names start from, and the pictures."""
    path = Path(given).expanduser()
    if path.is_dir():
        around = exclude is not None and not path.resolve().is_relative_to(exclude.resolve())
        paths = list(_walk(path, exclude if around else None))
        if not paths:
            raise DataError(
                given, "holds no pictures", f"looked for {', '.join(SUFFIXES)}, in the folders below as well"
            )
        return path, paths
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(str(path)):
        raise DataError(given, "no such file or folder", "give a picture, a folder, or a pattern in quotes")
    matches = [Path(m) for m in glob.glob(str(path), recursive=True)]
    paths = [p for p in matches if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(given, f"none of the {len(matches)} matches is a picture" if matches else "nothing matches")
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])), paths


def _walk(folder: Path, exclude: Path | None) -> Iterator[Path]:
    left_out = exclude.resolve() if exclude else None
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and Path(parent, f).resolve() != left_out)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `image2` before `image10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]
