"""Every family of ours trains a detector of the DETR family, a semantic segmenter and a classifier: a step of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backbone_contract import CASES, Case
from parity.models import as_batch, contiguous

from vistrain.backbones import Backbone, TimmModel
from vistrain.classification import Classifier
from vistrain.detection import FocusDETR
from vistrain.network import Network
from vistrain.segmentation import SemanticSegmenter, UPerHead
from vistrain.structures import Factory

FAST = {"casvit_xs", "lsnet_t", "ravlt_t"}  # convolutions, strides from 8 on, attention
LABELS = contiguous(3)


def images(case: Case) -> torch.Tensor:
    """Two random uint8 images of the size that the family is checked at."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, *case.size), dtype=torch.uint8, generator=generator)


def detector(case: Case) -> tuple[Network, dict[str, Any]]:
    """Focus-DETR on the three coarsest maps, and two images with an object each."""
    sizes = {"embed_dim": 32, "num_heads": 2, "ffn_dim": 16, "num_queries": 6, "encoder_layers": 1, "decoder_layers": 1}
    backbone = Backbone(case.name, strides=case.strides[1:], args=case.args)
    model = FocusDETR(backbone, LABELS, **sizes, cascade=(1.0,), topk_sa=10, denoising=None)
    boxes = torch.tensor([[4.0, 4.0, 40.0, 50.0]])
    return model, as_batch(list(images(case)), [torch.tensor([0]), torch.tensor([2])], [boxes, boxes + 6])


def segmenter(case: Case) -> tuple[Network, dict[str, Any]]:
    """UPerNet, and two images whose left halves are of another class."""
    backbone = Backbone(case.name, strides=case.strides, args=case.args)
    model = SemanticSegmenter(backbone, LABELS, Factory(UPerHead, embed_dim=8))
    truth = torch.zeros(case.size, dtype=torch.int64)
    truth[:, : case.size[1] // 2] = 2
    target = [{"label_map": truth} for _ in range(2)]
    return model, {"image": images(case), "size": torch.tensor([case.size] * 2), "target": target}


def classifier(case: Case) -> tuple[Network, dict[str, Any]]:
    """A classifier, and two images of two classes."""
    model = Classifier(TimmModel(case.name, LABELS, args=case.args), LABELS)
    return model, {"image": images(case), "size": torch.tensor([case.size] * 2), "labels": torch.tensor([0, 2])}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case.name not in FAST), id=case.name) for case in CASES],
)
@pytest.mark.parametrize("build", [detector, segmenter, classifier])
def test_a_step(case: Case, build: Any) -> None:
    torch.manual_seed(0)
    model, batch = build(case)
    model.train()
    first = {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith("backbone.")}
    loss = torch.stack([*model.losses(batch).values()]).sum()
    assert torch.isfinite(loss)
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    moved = [not torch.equal(value, model.get_parameter(name)) for name, value in first.items()]
    assert sum(moved) > 0.9 * len(moved)
