"""HAT, DRCT, RGT and DLGSANet against their authors' code; every fixture of theirs is taken up as it appears."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from parity import fixtures
from vistrain.checkpoints import load_weights
from vistrain.restoration import DRCT, HAT, RGT, DLGSANet

# Arguments that the authors' constructors take and do not use, and spellings that differ from ours
UNUSED = {
    HAT: (),
    DRCT: ("compress_ratio", "squeeze_factor", "conv_scale", "overlap_ratio"),
    RGT: (),
    DLGSANet: (),
}
NAMES = {HAT: "hat", DRCT: "drct", RGT: "rgt", DLGSANet: "dlgsanet"}
CASES = [(cls, name) for cls in NAMES for name in fixtures.names(f"restoration_pretraining/{NAMES[cls]}*.pt")] or [
    (cls, f"restoration_pretraining/{name}.pt") for cls, name in NAMES.items()
]


def build(cls: type[nn.Module], fixture: dict[str, Any]) -> nn.Module:
    arguments = {k: v for k, v in fixture["constructor"]["kwargs"].items() if k not in UNUSED[cls]}
    return cls(**arguments)


@pytest.mark.parametrize(("cls", "name"), CASES)
def test_outputs(cls: type[nn.Module], name: str) -> None:
    """Whole images, and images padded at the bottom and right by reflection as the authors' test code does."""
    fixture = fixtures.load(name)
    model = build(cls, fixture)
    load_weights(model, fixture["state_dict"], key_maps=model.key_maps)
    model.eval()
    outputs = dict(fixture["outputs"])
    for key, x in fixture["inputs"].items():
        stored = outputs.pop(key.replace("x", "y"), None)
        padded = outputs.pop(key.replace("x", "y") + "_reflectpad_crop", None)
        with torch.no_grad():
            if stored is not None:
                torch.testing.assert_close(model(x), stored, rtol=0, atol=1e-4)
            if padded is not None:
                height, width = x.shape[2:]
                full = F.pad(x, (0, -width % model.multiple, 0, -height % model.multiple), mode="reflect")
                found = model(full)[..., : height * model.scale, : width * model.scale]
                torch.testing.assert_close(found, padded, rtol=0, atol=1e-4)
    if "y2_tlc_off" in outputs:
        model.tlc_flag = False
        with torch.no_grad():
            found = model(fixture["inputs"]["x2"])
        torch.testing.assert_close(found, outputs.pop("y2_tlc_off"), rtol=0, atol=1e-4)
    assert not outputs


@pytest.mark.parametrize(("cls", "name"), CASES)
def test_official_files_load_without_a_key_map(cls: type[nn.Module], name: str) -> None:
    fixture = fixtures.load(name)
    model = build(cls, fixture)
    model.load_state_dict(fixture["state_dict"], strict=True)
    assert set(model.state_dict()) <= set(fixture["state_dict"])
    assert {n for n, _ in model.named_parameters()} == {
        key
        for key in fixture["state_dict"]
        if not key.endswith(("attn_mask", "attn_mask_0", "attn_mask_1", "rpe_biases"))
        and "relative_position_index" not in key
    }
