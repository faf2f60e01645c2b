"""Decibels, similarity, luma and MATLAB's resize against BasicSR's."""

from __future__ import annotations

import pytest
import torch

from parity import fixtures
from vistrain.layers.imresize import imresize
from vistrain.metrics.image import luma, psnr, ssim

FIXTURE = "restoration_pretraining/metrics_imresize.pt"


@pytest.mark.parametrize("crop", [0, 2, 3, 4])
def test_psnr_and_ssim(crop):
    fixture = fixtures.load(FIXTURE)
    pair = [fixture["inputs"][f"{k}_bgr_uint8"].numpy()[..., ::-1] for k in "ab"]
    a, b = (x[crop : x.shape[0] - crop, crop : x.shape[1] - crop] for x in pair)
    stored = fixture["outputs"]["metrics"]
    for colour, (x, y) in {"bgr": (a, b), "y": (luma(a), luma(b))}.items():
        # Their luma is float32, ours float64
        assert psnr(x, y) == pytest.approx(stored[f"psnr_crop{crop}_{colour}"], abs=1e-6)
        assert ssim(x, y) == pytest.approx(stored[f"ssim_crop{crop}_{colour}"], abs=1e-8)


def test_luma():
    fixture = fixtures.load(FIXTURE)
    found = torch.from_numpy(luma(fixture["inputs"]["a_bgr_uint8"].numpy()[..., ::-1])[..., 0])
    torch.testing.assert_close(found.float(), fixture["outputs"]["y_of_a"], rtol=0, atol=3e-5)


def test_every_resize():
    fixture = fixtures.load(FIXTURE)
    image = fixture["inputs"]["img_uint8"].permute(2, 0, 1).float() / 255
    names = [name for name in fixture["outputs"] if name.startswith(("imresize", "modcrop"))]
    assert len(names) == 11
    for name in names:
        expected = fixture["outputs"][name].permute(2, 0, 1)
        if name.startswith("modcrop"):
            scale = int(name[-1])
            height, width = (n // scale * scale for n in image.shape[1:])
            found = imresize(image[:, :height, :width], 1 / scale)
        else:
            number = float(name.split("_")[1])
            found = imresize(image, 1 / 3 if number == 0.3333 else number, antialias="noaa" not in name)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
