"""Pictures: what is drawn, where, in which colour; and that nothing of any size breaks them."""

from __future__ import annotations

import colorsys
import csv
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.errors import ConfigError, DataError
from vistrain.pictures import (
    bars,
    box_plot,
    class_colours,
    confusion,
    curves,
    draw_boxes,
    grid,
    histogram,
    shade,
    stable_colour,
    text,
    viewable,
)
from vistrain.pictures.charts import new_figure, save_figure
from vistrain.pictures.colours import lab
from vistrain.pictures.text import font, shorten
from vistrain.structures import LabelSpace

NAMES = {1: "cell", 5: "Blutplättchen", 9: "клетка"}


def blank(height: int = 120, width: int = 160, value: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def changed(picture: np.ndarray, value: int = 200) -> np.ndarray:
    return (picture != value).any(axis=2)


def test_a_box_is_outlined_in_its_class_colour_and_its_inside_is_left_alone() -> None:
    image = blank()
    picture = draw_boxes(image, [[30, 40, 110, 100]], [5], names=NAMES)
    colour = np.array(stable_colour(1))  # the second of the names
    assert (picture[40:100, 30] == colour).all()
    assert (picture[40:100, 109] == colour).all()
    assert (picture[99, 30:110] == colour).all()
    assert (picture[60:95, 35:105] == 200).all()
    assert (image == 200).all()  # drawn on a copy
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8


def test_the_label_stands_above_its_box_with_the_text_in_contrast() -> None:
    picture = draw_boxes(blank(), [[30, 40, 110, 100]], [1], [0.87], NAMES)
    label = picture[:40][changed(picture[:40])]
    background = np.array(stable_colour(0))
    assert (label == background).all(axis=1).mean() > 0.5
    luminance = background @ [0.299, 0.587, 0.114]
    ink = np.array([0, 0, 0] if luminance > 128 else [255, 255, 255])
    assert (label == ink).all(axis=1).sum() > 5
    between = ~((label == background) | (label == ink)).all(axis=1)
    assert between.sum() > 10  # anti-aliased


def test_labels_differ_with_class_and_score_also_outside_ascii() -> None:
    pictures = [
        draw_boxes(
            blank(),
            [[10, 40, 150, 100]],
            [label],
            [score],
            NAMES,
            colours={1: (0, 0, 0)} | {5: (0, 0, 0), 9: (0, 0, 0)},
        )
        for label, score in ((1, 0.87), (1, 0.88), (5, 0.87), (9, 0.87), (7, 0.87))
    ]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(pictures, 2))
    glyphs = {
        font(12).getmask(letter).getbbox() and bytes(font(12).getmask(letter)) for letter in ["ä", "к", "ę", "\uffff"]
    }
    assert len(glyphs) == 4  # all there: none drawn as the box of a missing one


def test_scores_below_the_threshold_are_not_drawn_and_the_best_is_on_top() -> None:
    boxes = [[20, 40, 100, 100], [20, 40, 100, 100], [120, 60, 150, 80]]
    picture = draw_boxes(blank(), boxes, [1, 5, 9], [0.4, 0.9, 0.29], NAMES, threshold=0.3)
    assert tuple(picture[70, 20]) == stable_colour(1)
    assert not changed(picture)[:, 115:].any()
    kept = draw_boxes(blank(), boxes, [1, 5, 9], [0.4, 0.9, 0.3], NAMES, threshold=0.3)
    assert changed(kept)[:, 115:].any()


def test_boxes_reach_to_the_border_and_those_outside_or_broken_are_left_out() -> None:
    picture = draw_boxes(blank(), [[-50, -50, 500, 500]], [1], names=NAMES)
    colour = stable_colour(0)
    assert all(tuple(picture[y, x]) == colour for y, x in ((119, 0), (119, 159), (60, 0), (60, 159)))
    wrong = [
        [200, 10, 220, 30],
        [-9, -9, 0, 0],
        [50, 50, 50, 60],
        [60, 60, 50, 50],
        [math.nan, 0, 9, 9],
        [0, 0, math.inf, 9],
    ]
    untouched = draw_boxes(blank(), wrong, [1] * 6, [0.9] * 6, NAMES)
    assert not changed(untouched).any()
    assert not changed(draw_boxes(blank(), [[10, 40, 50, 80]], [1], [math.nan], NAMES)).any()
    assert not changed(draw_boxes(blank(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))).any()


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (2160, 3840), (9, 300), (1, 1)])
def test_any_size_of_image(size: tuple[int, int]) -> None:
    height, width = size
    box = torch.tensor([[0.2 * width, 0.4 * height, 0.9 * width, 0.9 * height]])
    picture = draw_boxes(blank(*size), box, torch.tensor([1]), torch.tensor([0.5]), NAMES)
    assert picture.shape == (height, width, 3)
    share = changed(picture).mean()
    assert 0.005 < share <= (1.0 if min(size) < 64 else 0.5)


