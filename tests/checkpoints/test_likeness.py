"""Which shipped config a file looks like."""

from __future__ import annotations

import torch
from torch import nn

from vistrain.checkpoints import likeness
from vistrain.config import index


def net(classes: int, width: int = 24) -> dict[str, torch.Tensor]:
    layers = [nn.Conv2d(width + i, width + i + 1, 3) for i in range(30)]
    return nn.Sequential(*layers, nn.Linear(width + 30, classes)).state_dict()


def test_a_sketch_tells_networks_apart() -> None:
    one, other = likeness.sketch(net(80)), likeness.sketch(net(91))
    assert len(one) == 8 * likeness.SIZE
    assert likeness.alike(one, one) == 1
    assert 0.6 < likeness.alike(one, other) <= 1
    assert likeness.alike(one, likeness.sketch(net(80, width=200))) < 0.2
    assert likeness.sketch({"bias": torch.ones(3)}) == ""


def test_names_and_axes_do_not_count() -> None:
    theirs = {f"x.{i}/kernel": value.permute(*range(value.ndim)[::-1]) for i, value in enumerate(net(80).values())}
    assert likeness.sketch(theirs) == likeness.sketch(net(80))


def test_the_message_names_the_likeliest(monkeypatch) -> None:
    known = {
        "det/a": likeness.sketch(net(80)),
        "det/b": likeness.sketch(net(80)),
        "cls/c": likeness.sketch(net(5, 300)),
    }
    monkeypatch.setattr(index, "load", lambda section: known)
    assert likeness.looks_like(net(80)) == "it looks like vistrain:det/a, vistrain:det/b"
    assert likeness.looks_like({**net(80), "more": torch.ones(77, 78)}).startswith("it looks")
    assert likeness.looks_like(net(80, 500)) == ""
    assert likeness.looks_like({"bias": torch.ones(3)}) == ""


def test_shipped_configs_have_sketches() -> None:
    sketches = index.load("weights")
    assert sketches.keys() <= index.load("configs").keys()
    assert all(len(text) <= 8 * likeness.SIZE and not len(text) % 8 for text in sketches.values())
    assert sketches["det/focus_detr"] != sketches["det/dino_r50_4scale_12ep"]
