"""Devices and precisions that a config asks for and this machine does not have, each in one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from vistrain import devices
from vistrain.errors import ConfigError
from vistrain.run.parts import _refuse_missing_devices, _whole_name


@pytest.fixture
def two_old_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": [0, 2]}, r"trainer\.devices: there is no device 2: this machine has 2 - write some of \[0, 1\]"),
        ({"devices": "0, 2"}, r"trainer\.devices: there is no device 2"),
        ({"devices": 4}, r"trainer\.devices: 4 devices: this machine has 2 - write 2, or auto"),
        (
            {"precision": "bf16-mixed"},
            "trainer.precision: 'bf16-mixed': Tesla V100 has no bfloat16 arithmetic - use 16",
        ),
    ],
)
@pytest.mark.usefixtures("two_old_cards")
def test_what_is_not_there_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _refuse_missing_devices({"accelerator": "gpu", **arguments})


@pytest.mark.parametrize("devices", [[3], [0], "0,1", "3,"])
def test_processors_have_no_indices(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(ConfigError, match=r"trainer\.devices: .* a processor takes a number of processes"):
            _refuse_missing_devices({"accelerator": accelerator, "devices": devices})
    _refuse_missing_devices({"accelerator": "cpu", "devices": 4})


@pytest.mark.usefixtures("two_old_cards")
def test_what_is_there_is_not() -> None:
    for arguments in ({"devices": [1]}, {"devices": -1}, {"devices": "auto"}, {"precision": "16-mixed"}):
        _refuse_missing_devices(arguments)


def test_precisions_have_their_whole_names(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [_whole_name(name, "auto") for name in ("16", 16, "bf16", 32, "64", "bf16-true", None)] == [
        "16-mixed", "16-mixed", "bf16-mixed", "32-true", "64-true", "bf16-true", None
    ]  # fmt: skip
    assert not caplog.text
    assert _whole_name("16", "cpu") == "bf16-mixed"
    assert "processors compute no float16 under autocast: bf16-mixed is taken" in caplog.text


def test_a_driver_that_does_not_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    assert devices.unusable_gpu() == ""
    (tmp_path / "version").touch()
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with caplog.at_level(logging.WARNING):
        _refuse_missing_devices({})
    (line,) = [record.getMessage() for record in caplog.records]
    assert "(built for CUDA 13.0) cannot use it (The NVIDIA driver on your system is too old" in line
    assert "\n" not in line
    assert line.endswith("this run takes the processor")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in devices.unusable_gpu()
