"""Annotation files in COCO's format: what is cleaned as the official code does, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_tools

from vistrain.data.coco import reader as coco
from vistrain.data.coco.mask_check import check_masks
from vistrain.data.coco.reader import read_coco, targets
from vistrain.errors import DataError
from vistrain.metrics.coco_masks import encode_mask


def entry(number: int, bbox: list[Any], image: int = 1, category: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": 1.0, "iscrowd": 0, **more}


def content(annotations: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "images": [
            {"id": 2, "file_name": "b.jpg", "width": 50, "height": 80},
            {"id": 1, "file_name": "a.jpg", "width": 100, "height": 60},
        ],
        "annotations": [entry(1, [10, 20, 30, 15])] if annotations is None else annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def write(path: Path, data: Any) -> Path:
    path = path / "truth.json"
    path.write_text(json.dumps(data))
    return path


def test_a_clean_file(tmp_path: Path) -> None:
    found = read_coco(write(tmp_path, content()))
    data = targets(found, keep_empty=True)
    assert data.ids.tolist() == [1, 2]  # sorted, as the official code does
    assert data.files == ["a.jpg", "b.jpg"]
    assert data.sizes.tolist() == [[60, 100], [80, 50]]
    assert data.first.tolist() == [0, 1, 1]
    assert data.boxes.tolist() == [[10, 20, 40, 35]]
    assert data.boxes.dtype == np.float32
    assert data.categories.tolist() == [7]
    assert not found.problems
    assert len(targets(found, keep_empty=False)) == 1


def test_boxes_are_cleaned_and_counted(tmp_path: Path) -> None:
    found = read_coco(
        write(
            tmp_path,
            content(
                [
                    entry(1, [10, 20, 0, 15]),
                    entry(2, [10, 20, 5, -3]),
                    entry(3, [200, 20, 5, 5]),
                    entry(4, [-9, 50, 20, 30]),
                    entry(5, [-0.4, 0, 100.7, 60]),
                    entry(6, [float("nan"), 0, 1, 1]),
                    entry(7, [0, 0, float("inf"), 1]),
                    entry(8, [1, 1, 2, 2], image=99),
                    entry(9, [1, 1, 20, 20], iscrowd=1),
                ]
            ),
        )
    )
    data = targets(found, keep_empty=False)
    np.testing.assert_allclose(data.boxes, [[0, 50, 11, 60], [0, 0, 100, 60]])
    assert found.problems.counts == {
        coco.NOT_FINITE: 2,
        coco.NO_IMAGE: 1,
        coco.NO_AREA: 2,
        coco.OUTSIDE: 1,
        coco.CLIPPED: 1,
    }
    assert "2 x box without area, dropped (e.g. annotation 1 of a.jpg" in str(found.problems)
    truth = found.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5, 9]  # evaluation keeps what pycocotools keeps
    assert truth["annotations"][-1]["iscrowd"] == 1
    assert [i["id"] for i in truth["images"]] == [1, 2]


def test_an_image_with_a_crowd_alone_is_not_trained_on(tmp_path: Path) -> None:
    found = read_coco(write(tmp_path, content([entry(1, [1, 1, 20, 20], iscrowd=1), entry(2, [1, 1, 5, 5], image=2)])))
    assert targets(found, keep_empty=False).ids.tolist() == [2]
    assert targets(found, keep_empty=True).first.tolist() == [0, 0, 1]


def without(key: str, item: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k != key}


def test_missing_area_is_that_of_the_mask_else_of_the_box(tmp_path: Path) -> None:
    square = [[10, 10, 20, 10, 20, 20, 10, 20]]
    lengths = {"size": [60, 100], "counts": [0, 30, 60 * 100 - 30]}
    packed = mask_tools.encode(np.asfortranarray(np.eye(60, 100, dtype=np.uint8)))
    packed["counts"] = packed["counts"].decode()
    given = [
        entry(1, [10, 10, 10, 10], segmentation=square),
        entry(2, [0, 0, 1, 30], segmentation=lengths),
        entry(3, [0, 0, 60, 60], segmentation=packed),
        entry(4, [0, 0, 3, 5]),
        entry(5, [0, 0, 3, 5], segmentation=[]),
    ]
    found = read_coco(write(tmp_path, content([without("area", without("iscrowd", a)) for a in given])))
    areas = [a["area"] for a in found.ground_truth()["annotations"]]
    assert areas == [100, 30, 60, 15, 15]


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    with pytest.raises(DataError, match=rf"truth\.json: has no list '{section}'"):
        read_coco(write(tmp_path, without(section, content())))


def test_image_lists_of_test_sets_need_no_annotations(tmp_path: Path) -> None:
    found = read_coco(write(tmp_path, without("annotations", content())), annotations=False)
    assert len(targets(found, keep_empty=True)) == 2


def changed(section: str, position: int, **changes: Any) -> dict[str, Any]:
    data = content()
    data[section][position].update(changes)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            content([entry(1, [1, 1, 2, 2], category=8)]),
            r"annotation 1: category_id 8 is not listed.*3 \(dog\), 7 \(cat\)",
        ),
        (content([entry(1, [1, 1, 2, 2]), entry(1, [1, 1, 3, 3])]), "annotation id 1 is used twice"),
        (changed("images", 0, id=1), "image id 1 is used twice"),
        (changed("categories", 0, id=3), "category id 3 is used twice"),
        (changed("images", 0, file_name="../../etc/passwd"), "points outside the image folder"),
        (changed("images", 0, file_name="a/../../b.jpg"), "points outside"),
        (changed("images", 0, file_name="..\\b.jpg"), "points outside"),
        (changed("images", 0, file_name="/etc/passwd"), "points outside"),
        (changed("images", 0, file_name="C:\\b.jpg"), "points outside"),
        (changed("images", 0, file_name=5), "file_name is 5"),
        (changed("images", 0, file_name=" "), "file_name is ' '"),
        (changed("images", 0, width=0), "width is 0"),
        (changed("images", 0, height="80"), "height is '80'"),
        (changed("images", 0, id="2"), "'id' is '2', not an integer"),
        (changed("annotations", 0, image_id=None), "'image_id' is None"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"annotation 1: bbox is \[1, 2, 3\] - four numbers"),
        (changed("annotations", 0, bbox=["1", 2, 3, 4]), "four numbers"),
        (content([without("bbox", entry(1, []))]), r"annotations\[0\]: has no 'bbox'"),
        (content([without("id", entry(1, []))]), r"annotations\[0\]: has no 'id'"),
        ({**content(), "images": [without("width", content()["images"][0])]}, r"images\[0\]: has no 'width'"),
        ({**content(), "images": [7]}, r"images\[0\]: is 7, not an object"),
        ({**content(), "categories": []}, "lists no categories"),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], r"holds a list \(of results\?\)"),
        (5, "holds one int"),
    ],
)
def test_what_is_refused_is_named_in_one_line(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_coco(write(tmp_path, data))
    assert "\n" not in str(caught.value)
    assert "truth.json" in str(caught.value)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [1]},
        {"size": [5, 5], "counts": [25]},
        {"size": [60, 100], "counts": [5, 9]},
        "x",
        [3, 4],
        {"size": 5},
    ],
)
def test_unreadable_segmentations_are_refused(tmp_path: Path, segmentation: Any) -> None:
    bad = without("area", entry(1, [1, 1, 2, 2], segmentation=segmentation))
    with pytest.raises(DataError, match=r"annotation 1: (unreadable segmentation|run lengths)"):
        read_coco(write(tmp_path, content([bad])))


def test_polygons_without_area_are_left_out() -> None:
    square = [1, 1, 4, 1, 4, 4, 1, 4]
    mask = encode_mask("here", [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], square], 8, 9)
    assert mask_tools.area(mask) == 9
    assert mask_tools.area(encode_mask("here", [], 8, 9)) == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), None, "4", True, 10**30])
def test_coordinates_that_are_no_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"here: its polygon has the coordinate .*, not a number"):
        encode_mask("here", [[1, 1, 4, 1, 4, 4], [1, 1, wrong, 1, 4, 4]], 8, 9)


def test_malformed_json_names_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(DataError, match=r"cut\.json: not valid JSON: .* at line 2, column 18"):
        read_coco(path)
    path.write_bytes(b"\xff\xfe\x00garbage")
    with pytest.raises(DataError, match="not a text file"):
        read_coco(path)
    path.write_text("")
    with pytest.raises(DataError, match="not valid JSON"):
        read_coco(path)
    with pytest.raises(DataError, match="no such annotation file"):
        read_coco(tmp_path / "absent.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path)


def test_a_file_listed_twice_is_reported(tmp_path: Path) -> None:
    found = read_coco(write(tmp_path, changed("images", 0, file_name="a.jpg")))
    assert found.problems.counts == {coco.SHARED_FILE: 1}


NOTHING_DRAWN = ([[1]], [[]], [[5, 8, 20, 28]], [[5, 8, 20, 8, 20, 28, 5]])


@pytest.mark.parametrize(
    ("segmentation", "trained", "said"),
    [
        *((polygons, False, "1 of 1 polygons have no three points") for polygons in NOTHING_DRAWN),
        ([[1, 1, 2, 1, 2, 2], [1]], True, "1 of 2 polygons have no three points"),
        ([[1, 1, float("nan"), 1, 2, 2]], True, "the coordinate nan, not a number"),
        ("x", True, "unreadable segmentation"),
        ([], False, ""),
        (None, False, ""),
    ],
)
def test_masks_that_cannot_be_drawn_are_named_by_the_check_and_counted_by_a_run(
    tmp_path: Path, segmentation: Any, trained: bool, said: str
) -> None:
    good = entry(1, [1, 1, 2, 2], segmentation=[[1, 1, 3, 1, 3, 3, 1, 3]])
    listing = read_coco(write(tmp_path, content([good, entry(2, [1, 1, 2, 2], area=4, segmentation=segmentation)])))
    assert len(targets(listing, keep_empty=True, masks=True).boxes) == 1 + trained
    counts = listing.problems.counts
    assert bool(counts.get(coco.NO_MASK)) != trained
    assert bool(counts.get(coco.PARTLY)) == ("1 of 2" in said)
    refused = check_masks(listing, measured=False)
    assert [line for line in refused if "annotation 2" in line and said in line] == refused
    assert bool(refused) == bool(said)
    assert len(check_masks(listing, measured=True)) == 1
