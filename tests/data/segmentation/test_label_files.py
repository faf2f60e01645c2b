"""Label files: every kind that users have is read as what it stores, and what is wrong is named, with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistrain.data.segmentation.known_sets import voc_colour
from vistrain.data.segmentation.label_files import (
    ClassList,
    LabelRule,
    read_classes,
    read_label_file,
    stored_values,
)
from vistrain.errors import ConfigError, DataError

VALUES = np.array([[0, 1, 2], [3, 1, 255]], np.uint8)
COLOURS = ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_values_come_out_as_they_are_stored(tmp_path):
    grey = save(tmp_path / "grey.png", VALUES)
    np.testing.assert_array_equal(read_label_file(grey), VALUES)
    palette = Image.fromarray(VALUES)
    palette.putpalette([c for i in range(256) for c in voc_colour(i)])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_file(tmp_path / "palette.png"), VALUES)
    wide = save(tmp_path / "wide.png", VALUES.astype(np.uint16) * 200)
    np.testing.assert_array_equal(read_label_file(wide), VALUES.astype(np.int32) * 200)
    save(tmp_path / "bits.png", (VALUES > 1).astype(np.uint8) * 255, "1")
    np.testing.assert_array_equal(read_label_file(tmp_path / "bits.png"), VALUES > 1)
    np.testing.assert_array_equal(read_label_file(save(tmp_path / "three.png", VALUES, "RGB")), VALUES)
    np.testing.assert_array_equal(read_label_file(save(tmp_path / "alpha.png", VALUES, "LA")), VALUES)
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(read_label_file(save(tmp_path / "colour.png", colour, "RGBA")), colour)
    np.testing.assert_array_equal(read_label_file(save(tmp_path / "grey.tif", VALUES)), VALUES)


def test_what_is_no_label_file_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(VALUES.astype(np.float32)).save(tmp_path / "float.tif")
    said = {"empty.png": "empty", "text.png": "not an image", "cut.png": "damaged", "float.tif": "floating-point"}
    for name, problem in {**said, "none.png": "no such"}.items():
        with pytest.raises(DataError, match=problem) as caught:
            read_label_file(tmp_path / name)
        assert name in str(caught.value)


def rule(*values: int, **arguments) -> LabelRule:
    return LabelRule(ClassList(tuple(f"class {v}" for v in values), values), **arguments)


def test_values_become_channels():
    ade = rule(1, 2, 3, ignore=(0,))
    np.testing.assert_array_equal(ade.channels(np.array([[0, 1, 3]], np.uint8), "a.png"), [[255, 0, 2]])
    cityscapes = rule(7, 11, 26, ignore="others")
    np.testing.assert_array_equal(cityscapes.channels(np.array([[7, 26, 4, 11]], np.uint8), "a.png"), [[0, 2, 255, 1]])
    wide = rule(1000, 7, 70000, ignore=(0,))
    np.testing.assert_array_equal(wide.channels(np.array([[7, 70000, 0, 1000]], np.int32), "a.png"), [[1, 2, 255, 0]])
    many = rule(*range(400), ignore=(400,))
    found = many.channels(np.array([[0, 399, 400]], np.int32), "a.png")
    assert (found.tolist(), found.dtype, many.labels.ignore_index) == ([[0, 399, -1]], np.int16, -1)
    assert ade.labels.ids == (1, 2, 3)


def test_colours_become_channels():
    by_colour = LabelRule(ClassList(("ground", "red", "green"), (0, 1, 2), COLOURS), colours=True)
    stored = np.array([[COLOURS[2], COLOURS[0], COLOURS[1]]], np.uint8)
    np.testing.assert_array_equal(by_colour.channels(stored, "a.png"), [[2, 0, 1]])
    with pytest.raises(DataError, match=r"colour \[9, 9, 8\] \(50 % of its pixels\) is no class's"):
        by_colour.channels(np.array([[COLOURS[0], (9, 9, 8)]], np.uint8), "a.png")
    others = LabelRule(ClassList(("ground", "red", "green"), (0, 1, 2), COLOURS), "others", colours=True)
    assert others.channels(np.array([[COLOURS[1], (9, 9, 8)]], np.uint8), "a.png").tolist() == [[1, 255]]


def test_a_value_that_is_no_class_is_refused_with_its_remedy():
    with pytest.raises(
        DataError, match=r"a\.png: the value 255 \(25 % of its pixels\) is no class: .* 0-1, 3"
    ) as caught:
        rule(0, 1, 3, ignore=(7,)).channels(np.array([[0, 1, 3, 255]], np.uint8), "a.png")
    assert "data.ignore=[7,255]" in str(caught.value)  # what is ignored already stays so
    with pytest.raises(DataError, match="holds colours, not class values"):
        rule(0, 1).channels(np.zeros((2, 2, 3), np.uint8), "a.png")
    with pytest.raises(ConfigError, match="255 is the value of 'class 255'"):
        rule(0, 255)
    with pytest.raises(ConfigError, match="one of its own for each class"):
        LabelRule(ClassList(("a", "b"), (0, 1)), colours=True)


def test_channels_are_written_as_they_were_read():
    ade = rule(1, 2, 3, ignore=(0,))
    assert stored_values(ade.labels, np.array([[0, 2, 255]])).tolist() == [[1, 3, 255]]
    wide = rule(1000, 7, ignore=(0,))
    found = stored_values(wide.labels, np.array([[0, 1]]))
    assert (found.tolist(), found.dtype) == ([[1000, 7]], np.uint16)


@pytest.mark.parametrize(
    ("text", "names", "values", "palette"),
    [
        ("road\nsky\n\n# a comment\nopen water\n", ("road", "sky", "open water"), (1, 2, 3), ()),
        ("7 road\n4\tsky\n", ("road", "sky"), (7, 4), ()),
        ("0;wall;1 2 3\n1;traffic light;4 5 6\n", ("wall", "traffic light"), (0, 1), ((1, 2, 3), (4, 5, 6))),
        ("road: 128, 64, 128\nsky: 70, 130, 180\n", ("road", "sky"), (1, 2), ((128, 64, 128), (70, 130, 180))),
    ],
)
def test_class_files(tmp_path, text, names, values, palette):
    (tmp_path / "classes.txt").write_text(text)
    assert read_classes(tmp_path / "classes.txt", first_value=1) == ClassList(names, values, palette)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no classes"),
        ("a\nb\na\n", "class 'a' stands there twice"),
        ("1 a\n1 b\n", "value 1 stands there twice"),
        ("1 a\nb\n", "'b' has no value"),
        ("a 1 2 3\nb\n", "'b' has no colour"),
    ],
)
def test_class_files_that_say_too_little_or_too_much(tmp_path, text, problem):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=problem):
        read_classes(tmp_path / "classes.txt")
