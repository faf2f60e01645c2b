"""Corpus of files that may hang, crash or exhaust the memory: each in 20 seconds and 1.5 GB above the start.

All are read by one child process, which is started anew only if one of them takes it along.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import select
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpus.corpus_files import changed, encoded, jpeg_of, patched, png_chunk, png_of, tiff_of, truth, zeros
from PIL import Image

pytestmark = pytest.mark.slow

SECONDS, MEGABYTES = 20, 1536
PATIENCE = 300  # seconds of the wall clock: the machine may be busy
GIF, BMP, WEBP = encoded("GIF"), encoded("BMP"), encoded("WEBP", lossless=True)
QUARTER_TURN = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"
SIDE = 13_000  # pixels; a square of it is just below what Pillow decodes


class Child:
    """The process that reads."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, name: str, kind: str, path: Path) -> dict[str, Any]:
        """What came of a job; the process's end is an answer, too."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, str(Path(__file__).with_name("hostile.py"))]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, kind, str(path)]) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.end()
            return {"what": "crash" if ready else "hang", "text": "", "seconds": 0, "megabytes": 0}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    process = Child()
    yield process
    process.end()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def deflated(name: str, count: int) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as member,
    ):
        for _ in range(count >> 20):
            member.write(bytes(2**20))
    return buffer.getvalue()


def array_of(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    return buffer.getvalue()


def json_of(content: Any) -> bytes:
    return json.dumps(content).encode()


def segmented(segmentation: Any, **image: Any) -> bytes:
    content = changed("annotations", area=..., segmentation=segmentation)
    content["images"][0].update(image)
    return json_of(content)


def webp_canvas(side: int) -> bytes:
    edge = struct.pack("<I", side - 1)[:3]
    body = b"WEBPVP8X\x0a\0\0\0\x12\0\0\0" + edge + edge + b"ANIM\x06\0\0\0" + bytes(6) + WEBP[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def progressive(scans: int) -> bytes:
    """A JPEG of many scans of a large image."""
    data = jpeg_of(12_000, 12_000, progressive=True)
    first = data.find(b"\xff\xda")
    scan = data[first : data.find(b"\xff\xda", first + 2)]
    return data[:-2] + scan * scans + b"\xff\xd9"


def large_jpeg(mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (14_000, 14_000)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


T6, T8 = [(322, 65536), (323, 32000), (324, 8), (325, 20)], [(322, 16384), (323, 16384), (324, 8), (325, 20)]
FAR = [1e8, 1e8, -1e8, 1e8, -1e8, -1e8]
# name -> the kind of reader, what makes the file, and what is said; None: it may be read, or refused
FILES: dict[str, tuple[str, Callable[[], bytes], str | None]] = {
    # large by their heads
    "jpeg 65500": ("image", lambda: jpeg_of(65500, 65500), "65500x65500 pixels"),
    "jpeg 65500 smaller": ("smaller", lambda: jpeg_of(65500, 65500), "65500x65500 pixels"),
    "jpeg 65500 size": ("size", lambda: jpeg_of(65500, 65500), "65500x65500 pixels"),
    "telephone size": ("size", lambda: jpeg_of(16_384, 12_288), "read"),
    "jpeg 14000": ("image", lambda: jpeg_of(14_000, 14_000), "damaged image"),
    "jpeg 14000 smaller": ("smaller", lambda: jpeg_of(14_000, 14_000), None),
    "progressive 65500": ("image", lambda: jpeg_of(65500, 65500, progressive=True), "65500x65500 pixels"),
    "progressive 12000": ("image", lambda: jpeg_of(12_000, 12_000, progressive=True), None),
    "progressive 2000 scans": ("image", lambda: progressive(2000), "more scans"),
    "progressive 2000 scans smaller": ("smaller", lambda: progressive(2000), "more scans"),
    "png 65500": ("image", lambda: png_of(65500, 65500, zeros(999)), "million pixels"),
    "png 65500 opencv": ("pixels", lambda: png_of(65500, 65500, zeros(999)), "65500x65500 pixels"),
    "png 13000 cut": ("image", lambda: png_of(SIDE, SIDE, zeros(999)), "damaged image"),
    "png 13000 cut opencv": ("pixels", lambda: png_of(SIDE, SIDE, zeros(999)), "damaged image"),
    "gif 65500": ("image", lambda: patched(GIF, 6, struct.pack("<HH", 65500, 65500)), "million pixels"),
    "gif 13000": ("image", lambda: patched(GIF, 6, struct.pack("<HH", SIDE, SIDE)), None),
    "gif frame": (
        "image", lambda: patched(GIF, GIF.find(b",", 13) + 5, struct.pack("<HH", 65500, 65500)), None
    ),
    "bmp 65500": ("image", lambda: patched(BMP, 18, struct.pack("<ii", 65500, 65500)), "million pixels"),
    "bmp 13000": ("image", lambda: patched(BMP, 18, struct.pack("<ii", SIDE, SIDE)), "damaged image"),
    "ppm 65500": ("image", lambda: b"P6 65500 65500 255\n", "million pixels"),
    "ppm 13000": ("image", lambda: b"P6 13000 13000 255\n", "damaged image"),
    "plain ppm 13000": ("image", lambda: b"P3 13000 13000 255\n" + b"1 " * 10**6, "damaged image"),
    "plain pbm": ("image", lambda: b"P1 13000 13000\n" + b"1 " * 10**6, "damaged image"),
    "ppm number": ("image", lambda: b"P6 " + b"1" * 10**7, "image"),
    "webp canvas 16384": ("image", lambda: webp_canvas(16384), None),
    "webp canvas 2 million": ("image", lambda: webp_canvas(2**21), None),
    "tiff 65500": ("image", lambda: tiff_of(65500, 65500, bytes(9)), "million pixels"),
    "tiff strips": ("image", lambda: tiff_of(65500, 2700, bytes(300)), "damaged image"),
    "tiff fax": ("image", lambda: tiff_of(65500, 2700, b"\x80" * 300, bits=1, compression=4), None),
    "tiff fax 3": ("image", lambda: tiff_of(65500, 2700, bytes(300), bits=1, compression=3), None),
    "tiff packed floats": (
        "image", lambda: tiff_of(65500, 2700, b"\x81\0" * 200, bits=32, compression=32773, kind=3), "floating-point"
    ),
    "tiff packed": (
        "image", lambda: tiff_of(65500, 2700, b"\x81\0" * 200, bits=32, compression=32773, kind=2), "damaged image"
    ),
    "tiff lzw": (
        "image", lambda: tiff_of(65500, 2700, b"\x80\0\x20\x50\x38\x24\x16" * 30, bits=16, compression=5), "damaged"
    ),
    "tiff tiles": ("image", lambda: tiff_of(100, 100, zeros(999), compression=8, more=tuple(T6)), "tiles are far"),
    "tiff tiles 16384": ("image", lambda: tiff_of(99, 99, zeros(999), compression=8, more=tuple(T8)), "tiles are far"),
    "tiff of itself": ("image", lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", None),
    "tiff many tags": ("image", lambda: b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\4\0\xff\xff\xff\x7f\0\0\0\0" * 9999, None),
    # large by their content
    "png 13000 whole": ("image", lambda: png_of(SIDE, SIDE, zeros(SIDE * (3 * SIDE + 1))), None),
    "png 13000 whole opencv": ("pixels", lambda: png_of(SIDE, SIDE, zeros(SIDE * (3 * SIDE + 1))), None),
    "png 16 bits": ("image", lambda: png_of(SIDE, SIDE, zeros(SIDE * (2 * SIDE + 1)), bits=16, colour=0), None),
    "png text": (
        "image", lambda: png_of(9, 9, zeros(999), chunks=png_chunk(b"zTXt", b"a\0\0" + zeros(2**28))), "damaged image"
    ),
    "png profile": (
        "image", lambda: png_of(9, 9, zeros(999), chunks=png_chunk(b"iCCP", b"a\0\0" + zeros(2**28))), None
    ),
    "png many texts": ("image", lambda: png_of(9, 9, zeros(999), chunks=png_chunk(b"tEXt", b"a\0b") * 10**5), None),
    "tiff deflated": (
        "image", lambda: tiff_of(65500, 2700, zeros(65500 * 2700 * 2), bits=16, compression=8), None
    ),
    "telephone": ("image", lambda: large_jpeg("L"), "read"),
    "telephone in colour": ("image", lambda: large_jpeg("RGB"), "read"),
    "telephone upright": ("image", lambda: large_jpeg("L", exif=QUARTER_TURN), "read"),
    # annotations
    "polygon": ("annotations", lambda: segmented([FAR]), "polygon reaches"),
    "polygons": ("annotations", lambda: segmented([FAR] * 1000), "polygon reaches"),
    "polygon of 1e308": ("annotations", lambda: segmented([[0, 0, 1e308, 0, 0, -1e308]]), "polygon reaches"),
    "polygon in a giant": ("annotations", lambda: segmented([FAR], width=46_000, height=46_000), "polygon reaches"),
    "outline": ("annotations", lambda: segmented([[0, 0, 100, 60] * 10**5]), "outline"),
    "outlines": ("annotations", lambda: segmented([[0, 0, 100, 60, 0, 60]] * 10**5), "outline"),
    "infinite width": ("annotations", lambda: json_of(changed("images", width=float("inf"))), "width is inf"),
    "width of 1e300": ("annotations", lambda: json_of(changed("images", width=1e300)), "width is 1e+300"),
    "giant image": ("annotations", lambda: json_of(changed("images", width=10**6, height=10**6)), "more than any"),
    "compressed runs": (
        "annotations", lambda: segmented({"size": [60, 100], "counts": "o" * 10**6}), "do not add up"
    ),
    "compressed runs far": (
        "annotations", lambda: segmented({"size": [60, 100], "counts": "ooooo0" * 1000}), "do not add up"
    ),
    "runs far": ("annotations", lambda: segmented({"size": [60, 100], "counts": [2**40]}), "do not add up"),
    "runs of a giant": (
        "annotations",
        lambda: segmented({"size": [46_000, 46_000], "counts": [46_000**2]}, width=46_000, height=46_000),
        "read",
    ),
    "id of 10,000 digits": ("annotations", lambda: b'{"images": [{"id": ' + b"9" * 10**4 + b"}]}", "not valid JSON"),
    "deep": ("annotations", lambda: b"[" * 10**6, "nested too deeply"),
    "many images": (
        "annotations", lambda: json_of({**truth(), "images": [{"id": "x"}] * 10**5}), "more faults"
    ),
    # weights
    "zip of 1 GiB": ("weights", lambda: deflated("archive/data.pkl", 2**30), "unpacks to 1.0 GiB"),
    "npz of 1 GiB": ("weights", lambda: deflated("a.npy", 2**30), "unpacks to 1.0 GiB"),
    "npz claims 4 TB": ("weights", lambda: array_of((10**6, 10**6)), "is damaged"),
    "npz claims texts": ("weights", lambda: array_of((9,), "<U500000000"), "is damaged"),
    "expanded": (
        "weights", lambda: saved({"weight": torch.ones(1).expand(10**7, 10**7), "bias": torch.ones(3)}), "but holds"
    ),
    "memo": ("weights", lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "no state dict"),
    "memos": (
        "weights",
        lambda: b"\x80\x02}" + b"".join(b"r" + struct.pack("<I", 2**31 - 1 - n) for n in range(999)) + b".",
        "no state dict",
    ),
    "bytes of 2**47": ("weights", lambda: b"\x80\x04\x8e\xff\xff\xff\xff\xff\x7f\0\0.", "is damaged"),
    "doubled": ("weights", lambda: pickle.dumps(doubled(60)), "nested more than"),
    "doubled, torch": ("weights", lambda: saved(doubled(60)), "no state dict"),
    "safetensors head": ("weights", lambda: struct.pack("<Q", 2**31) + b"{" + bytes(99), "is damaged"),
    "legacy storage": ("weights", lambda: legacy(10**13), "is damaged"),
}  # fmt: skip


def doubled(levels: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(levels):
        content = {"model": content, "state_dict": content}
    return content


def legacy(count: int) -> bytes:
    """A file of torch's old format whose storage claims many values."""
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3, 3)}, buffer, _use_new_zipfile_serialization=False)
    place = buffer.getvalue().find(b"K\x09")
    assert place > 0
    return buffer.getvalue()[:place] + b"\x8a\x08" + struct.pack("<q", count) + buffer.getvalue()[place + 2 :]


