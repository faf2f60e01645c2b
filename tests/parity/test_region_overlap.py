"""Dice and HD95 of BraTS's regions against MONAI's numbers and the challenge's rule for empty regions."""

from __future__ import annotations

import torch

from parity import fixtures
from vistrain.metrics import protocol
from vistrain.predictions import Segmentation
from vistrain.structures import LabelSpace

LABELS = LabelSpace(("background", "necrosis", "oedema", "enhancing"), (0, 1, 2, 4))
REGIONS = {"TC": ("necrosis", "enhancing"), "WT": ("necrosis", "oedema", "enhancing"), "ET": ("enhancing",)}


def measured(name: str) -> tuple[dict, torch.Tensor]:
    """The fixture, and ours: `[cases, regions, (Dice, HD95)]`."""
    fixture = fixtures.load("dense/brats_metrics.pt")
    assert list(REGIONS) == fixture["outputs"]["order"]
    channels = torch.zeros(5, dtype=torch.int64)
    channels[torch.tensor(LABELS.ids)] = torch.arange(4)
    metric = protocol(name, labels=LABELS, regions=REGIONS)
    truths = [{"label_map": channels[gt.long()]} for gt in fixture["inputs"]["gt"]]
    found = [Segmentation(channels[x.long()]) for x in fixture["inputs"]["pred"]]
    records = metric.update(range(len(truths)), found, truths)
    rows = [[[r["regions"][g][m] for m in ("Dice", "HD95")] for g in REGIONS] for r in records]
    return fixture["outputs"], torch.tensor(rows)


def test_monai() -> None:
    theirs, ours = measured("regions_monai")
    torch.testing.assert_close(ours[..., 0], theirs["dice_ignore_empty"], rtol=0, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(ours[..., 1], theirs["hd95_monai"], rtol=0, atol=1e-5, equal_nan=True)
    assert theirs["dice_ignore_empty"].isnan().any()  # the fixture has empty regions


def test_the_challenge() -> None:
    theirs, ours = measured("brats")
    torch.testing.assert_close(ours, theirs["brats_convention"], rtol=0, atol=1e-4)
