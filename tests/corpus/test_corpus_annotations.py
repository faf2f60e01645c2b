"""Corpus of annotation files: every command reads them alike; each is handled as documented, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.corpus_files import changed, truth

from vistrain.data.coco import reader as coco
from vistrain.data.coco.reader import examined, read_coco, targets
from vistrain.data.detection.repair import repaired
from vistrain.errors import DataError
from vistrain.metrics.coco_files import FileNames
from vistrain.metrics.coco_masks import encode_mask, run_lengths
from vistrain.tasks.detection.evaluate import evaluate_file

HUGE, LONG = 2**70, 10**400
FAR = [[1e8, 1e8, -1e8, 1e8, 1e8, -1e8]]


def annotation(**fields: Any) -> dict[str, Any]:
    return changed("annotations", **fields)


def masked(segmentation: Any) -> dict[str, Any]:
    """Without `area`, which the segmentation gives."""
    return annotation(area=..., segmentation=segmentation)


def runs(counts: Any, size: Any = (60, 100)) -> dict[str, Any]:
    return masked({"size": list(size), "counts": counts})


def without(section: str) -> dict[str, Any]:
    return {key: value for key, value in truth().items() if key != section}


ODD_IDS = (("text", "1"), ("float", 1.0), ("null", None), ("true", True), ("huge", HUGE), ("list", [1]))
ODD_NAMES = (
    "../a.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "\\\\server\\a.jpg", "", " ", 5, None, [], "a\0.jpg",
    "\ud800.jpg",
)  # fmt: skip
ODD_BOXES = (
    None, [], [1, 2, 3], [1, 2, 3, 4, 5], "1 2 3 4", {"x": 1}, ["1", 2, 3, 4], [None] * 4, [[1, 2], [3, 4]], [True] * 4,
)  # fmt: skip
REFUSED: dict[str, tuple[Any, str]] = {
    # no file of this kind
    "empty": (b"", "not valid JSON"),
    "space": (b"  \n ", "not valid JSON"),
    "zeros": (bytes(100), "begins with zeros"),
    "utf-16": (json.dumps(truth()).encode("utf-16"), "UTF-16"),
    "latin-1": (b'{"images": "\xe9"}', "not UTF-8"),
    "cut": (json.dumps(truth()).encode()[:-20], "not valid JSON"),
    "two": (json.dumps(truth()).encode() * 2, "not valid JSON: Extra data"),
    "comment": (b"// mine\n{}", "not valid JSON"),
    "quotes": (b"{'images': []}", "not valid JSON"),
    "comma": (b'{"images": [],}', "not valid JSON"),
    "deep": (b'{"a":' * 100_000, "nested too deeply"),
    "deep list": (b"[" * 100_000, "nested too deeply"),
    "digits": (b'{"images": [' + b"9" * 5000 + b"]}", "not valid JSON"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(20), "not a text file"),
    "list": ([], "holds a list"),
    "null": (None, "holds one NoneType"),
    "number": (5, "holds one int"),
    "text": ("x", "holds one str"),
    "true": (True, "holds one bool"),
    # sections
    "no images": (without("images"), "no list 'images'"),
    "no annotations": (without("annotations"), "no list 'annotations'"),
    "no categories": (without("categories"), "no list 'categories'"),
    "nothing": ({}, "no list 'images'"),
    "null images": ({**truth(), "images": None}, "no list 'images'"),
    "mapping of images": ({**truth(), "images": {"1": {}}}, "no list 'images'"),
    "text of annotations": ({**truth(), "annotations": "none"}, "no list 'annotations'"),
    "empty categories": ({**truth(), "categories": []}, "lists no categories"),
    "entries of null": ({**truth(), "images": [None]}, "is None, not an object"),
    "entries of lists": ({**truth(), "annotations": [[1, 2]]}, "not an object"),
    # ids
    **{
        f"{section} {key} {kind}": (changed(section, **{key: value}), f"'{key}'")
        for section, key in (("images", "id"), ("categories", "id"), ("annotations", "id"),
                             ("annotations", "image_id"), ("annotations", "category_id"))
        for kind, value in ODD_IDS
    },
    "repeated image": (changed("images", id=2), "image id 2 is used twice"),
    "repeated annotation": (annotation(id=2), "annotation id 2 is used twice"),
    "repeated category": (changed("categories", id=3), "category id 3 is used twice"),
    "unlisted category": (annotation(category_id=8), "category_id 8 is not listed"),
    "no image id": (annotation(image_id=...), "has no 'image_id'"),
    "no name": (changed("categories", name=...), "has no 'name'"),
    # names and sizes
    **{
        f"file_name {name!r:.12}": (changed("images", file_name=name), "file_name")
        for name in ODD_NAMES
    },
    **{
        f"{side} {value!r:.12}": (changed("images", **{side: value}), side)
        for side in ("width", "height")
        for value in (0, -5, "60", None, True, float("inf"), float("nan"), 0.5, 60.5, HUGE, LONG, [60], 2**40)
    },
    "area of images": (changed("images", width=10**6, height=10**6), "more than any image"),
    "no width": (changed("images", width=...), "has no 'width'"),
    # boxes and flags
    **{
        f"bbox {value!r:.20}": (annotation(bbox=value), "bbox")
        for value in ODD_BOXES
    },
    "no bbox": (annotation(bbox=...), "has no 'bbox'"),
    **{f"iscrowd {value!r}": (annotation(iscrowd=value), "iscrowd") for value in (2, -1, "yes", [], 0.5, "2", {})},
    # segmentations that area needs
    "segmentation text": (masked("x"), "unreadable segmentation"),
    "segmentation number": (masked(7), "unreadable segmentation"),
    "segmentation of numbers": (masked([3, 4]), "unreadable segmentation"),
    "runs without size": (masked({"counts": [6000]}), "unreadable segmentation"),
    "runs without counts": (masked({"size": [60, 100]}), "unreadable segmentation"),
    "runs of another size": (runs([25], (5, 5)), "run lengths are for size"),
    "size of text": (runs([6000], ("60", "100")), "run lengths are for size"),
    "short runs": (runs([5, 9]), "do not add up"),
    "long runs": (runs([6000, 1]), "do not add up"),
    "negative runs": (runs([6001, -1]), "do not add up"),
    "runs of floats": (runs([6000.0]), "do not add up"),
    "runs of text": (runs(["6000"]), "do not add up"),
    "huge runs": (runs([HUGE]), "do not add up"),
    "compressed garbage": (runs("garbage!"), "do not add up"),
    "compressed and cut": (runs("PPPP"), "do not add up"),
    "compressed far": (runs("ooooooooooooooooooooo0"), "do not add up"),
    "compressed negative": (runs("O"), "do not add up"),
    "compressed empty": (runs(""), "do not add up"),
    "compressed letters": (runs("äöü"), "do not add up"),
    "polygon far away": (masked(FAR), "polygon reaches"),
    "polygon of 1e300": (masked([[0, 0, 1e300, 0, 0, 1e300]]), "polygon reaches"),
    "polygon of many turns": (masked([[0, 0, 100, 60] * 40_000]), "outline"),
}  # fmt: skip


def write(folder: Path, content: Any) -> Path:
    path = folder / "truth.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_coco(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


FILES_ALONE = ("file_name", "width", "height", "area of images", "no width")


@pytest.mark.parametrize("name", [name for name in REFUSED if not name.startswith(FILES_ALONE)])
def test_evaluate_refuses_the_same_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, REFUSED[name][0])
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        evaluate_file(tmp_path / "none.json", path)
    assert REFUSED[name][1] in str(caught.value)


AREA = 450.0
READ: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (truth(), {"area": 450, "iscrowd": 0}),
    "mark": (b"\xef\xbb\xbf" + json.dumps(truth()).encode(), {"area": 450}),
    "windows": (json.dumps(truth(), indent=1).replace("\n", "\r\n").encode(), {"area": 450}),
    "more keys": ({**truth(), "info": None, "licenses": 5, "videos": []}, {"area": 450}),
    "segmentation is not needed": (annotation(segmentation=FAR), {"area": 450}),
    **{
        f"iscrowd {value!r}": (annotation(iscrowd=value), {"iscrowd": flag})
        for value, flag in (
            ("0", 0), ("1", 1), (False, 0), (True, 1), (None, 0), (0.0, 0), (1.0, 1), (..., 0), ("", 0), ("true", 1)
        )
    },
    **{
        f"area {value!r:.12}": (annotation(area=value), {"area": AREA})
        for value in (..., None, "450", "big", float("nan"), float("inf"), -1, [], HUGE)
    },
    "area of a polygon": (masked([[10, 10, 20, 10, 20, 20, 10, 20]]), {"area": 100}),
    "area of runs": (runs([0, 30, 5970]), {"area": 30}),
    "area of nothing": (masked([]), {"area": AREA}),
    "polygon of two points": (masked([[1, 2, 3, 4]]), {"area": 0}),
    "name of a number": (changed("categories", name=5), {}),
    "name of half a character": (changed("categories", name="\ud800"), {}),
    "sizes of floats": (changed("images", width=100.0, height=60.0), {}),
    "negative id": (annotation(id=-5), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_it_is_read_alike_by_fit_and_evaluate(tmp_path: Path, name: str) -> None:
    content, expected = READ[name]
    path = write(tmp_path, content)
    for files in (True, False):
        listing = read_coco(path, files=files)
        first = listing.annotations[1][0]
        assert {key: first[key] for key in expected} == expected
    assert len(targets(read_coco(path), keep_empty=True).boxes) == 2 - first["iscrowd"]
    for text in listing.categories.values():
        text.encode("utf-8")
    (tmp_path / "none.json").write_text("[]")
    assert evaluate_file(tmp_path / "none.json", path).images == 2


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([float("nan"), 0, 1, 1], coco.NOT_FINITE),
        ([0, 0, float("inf"), 1], coco.NOT_FINITE),
        ([0, 0, 1e300, 1e300], coco.NOT_FINITE),
        ([0, 0, LONG, 1], coco.NOT_FINITE),
        ([0, 0, HUGE, 1], coco.NOT_FINITE),
        ([-1e12, 0, 5, 5], coco.NOT_FINITE),
        ([0, 0, 0, 5], coco.NO_AREA),
        ([0, 0, 5, -5], coco.NO_AREA),
        ([500, 0, 5, 5], coco.OUTSIDE),
        ([-20, 0, 50, 5], coco.CLIPPED),
    ],
)
def test_odd_boxes_are_dropped_or_clipped_and_counted(tmp_path: Path, box: list[float], kind: str) -> None:
    listing = read_coco(write(tmp_path, annotation(bbox=box)))
    found = targets(listing, keep_empty=True)
    assert listing.problems.counts == {kind: 1}
    assert len(found.boxes) == (2 if kind == coco.CLIPPED else 1)
    assert np.isfinite(found.boxes).all()


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    content = truth()
    content["images"].append({"id": "3", "file_name": "c.jpg", "width": 5, "height": 5})
    content["annotations"][0]["iscrowd"] = 7
    content["annotations"][1]["bbox"] = []
    _, faults = examined(content, tmp_path / "truth.json")
    assert [fault.problem.split(" is ")[0] for fault in faults] == ["'id'", "iscrowd", "bbox"]
    with pytest.raises(DataError, match="and 2 more faults; `vistrain check` lists all"):
        read_coco(write(tmp_path, content))


def no_file(name: str) -> tuple[int, int]:
    raise DataError(name, "no such image file")


@pytest.mark.parametrize(
    "name",
    [
        *(n for n in REFUSED if n.split()[0] in ("images", "categories") and n.split()[1] == "id" and "list" not in n),
        *(n for n in REFUSED if n.startswith("annotations id")),
        "annotations image_id text", "annotations image_id float", "repeated annotation", "no width", "width None",
    ],
)  # fmt: skip
def test_what_a_program_can_mend_is_mended_in_a_copy(tmp_path: Path, name: str) -> None:
    content = REFUSED[name][0]
    if name.startswith(("images id", "categories id")):  # annotations spell ids as images and categories do
        kind = "image_id" if name.startswith("images") else "category_id"
        section = "images" if name.startswith("images") else "categories"
        content = json.loads(json.dumps(content))
        content["annotations"][0][kind] = content[section][0]["id"]
    before = json.dumps(content)
    made, done = repaired(content, lambda file: (60, 100))
    assert json.dumps(content) == before
    assert sum(done.values()) > 0
    listing = read_coco(write(tmp_path, made))
    assert [
        len(listing.annotations[image["id"]]) for image in sorted(listing.images, key=lambda i: i["file_name"])
    ] == [1, 1]
    assert repaired(made, no_file) == (made, {})


def test_what_nobody_can_know_is_not_invented(tmp_path: Path) -> None:
    for content in (REFUSED["repeated image"][0], REFUSED["unlisted category"][0], REFUSED["bbox []"][0]):
        made, _ = repaired(content, no_file)
        with pytest.raises(DataError):
            read_coco(write(tmp_path, made))
    assert repaired({"images": 5, "annotations": [7], "categories": [None]}, no_file)[1] == {}


def test_run_lengths_are_those_of_pycocotools() -> None:
    from pycocotools import mask as mask_tools

    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.3, 1.0):
        pixels = np.asfortranarray((rng.random((37, 53)) < share).astype(np.uint8))
        packed = mask_tools.encode(pixels)["counts"]
        lengths = run_lengths(packed)
        assert lengths is not None
        column = pixels.flatten(order="F")
        again = np.repeat(np.arange(len(lengths)) % 2, lengths)
        np.testing.assert_array_equal(again, column)
        encode_mask("here", {"size": [37, 53], "counts": packed.decode()}, 37, 53)


GOOD = {"image_id": 1, "category_id": 7, "bbox": [10, 20, 30, 15], "score": 0.9}
RESULTS: dict[str, tuple[Any, str]] = {
    "empty file": (b"", "not valid JSON"),
    "object": ({"a": 1}, "is not a list of COCO results"),
    "truth": (truth(), "is a file of annotations in COCO's format, not results"),
    "number": (3, "is not a list"),
    "entry": ([5], "result 0: is not an object"),
    "text score": ([{**GOOD, "score": "0.9"}], "'score'"),
    "null score": ([{**GOOD, "score": None}], "'score'"),
    "score": ([{**GOOD, "score": float("nan")}], "'score'"),
    "long score": ([{**GOOD, "score": LONG}], "'score'"),
    "box": ([{**GOOD, "bbox": [1, 2, 3]}], "'bbox'"),
    "infinite box": ([{**GOOD, "bbox": [1, 2, 3, float("inf")]}], "'bbox'"),
    "text box": ([{**GOOD, "bbox": "1 2 3 4"}], "'bbox'"),
    "float image": ([{**GOOD, "image_id": 1.0}], "'image_id'"),
    "huge image": ([{**GOOD, "image_id": HUGE}], "'image_id'"),
    "text category": ([{**GOOD, "category_id": "7"}], "'category_id'"),
    "other image": ([{**GOOD, "image_id": 77}], "does not list (first: 77)"),
    "other name": ([{**GOOD, "image_id": "z.jpg"}], "does not list (first: 'z.jpg')"),
    "id as text": ([{**GOOD, "image_id": "1"}], "does not list"),
    "turned": ([{**GOOD, "image_id": "a.jpg", "width": 60, "height": 100}], "of another size"),
    "other classes": (
        {"categories": [{"id": 7, "name": "cow"}], "images": []},
        "category 7 is 'cow' here and 'cat' in the ground truth",
    ),
    "image twice": (
        {"images": [{"id": "a.jpg", "detections": []}, {"id": "a.jpg", "detections": []}]},
        "images[1]: 'a.jpg' is listed twice: its detections would count twice",
    ),
    "restored": ({"scale": 2, "images": [{"id": "a.jpg"}]}, "has no list 'detections'"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_do_not_belong_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, truth())
    content, message = RESULTS[name]
    (tmp_path / "found.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError) as caught:
        evaluate_file(tmp_path / "found.json", path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "found.json"))
    assert "\n" not in str(caught.value)


def test_results_with_sides_below_0_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "found.json").write_text(json.dumps([{**GOOD, "bbox": [10, 20, -30, 15]}, GOOD]))
    with caplog.at_level("WARNING", "vistrain"):
        evaluate_file(tmp_path / "found.json", write(tmp_path, truth()))
    assert "1 results have a side below 0 and match nothing" in caplog.text


def test_results_are_paired_by_id_or_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, truth())
    detection = {"category_id": 7, "box_xywh": GOOD["bbox"], "score": 0.9}
    image = {"id": "val/a.jpg", "width": 100, "height": 60, "detections": [detection]}
    numbers = []
    for i, content in enumerate(([GOOD], [{**GOOD, "image_id": "a.jpg"}], {"categories": [], "images": [image]})):
        (tmp_path / f"{i}.json").write_text(json.dumps(content))
        numbers.append(evaluate_file(tmp_path / f"{i}.json", path).numbers)
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]["coco/AP"] > 0


def test_a_name_means_one_image_or_none() -> None:
    names = FileNames({"x/a.jpg": 1, "y/a.jpg": 2, "b.jpg": 3})
    assert [names.find(n) for n in ("x/a.jpg", "a.jpg", "far/y/a.jpg", "photos/b.jpg", "b.jpg", "bb.jpg", "c.jpg")] == [
        1, None, 2, 3, 3, None, None,
    ]  # fmt: skip
