"""What stands beside an exported file: how pictures become its input and its output becomes findings, as JSON and as
an example in Python that needs onnxruntime, NumPy and Pillow alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vistrain import __version__
from vistrain.data.base.transform import EvalTransform
from vistrain.network import Network
from vistrain.structures import Exported, LabelSpace, Preprocessing
from vistrain.writing import whole_file

MODES = {1: "L", 3: "RGB"}  # of PIL's pictures, by channels
BEGIN = '''\
"""Runs {name}.onnx: python {name}.py {words}. It needs onnxruntime, NumPy and Pillow alone."""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

facts = json.loads(Path(__file__).with_suffix(".json").read_text())
session = onnxruntime.InferenceSession(str(Path(__file__).with_suffix(".onnx")))
image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("{mode}")
'''
NORMALISE = """\
x = (pixels{channels} / 255 - facts["mean"]) / facts["std"]
"""
PLANES = """\
x = x.transpose(2, 0, 1)[None].astype(np.float32)
"""
PAD = """\
x = np.pad(x, [(0, -side % facts["size_divisor"]) for side in x.shape[:2]] + [(0, 0)])
"""
RUN = """\
found = {name: value[0] for name, value in zip(facts["outputs"], session.run(None, {"images": x}))}
"""
FIXED = """\
if [*x.shape[2:]] != (sides := facts["input"]["images"][2:]):
    sys.exit(f"{sys.argv[1]}: {[*x.shape[2:]]} pixels, the file takes {sides} alone")
"""
RUN_ONE = """\
sizes = {"size": np.array([pixels.shape[:2]]), "original_size": np.array([image.size[::-1]])}
found = dict(zip(facts["outputs"], session.run(None, {"images": x, **sizes})))
"""
SIZES = {
    "size": "int64 [1, 2], height and width of the image without the zeros that are padded, pixels",
    "original_size": "int64 [1, 2], the same before it was resized, for boxes in its pixels",
}


def write_facts(
    output: Path,
    model: Network,
    described: Exported,
    transform: EvalTransform | None,
    facts: Mapping[str, Any],
    form: Mapping[str, Any],
) -> list[str]:
    """Write the JSON file and, where it takes a few lines only, the example.

    Args:
        output: the exported file.
        model: the network.
        described: its outputs.
        transform: what evaluation does to an image.
        facts: of the checkpoint, `config`, `labels`, `preprocessing` and `task`, its class.
        form: of the file, see `exported.Form`.

    Returns:
        Lines that say what was written.

    Raises:
        DataError: a file cannot be written.
    """
    preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    labels = None if facts["labels"] is None else LabelSpace.from_dict(facts["labels"])
    sides = ["height", "width"] if form["is_free"] else list(form["size"])
    written = {
        "file": output.name,
        "vistrain": __version__,
        "task": facts["task"],
        "network": type(model).__name__,
        **{key: form[key] for key in ("precision", "opset", "sampling")},
        "input": {"images": [1 if described.of_one else "batch", model.channels, *sides], "type": "float32"},
        "sizes": SIZES if described.of_one else None,
        "outputs": described.outputs,
        "rule": None if transform is None else transform.to_node(),
        "brightest": 255,
        **{key: facts["preprocessing"][key] for key in ("mean", "std", "channel_order", "size_divisor")},
        "steps": "rule, channel_order, (pixels / brightest - mean) / std, zeros below and right to size_divisor",
        "classes": None if labels is None else [labels.name_of.get(k) for k in range(labels.num_classes)],
        "category_ids": None if labels is None else [labels.category_of.get(k) for k in range(labels.num_classes)],
        "metrics": list(facts["config"].get("metrics") or ()),
    }
    target = output.with_suffix(".json")
    _write(target, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    told = [f"{target}: what reaches it, and what its outputs mean"]
    lines = ("pixels = np.asarray(image)",) if transform is None else transform.in_python()
    if output.suffix != ".onnx" or not lines or not described.reading or model.channels not in MODES:
        return told
    script = output.with_suffix(".py")
    _write(script, example(output.stem, model.channels, lines, described, preprocessing, form["is_free"]))
    return [*told, f"{script}: an example that runs it"]


def example(
    name: str,
    channels: int,
    resize: tuple[str, ...],
    described: Exported,
    preprocessing: Preprocessing,
    is_free: bool,
) -> str:
    """The example's text, see `EvalTransform.in_python` and `Exported.reading`; whether sides are free."""
    reading = described.reading
    words = "PICTURE RESULT.png" if any("sys.argv[2]" in line for line in reading) else "PICTURE"
    text = BEGIN.format(name=name, words=words, mode=MODES[channels]) + "\n".join(resize) + "\n"
    if channels == 1:
        text += "pixels = pixels[..., None]\n"
    text += NORMALISE.format(channels="[..., ::-1]" if preprocessing.channel_order == "bgr" else "")
    text += PAD if preprocessing.size_divisor > 1 else ""
    text += PLANES + ("" if is_free else FIXED)
    return text + (RUN_ONE if described.of_one else RUN) + "\n".join(reading) + "\n"


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
