"""What is wrong with the masks of a set: damaged ones, ones that reach outside, and ones that their boxes deny."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_tools

from vistrain.data.coco.reader import Listing
from vistrain.errors import DataError
from vistrain.metrics.coco_masks import drawable, encode_mask, left_out_of

OUTSIDE = "polygon more than a pixel outside the image, cut"
EMPTY = "mask without a pixel"
ELSEWHERE = "mask and box disagree"
AGREE = 0.5  # least overlap of a box with the box around its mask


def check_masks(listing: Listing, measured: bool) -> list[str]:
    """Look at every mask of a split.

    Args:
        listing: what is odd is added to its `problems`.
        measured: whether masks are evaluated on this split, for which every annotation must have one.

    Returns:
        what a run would refuse or lose: damaged masks, polygons that cannot be drawn and, where masks are measured,
        missing ones.
    """
    refused, missing = [], []
    for image in listing.images:
        for entry in listing.annotations.get(image["id"], ()):
            item = f"annotation {entry['id']} of {image['file_name']}"
            if entry.get("segmentation") in (None, []):
                missing.append(item)
                continue
            try:
                mask = encode_mask(item, entry["segmentation"], image["height"], image["width"])
            except DataError as error:
                refused.append(str(error))
                continue
            if lost := left_out_of(entry["segmentation"]):
                refused.append(str(DataError(item, lost, "correct or remove them: they are left out of its mask")))
            else:
                _note(listing, item, entry, image, mask)
    if measured and missing:
        count, remedy = len(missing), "annotate them, or measure boxes alone (data.masks=false, metrics=[coco_box])"
        refused.append(str(DataError(str(listing.path), f"{count} annotations without a mask: {missing[0]}", remedy)))
    return refused


def _note(listing: Listing, item: str, entry: dict[str, Any], image: dict[str, Any], mask: dict[str, Any]) -> None:
    if isinstance(entry["segmentation"], list):
        usable = drawable(item, entry["segmentation"])
        points = np.concatenate([np.zeros(0), *(np.asarray(p, np.float64) for p in usable)]).reshape(-1, 2)
        beyond = np.maximum(-points, points - (image["width"], image["height"]))
        if len(points) and beyond.max() > 1:
            listing.problems.add(OUTSIDE, item)
    if not mask_tools.area(mask):
        listing.problems.add(EMPTY, item)
    elif float(mask_tools.iou([mask_tools.toBbox(mask)], np.array([entry["bbox"]], np.float64), [0])[0, 0]) < AGREE:
        listing.problems.add(ELSEWHERE, item)