def test_lines_and_letters_grow_with_the_image() -> None:
    def line_width(height: int, width: int) -> int:
        box = [[0.1 * width, 0.3 * height, 0.9 * width, 0.9 * height]]
        picture = draw_boxes(blank(height, width), box, [1], names={1: ""})
        return int((picture[height // 2, : width // 2] == stable_colour(0)).all(axis=1).sum())

    assert [line_width(*s) for s in ((64, 64), (480, 640), (2160, 3840))] == [1, 2, 10]


def test_labels_do_not_cover_each_other_where_there_is_room() -> None:
    boxes = [[60, 100, 160, 180], [62, 102, 162, 182], [64, 104, 164, 184]]
    together = draw_boxes(blank(300, 300), boxes, [0, 1, 2], [0.9, 0.8, 0.7], ["a", "b", "c"])
    text = [int((together == np.array(stable_colour(i))).all(axis=2).sum()) for i in range(3)]
    alone = [
        int((draw_boxes(blank(300, 300), [b], [0], [s], ["a"]) == np.array(stable_colour(0))).all(axis=2).sum())
        for b, s in zip(boxes, (0.9, 0.8, 0.7), strict=True)
    ]
    assert all(t > 0.6 * a for t, a in zip(text, alone, strict=True))


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((3, 4, 4), np.uint8)])
def test_what_is_no_picture_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        draw_boxes(bad, [], [])
    with pytest.raises(ValueError, match="do not pair up"):
        draw_boxes(blank(), [[0, 0, 1, 1]], [1, 2])


@pytest.mark.parametrize(
    ("size", "shown"), [((80, 120), (200, 300)), ((300, 400), (360, 480)), ((480, 640), (480, 640))]
)
def test_small_pictures_are_enlarged_to_look_at(size: tuple[int, int], shown: tuple[int, int]) -> None:
    picture, scale = viewable(blank(*size))
    assert picture.shape[:2] == shown
    assert scale == pytest.approx(shown[1] / size[1])


def min_distance(colours: list[tuple[int, int, int]]) -> float:
    places = lab(np.array(colours))
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    return float(distances[np.triu_indices(len(colours), 1)].min())


def test_distances_of_colours_are_those_of_the_cie() -> None:
    # Lab of sRGB's corners as tables give them, D65
    known = {(255, 255, 255): (100, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20), (0, 0, 255): (32.30, 79.19, -107.86)}
    for colour, place in known.items():
        assert lab(np.array(colour)) == pytest.approx(place, abs=0.05)


@pytest.mark.parametrize("colour", [stable_colour(i) for i in range(12)])
def test_shades_keep_the_hue_and_stay_near(colour: tuple[int, int, int]) -> None:
    shades = [shade(colour, number) for number in range(12)]
    assert shades[0] == colour
    assert len(set(shades)) == 12
    hue = colorsys.rgb_to_hsv(*(v / 255 for v in colour))[0]
    for near in shades:
        turned = abs(colorsys.rgb_to_hsv(*(v / 255 for v in near))[0] - hue)
        assert min(turned, 1 - turned) < 0.01
        assert max(abs(a - b) for a, b in zip(near, colour, strict=True)) <= 64  # a quarter of the way at most


def test_colours_are_stable_distinct_and_the_same_in_both_label_spaces() -> None:
    assert stable_colour(0) == (255, 38, 77)  # of the first class; must never change
    colours = [stable_colour(i) for i in range(80)]
    assert colours[1:4] == [(0, 255, 0), (0, 68, 255), (0, 204, 221)]  # on every machine
    for count, apart in ((12, 44), (20, 34), (80, 15)):
        assert min_distance(colours[:count]) > apart
    assert min_distance([stable_colour(i) for i in range(133)]) > 12  # COCO's: a just noticeable difference is 2.3
    assert stable_colour(256) == colours[0]
    contiguous, raw = (LabelSpace(("a", "b", "c"), (3, 1, 90), name=n) for n in ("contiguous", "coco_ids"))
    assert class_colours(contiguous) == {0: colours[0], 1: colours[1], 2: colours[2]}
    assert class_colours(raw) == {3: colours[0], 1: colours[1], 90: colours[2]}
    palette = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert class_colours(LabelSpace(("a", "b", "c"), (3, 1, 90), palette=palette))[2] == (7, 8, 9)


def test_long_text_ends_in_an_ellipsis_and_line_breaks_become_spaces() -> None:
    short = shorten("a very long caption", 60, 12)
    assert short.endswith("…")
    assert font(12).getlength(short) <= 60
    assert shorten("two\nlines", 500, 12) == "two lines"
    assert shorten("anything", 1, 12) == ""


def test_a_grid_keeps_each_image_whole_and_apart() -> None:
    red, green, blue = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    images = [
        [np.full((h, w, 3), c, np.uint8) for h, w, c in row]
        for row in (((80, 200, red), (200, 100, green)), ((200, 200, blue),))
    ]
    picture = grid(images)
    areas = [int((picture == np.array(c)).all(axis=2).sum()) for c in (red, green, blue)]
    assert areas == [80 * 200, 200 * 100, 200 * 200]
    captioned = grid(images, [["truth", "prediction"], ["third"]])
    assert captioned.shape[0] > picture.shape[0]
    assert captioned.shape[1] == picture.shape[1]
    assert (captioned[:22] < 100).all(axis=2).sum() > 20  # ink above the first row
    with pytest.raises(ValueError, match="do not pair up"):
        grid(images, [["truth"], ["third"]])


@pytest.mark.parametrize("shape", [(1, 2, 3000, 2000), (40, 2, 400, 300), (3, 12, 64, 64), (40, 1, 20, 30)])
def test_a_grid_stays_within_its_largest_size(shape: tuple[int, int, int, int]) -> None:
    rows, columns, height, width = shape
    picture = grid([[blank(height, width)] * columns] * rows, [["x"] * columns] * rows, max_width=1000, max_height=1200)
    assert picture.shape[1] <= 1000
    assert picture.shape[0] <= 1200
    assert (picture == 200).all(axis=2).sum() > 1000


def test_a_grid_takes_grey_images_and_none_at_all() -> None:
    grey = grid([[np.full((200, 200), 90, np.uint8), np.full((200, 200, 1), 90, np.uint8)]])
    assert (grey == 90).all(axis=2).sum() == 2 * 200 * 200
    assert grid([]).shape == (64, 64, 3)
    assert grid([[]]).shape == (64, 64, 3)


def write_csv(path, steps: int = 80) -> None:
    losses = [f"train/loss_{k}{s}" for k in ("class", "bbox") for s in ("", "_0", "_enc", "_dn_1")]
    columns = [
        "step",
        "epoch",
        "lr",
        "train/loss",
        *losses,
        "val/coco/AP",
        "val/coco/APs",
        "val/coco/AR100",
        "val/psnr",
    ]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "perf/images_per_s"], restval="")
        writer.writeheader()
        for step in range(1, steps + 1):
            writer.writerow({"step": step, "lr": 1e-4, "train/loss": 9 / step, **dict.fromkeys(losses, 1 / step)})
            if step % 20 == 0:
                writer.writerow(
                    {"step": step, "val/coco/AP": step / 99, "val/coco/APs": -1, "val/coco/AR100": 0.5, "val/psnr": 30}
                )