def judge(answer: dict[str, Any], path: Path, said: str | None) -> None:
    assert answer["what"] in ("error", "read"), answer
    assert answer["seconds"] <= SECONDS, answer
    assert answer["megabytes"] <= MEGABYTES, answer
    if answer["what"] == "error":
        assert str(path) in answer["text"]
        assert "\n" not in answer["text"]
    if said is not None:
        assert answer["what"] == ("read" if said == "read" else "error"), answer
        assert said == "read" or said in answer["text"]


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_bounded(tmp_path: Path, child: Child, name: str) -> None:
    kind, make, said = FILES[name]
    path = tmp_path / ("file.jpg" if kind in ("image", "smaller", "pixels", "size") else "file")
    path.write_bytes(make())
    judge(child.ask(name, kind, path), path, said)
    path.unlink()  # the temporary folder keeps what is large otherwise


@pytest.mark.parametrize("kind", ["image", "pixels", "smaller", "size", "weights", "annotations", "shards"])
@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/dev/urandom", "loop", "holes"])
def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path, child: Child, kind: str, what: str) -> None:
    path = tmp_path / ("shard-index.npz" if kind == "shards" else "file.jpg")
    if what == "pipe":
        os.mkfifo(path)
    elif what == "holes":
        with open(path, "wb") as file:
            file.truncate(2**36)
    else:
        path.symlink_to(path if what == "loop" else what)
    answer = child.ask(what, kind, tmp_path if kind == "shards" else path)
    judge(answer, path, "")
    path.unlink()


def test_masks_of_a_sample_are_bounded() -> None:
    """Where masks are trained on, each is decoded by the same checks."""
    from vistrain.metrics.coco_masks import run_lengths

    rng = np.random.default_rng(0)
    for _ in range(300):
        text = bytes(rng.integers(48, 112, int(rng.integers(0, 40)), dtype=np.uint8))
        lengths = run_lengths(text)
        assert lengths is None or lengths.dtype == np.int64
