"""How often a training step makes the host wait for a GPU: the least that each task needs, so that none is added."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from detector_tools import make_batch
from device_waits import counted

from vistrain.backbones import Backbone, TimmModel
from vistrain.classification import Classifier
from vistrain.detection import DINO, DeformableDETR, FocusDETR, set_detector
from vistrain.devices import upload
from vistrain.restoration import NAFNet, RestorationModel, SwinIR
from vistrain.structures import LabelSpace

LABELS = LabelSpace(tuple("abcde"), tuple(range(5)))
SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "ffn_dim": 32, "num_queries": 8, "encoder_layers": 1}
SMALL |= {"decoder_layers": 2}


def step(model: torch.nn.Module, batch: dict[str, Any]) -> None:
    """Losses, gradients and clipping."""
    torch.stack([x.reshape(()) for x in model.losses(batch).values()]).sum().backward()  # type: ignore[operator]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        (DeformableDETR, {}, ["matching/hungarian.py: cpu"]),
        (DeformableDETR, {"box_refinement": True, "two_stage": True}, ["matching/hungarian.py: cpu"]),
        (DINO, {}, ["matching/hungarian.py: cpu"]),
        # how many tokens each layer computes is the length of tensors
        (FocusDETR, {"cascade": (1.0,)}, ["detection/focus_detr.py: tolist", "matching/hungarian.py: cpu"]),
    ],
)
@pytest.mark.parametrize("core", ["grid_sample", "embedding_bag"])
def test_detection_waits_for_the_costs_of_matching_alone(
    kind: type[DeformableDETR | DINO],
    more: dict[str, Any],
    expected: list[str],
    core: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(set_detector, "check_labels", lambda *_: None)  # it checks labels on the CPU only
    backbone = Backbone("test_resnet", strides=(8, 16, 32), frozen_norm=True)
    model = kind(backbone, LABELS, sampling_core=core, **SMALL, **more).train()
    batch = make_batch([3, 0], [(64, 64), (48, 64)])
    waits = counted(functools.partial(step, model, batch))
    found = [f"{place.split(':')[0]}:{place.split(':')[2]}" for place in waits.places.elements()]
    assert sorted(found) == sorted(expected), waits.places


def test_other_tasks_wait_for_nothing() -> None:
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    size = torch.tensor([[32, 32]] * 2)
    classes = {"image": images, "size": size, "labels": torch.tensor([0, 1])}
    for name in ("test_resnet", "test_vit"):
        classifier = Classifier(TimmModel(name, LABELS, args={"img_size": 32} if name == "test_vit" else {}), LABELS)
        assert not counted(functools.partial(step, classifier, classes)).places
    for network, scale in ((NAFNet(width=4, enc_blk_nums=(1,), dec_blk_nums=(1,)), 1), (_swinir(), 2)):
        truth = [{"image": torch.randint(256, (3, 32 * scale, 32 * scale), dtype=torch.uint8)} for _ in range(2)]
        restorer = RestorationModel(network)
        assert not counted(functools.partial(step, restorer, {"image": images, "size": size, "target": truth})).places


def _swinir() -> SwinIR:
    return SwinIR(depths=(2,), num_heads=(2,), embed_dim=8, window_size=8, upscale=2)


def test_what_is_counted() -> None:
    """The counter itself: reads, blocking copies, masks; not what the host does alone, and not `upload`."""
    x, device = torch.arange(4.0), torch.device("cpu")
    cases = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.sum() > 1),
        "mask": lambda: x[x > 1],
        "tensor": lambda: torch.tensor([1, 2], device=device),
        "copy": lambda: torch.arange(3).to(device),
        "new": lambda: x.new_tensor([1.0]),
        "table": lambda: x[torch.tensor([0, 1])],
    }
    assert {name: counted(run).count for name, run in cases.items()} == dict.fromkeys(cases, 1)
    free = {
        "upload": lambda: x * upload([1, 2, 3, 4], device),
        "array": lambda: x[:3] + upload(np.arange(3), device),
        "host": lambda: torch.arange(3).sum().item(),
        "fetched": lambda: None if (x + 1).sum() is None else 0,
        "index": lambda: x[(x > 1).long()],
    }
    assert {name: counted(run).count for name, run in free.items()} == dict.fromkeys(free, 0)
    assert counted(lambda: [float(v) for v in (x + 1).cpu()]).count == 1