def panel_titles(monkeypatch: pytest.MonkeyPatch, table, png) -> dict[str, list[str]]:
    """Draws, and gives the titles of the panels with their legends."""
    from matplotlib.figure import Figure

    seen: dict[str, list[str]] = {}
    original = Figure.savefig

    def spy(self: Figure, *args: object, **kwargs: object) -> None:
        for axes in self.axes:
            if axes.get_visible():
                seen[axes.get_title(loc="left")] = [t.get_text() for t in axes.get_legend().get_texts()]
        original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    assert curves(table, png) == png
    return seen


def test_curves_sort_a_runs_columns_into_panels(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "metrics.csv")
    panels = panel_titles(monkeypatch, tmp_path / "metrics.csv", tmp_path / "plots" / "curves.png")
    assert list(panels) == [
        "loss",
        "loss parts",
        "val/coco: average precision",
        "val/coco: average recall",
        "val",
        "learning rate",
    ]
    assert panels["loss"] == ["train/loss  0.1125"]
    assert [t.split("  ")[0] for t in panels["loss parts"]] == ["loss_class", "loss_bbox", "inner layers (6)"]
    assert panels["val/coco: average precision"] == ["AP  0.8081"]  # -1 says "no such objects" and is not drawn
    with Image.open(tmp_path / "plots" / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 700
    assert pixels.shape[1] > 1500
    assert (pixels == np.array([0x1F, 0x77, 0xB4])).all(axis=2).sum() > 500  # lines were drawn
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["curves.png"]


def test_curves_of_an_unfinished_or_odd_file(tmp_path) -> None:
    table, png = tmp_path / "metrics.csv", tmp_path / "curves.png"
    for content in ("", "step,lr\n", "step,lr\n1,\n2,nan\n", "step,lr\n1,word\n"):
        table.write_text(content)
        assert curves(table, png) is None
        assert not png.exists()
    table.write_text("epoch,train/loss\n0,3\n1,inf\n2,1\n3")  # without steps; the last line is cut off
    assert curves(table, png) == png
    assert Image.open(png).size[0] > 500
    with pytest.raises(DataError, match=r"absent\.csv"):
        curves(tmp_path / "absent.csv", png)
    with pytest.raises(DataError, match="cannot be written"):
        curves(table, table / "curves.png")


def test_bars_and_histograms_are_written_for_any_numbers(tmp_path) -> None:
    few = bars({"cell": 3.0, "nothing": 0.0}, tmp_path / "few.png", "objects per class", "objects")
    many = bars({f"class {i}": 10.0**i for i in range(120)}, tmp_path / "many.png", "classes")
    none = bars({}, tmp_path / "none.png")
    heights = [Image.open(p).size[1] for p in (few, many, none)]
    assert heights[1] > 5 * heights[0]
    blue = (np.asarray(Image.open(few).convert("RGB")) == np.array([0x1F, 0x77, 0xB4])).all(axis=2)
    assert blue.any(axis=1).sum() > 10
    rows = np.flatnonzero(blue.any(axis=1))
    assert np.diff(rows).max() == 1  # one bar: of the class that has objects
    for name, values in {"wide": [1, 10, 1e4], "one": [5, 5], "empty": [], "odd": [0, -3, math.nan, math.inf]}.items():
        path = histogram(values, tmp_path / f"{name}.png", "sizes", "pixels")
        assert np.asarray(Image.open(path)).std() > 0


def test_box_plots_show_medians_and_every_value(tmp_path) -> None:
    cases = {"WT": [90.0, 80.0, 85.0, 10.0], "ET": [math.nan, 50.0], "nothing": [], "метка": [1.0]}
    one = box_plot({"Dice, %": cases}, tmp_path / "one.png", "regions")
    two = box_plot({"Dice, %": cases, "HD95, mm": cases}, tmp_path / "two.png")
    assert Image.open(two).size[0] > 1.5 * Image.open(one).size[0]
    pixels = np.asarray(Image.open(one).convert("RGB")).astype(int)
    red = (abs(pixels - np.array([0xD6, 0x27, 0x28])).sum(2) < 30).any(axis=0)
    assert (np.diff(np.flatnonzero(red)) > 1).sum() == 2  # three medians; of nothing there is none
    assert box_plot({}, tmp_path / "none.png").is_file()


def test_nothing_global_is_touched(tmp_path) -> None:
    before = dict(mpl.rcParams)
    write_csv(tmp_path / "metrics.csv", 3)
    curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert dict(mpl.rcParams) == before
    import subprocess
    import sys

    script = (
        "import sys, vistrain.pictures as p; p.bars({'a': 1}, sys.argv[1]); print('matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "b.png")], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"


# -------------------------------------------------------------------- any script


def tiny_font(path: Path, characters: str) -> Path:
    """A font whose characters are squares of different sizes."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    builder, names = FontBuilder(1000), [f"c{i}" for i in range(len(characters))]
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(c): name for c, name in zip(characters, names, strict=True)})
    glyphs = {}
    for i, name in enumerate([".notdef", *names]):
        pen, side = TTGlyphPen(None), 200 + 150 * i
        pen.moveTo((50, 0))
        for corner in ((50, side), (side, side), (side, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": f"Tiny {path.stem}", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return path


@pytest.fixture
def fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the system's fonts, empty."""
    monkeypatch.setattr(text, "_installed", lambda: sorted(map(str, tmp_path.rglob("*.ttf"))))
    monkeypatch.delenv(text.VARIABLE, raising=False)
    caches = (text._font_of, text._characters, text._named, text._spelled, text._warn)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fonts")
def test_names_that_no_font_has_are_spelled_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert text.readable("安全帽") == "U+5B89U+5168U+5E3D"
    assert text.readable("안전 모") == "anjeon mo"
    assert text.readable("ヘルメット and ｗｉｄｅ") == "herumetuto and wide"
    assert text.readable("कब") == "kaba"
    assert text.readable("Blutplättchen клетка") == "Blutplättchen клетка"
    assert text.readable("a\udcffb\nc") == "a\\xffb c"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert text.VARIABLE in caplog.text


@pytest.mark.usefixtures("fonts")
def test_pictures_of_other_names_differ_where_no_font_has_them() -> None:
    pictures = [draw_boxes(blank(), [[30, 40, 110, 100]], [0], names=[name]) for name in ("安全帽", "红绿灯")]
    assert (pictures[0] != pictures[1]).any()


def test_a_font_of_the_system_draws_what_the_own_one_lacks(fonts: Path) -> None:
    spelled = draw_boxes(blank(), [[30, 40, 110, 100]], [0], names=["安"])
    tiny_font(fonts / "tiny.ttf", "安全")
    text._font_of.cache_clear()
    assert text.readable("a 安全") == "a 安全"
    drawn = [draw_boxes(blank(), [[30, 40, 110, 100]], [0], names=[name]) for name in ("安", "全")]
    assert (drawn[0] != spelled).any()
    assert (drawn[0] != drawn[1]).any()
    assert text.text_width("a安", 20) == pytest.approx(font(20).getlength("a") + 18)
    assert text.shorten("安安安安", 45, 20) == "安…"


def test_charts_draw_any_script_and_dollar_signs(fonts: Path, recwarn: pytest.WarningsRecorder) -> None:
    tiny_font(fonts / "charts.ttf", "安全")
    names = {"安": 3, "全": 2, "帽": 1, "$x": 1, "a$b$": 2}
    bars(names, fonts / "bars.png", "objects")
    confusion(np.eye(5, dtype=np.int64), list(names), fonts / "confusion.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    bars({**dict.fromkeys("全", 3), **dict(list(names.items())[1:])}, fonts / "other.png", "objects")
    first, second = (np.asarray(Image.open(fonts / name)) for name in ("bars.png", "other.png"))
    assert first.shape != second.shape or (first != second).any()


def test_the_font_can_be_named(fonts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = draw_boxes(blank(), [[30, 40, 110, 100]], [0], names=["ab"])
    path = tiny_font(fonts / "Own Font-Regular.ttf", "ab")
    for name in (str(path), "own font", "OwnFont"):
        monkeypatch.setenv(text.VARIABLE, name)
        assert (draw_boxes(blank(), [[30, 40, 110, 100]], [0], names=["ab"]) != plain).any()
    monkeypatch.setenv(text.VARIABLE, "no such font")
    with pytest.raises(ConfigError, match="VISTRAIN_FONT: 'no such font' is neither"):
        draw_boxes(blank(), [[30, 40, 110, 100]], [0], names=["ab"])
    (fonts / "broken.ttf").write_bytes(b"x")
    monkeypatch.setenv(text.VARIABLE, str(fonts / "broken.ttf"))
    with pytest.raises(ConfigError, match="VISTRAIN_FONT"):
        text.shorten("ab", 100, 20)


def test_logarithmic_axes_are_numbered_in_plain_text(tmp_path):
    figure, (wide, narrow) = new_figure(6, 3, 1, 2)
    wide.plot([1, 2], [1e-5, 1e-1])
    narrow.plot([1, 2], [0.002, 0.008])
    for place in (wide, narrow):
        place.set_yscale("log")
    save_figure(figure, tmp_path / "log.png")
    said = [t.get_text() for place in (wide, narrow) for t in place.get_yticklabels(which="both")]
    assert {"0.0001", "0.001", "0.01"} <= set(said)
    assert "2e−03" in said
    assert not any("$" in text for text in said)
