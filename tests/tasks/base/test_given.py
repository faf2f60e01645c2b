"""Pictures as Python callers give them: what is clear is taken, everything else is one DataError."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.errors import DataError
from vistrain.tasks.base.given import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PIXELS[0, 0] = (0, 128, 255)


def png(pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(png())
    return tmp_path / "a.png"


def test_one_picture_in_every_form(file: Path) -> None:
    data = png()
    with tempfile.NamedTemporaryFile() as temporary, open(file, "rb") as opened:
        temporary.write(data)
        temporary.seek(0)
        forms = {
            "path": file,
            "text": str(file),
            "bytes": data,
            "bytearray": bytearray(data),
            "memory": memoryview(data),
            "buffer": io.BytesIO(data),
            "open file": opened,
            "temporary file": temporary,
            "PIL": Image.open(file),
            "array": PIXELS,
            "other order in memory": np.asfortranarray(PIXELS),
            "every other of a larger one": np.repeat(PIXELS, 2, 0)[::2],
            "with alpha": np.dstack([PIXELS, PIXELS[..., :1]]),
            "float32": PIXELS.astype(np.float32) / 255,
            "float64": PIXELS / 255,
            "whole numbers": PIXELS.astype(np.float32),
            "tensor": torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()),
            "float tensor": torch.from_numpy(PIXELS.transpose(2, 0, 1) / 255).float().requires_grad_(),
            "tensor as array": torch.from_numpy(PIXELS),
        }
        for name, given in forms.items():
            pixels = read_picture(given)
            assert (pixels.dtype, pixels.flags.c_contiguous) == (np.uint8, True), name
            assert (pixels == PIXELS).all(), name
    half = torch.from_numpy(PIXELS.transpose(2, 0, 1) / 255).half()  # a half has 11 bits
    assert np.abs(read_picture(half).astype(int) - PIXELS).max() <= 1


def test_grey_pictures_get_three_channels() -> None:
    grey = PIXELS[..., 0]
    for given in (
        grey,
        grey[..., None],
        torch.from_numpy(grey.copy()),
        torch.from_numpy(grey.copy())[None],
        grey / 255,
    ):
        assert (read_picture(given) == grey[..., None]).all()
        assert read_picture(given).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "None is no picture - OpenCV gives it"),
        ([PIXELS], "a list of 1 is not one picture - predict_batch"),
        ((), "a tuple of 0 is not one picture"),
        (7, "a int is no picture - give a path"),
        ({}, "a dict is no picture"),
        (b"", "empty"),
        (b"nothing", "not an image"),
        (bytearray(b"\x89PNG\r\n\x1a\n"), "image"),
        (io.BytesIO(), "is at its end"),
        (io.StringIO("x"), "is open as text"),
        ("", ": "),
        ("no such.png", "no such image file"),
        ("a\0b.png", "is no file's name"),
        (np.zeros((0, 10), np.uint8), "has no pixels"),
        (np.zeros((4, 0, 3), np.uint8), "has no pixels"),
        (np.zeros((), np.uint8), "is not [H, W, 3] RGB"),
        (np.zeros(5, np.uint8), "is not [H, W, 3] RGB"),
        (np.zeros((4, 4, 2), np.uint8), "is not [H, W, 3] RGB"),
        (np.zeros((3, 4, 5), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "is not one picture - predict_batch"),
        (PIXELS.astype(np.float32) - 0.5, "values from -0.5 to 254.5 - floating point means 0..1"),
        (PIXELS / 254, "values from 0 to 1.00394"),
        (PIXELS.astype(np.float64) + 1, "values from 1 to 256"),
        (PIXELS / -255, "values from -1 to"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
        (np.full((4, 4, 3), np.inf), "values from inf to inf"),
        (PIXELS.astype(np.uint16), "an array uint16 [6, 8, 3] has no agreed range"),
        (PIXELS.astype(np.int64), "has no agreed range"),
        (PIXELS > 100, "an array bool"),
        (PIXELS.astype(np.complex64), "has no agreed range"),
        (PIXELS.astype(object), "an array object"),
        (np.full((4, 4, 3), "a"), "has no agreed range"),
        (torch.zeros(2, 3, 4, 4), "is not one picture"),
        (torch.zeros(3, 4, 4, device="meta"), "holds no plain values"),
        (torch.zeros(3, 4, 4).to_sparse(), "holds no plain values"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "a tensor int32 [3, 4, 4] has no agreed range"),
        (Image.new("F", (4, 4)), "mode F"),
        (Image.new("I", (4, 4)), "mode I"),
        (Image.new("RGB", (0, 4)), "has no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_everything_else_is_one_error(given: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as raised:
        read_picture(given)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_behind_a_pil_image(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))[:2000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(DataError, match=r"cut\.png: damaged image"):
        read_picture(image)
    closed = io.BytesIO(png())
    closed.close()
    with pytest.raises(DataError, match="cannot be read"):
        read_picture(closed)
