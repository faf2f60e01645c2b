"""Adaptation from labelled images to unlabelled ones: data, mixing, masked features, two steps, resuming, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vistrain.backbones import Backbone
from vistrain.data import AdaptationFolders, MaskAugment, MaskSplit
from vistrain.data.segmentation.adaptation import PairedImage
from vistrain.errors import ConfigError, DataError
from vistrain.segmentation import MFM, DAFormerHead, SegFormerHead
from vistrain.segmentation.mfm import Rebuilder, masked_squares
from vistrain.segmentation.self_training import pasted_classes
from vistrain.structures import Factory, LabelSpace

LABELS = LabelSpace(("a", "b", "c"), (0, 1, 2), ignore_index=255)


def network(head: Any = DAFormerHead, **more: Any) -> MFM:
    backbone = Backbone("resnet10t", strides=(4, 8), args={"stem_width": 8, "channels": [8, 8, 16, 16]})
    factory = Factory(head, embed_dim=8, **({"dilations": (1, 2)} if head is DAFormerHead else {}))
    return MFM(backbone=backbone, labels=LABELS, head=factory, mask_side=2, rebuilder_kernel=3, **more)


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 2, 3, 32, 48), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (2, 32, 48), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[32, 48]] * 2)
    return {
        "image": images[0], "unlabelled": images[1], "size": sizes, "unlabelled_size": sizes,
        "original_size": sizes, "id": ["a", "b"], "target": [{"label_map": x} for x in labels],
    }  # fmt: skip


def step(model: MFM, optimizer: torch.optim.Optimizer, number: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(number)
    losses = model.train().losses(batch())
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    model.on_step_end(number + 1)
    return losses


def optimizer_of(model: MFM) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def test_steps_and_what_a_checkpoint_holds() -> None:
    torch.manual_seed(0)
    model = network(threshold=0.3)
    optimizer = optimizer_of(model)
    losses = step(model, optimizer, 0)
    assert list(losses) == ["loss_seg", "loss_mixed", "loss_rebuilt"]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = network(threshold=0.3)
    again = optimizer_of(other)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    for number in (1, 2):
        step(model, optimizer, number)
        step(other, again, number)
    assert [n for n, v in model.state_dict().items() if not torch.equal(v, other.state_dict()[n])] == []
    taught, own = model.teacher.network.decode_head, model.decode_head
    assert not torch.equal(taught.conv_seg.weight, own.conv_seg.weight)  # it follows, and is not the student
    assert model.eval().predict(batch())[0].semantic.shape == (32, 48)


def test_half_of_the_classes_are_pasted() -> None:
    labels = torch.tensor([[[0, 1, 2, 5], [255, 0, 1, 2]], [[7, 7, 7, 7], [7, 255, 7, 7]]])
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        found = pasted_classes(labels, 255)
        chosen = labels[0][found[0]].unique().tolist()
        assert len(chosen) == 2
        assert torch.equal(found[0], torch.isin(labels[0], torch.tensor(chosen)))
        assert torch.equal(found[1], labels[1] == 7)
        seen.add(tuple(chosen))
    assert len(seen) > 2


def test_an_image_is_trusted_by_its_share_of_sure_pixels() -> None:
    model = network().eval()
    images = model.normalize(batch()["unlabelled"], batch()["size"])[0]
    chance = model.teacher.network(images).softmax(1).amax(1)
    for threshold in (0.0, float(chance.median()), 0.999):
        model.threshold = threshold
        labels, quality = model.labelled(images)
        assert labels.shape == (2, 32, 48)
        assert ((quality >= 0) & (quality <= 1)).all()
        assert (quality == 1).all() == (threshold == 0)
        assert (quality == 0).all() == (threshold == 0.999)


def test_squares_of_features_are_masked_and_only_they_are_replaced() -> None:
    features = torch.randn(3, 4, 7, 10, generator=torch.Generator().manual_seed(0))
    masked = masked_squares(features, 0.5, 2)
    assert masked.shape == (3, 1, 7, 10)
    cells = masked[:, :, ::2, ::2]
    assert cells.sum((1, 2, 3)).tolist() == [10] * 3  # of 4 x 5 squares
    assert torch.equal(masked, cells.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :7, :10])
    rebuilder = Rebuilder(4, 1, 3)
    rebuilder.layers = torch.nn.ModuleList()
    found = rebuilder(features, masked)
    assert torch.equal(found[~masked.expand_as(found)], features[~masked.expand_as(found)])
    assert torch.equal(
        found.permute(0, 2, 3, 1)[masked[:, 0]], rebuilder.mask_token[:, :, 0, 0].expand(masked.sum(), -1)
    )


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="SegFormerHead does not classify one map of features"):
        network(SegFormerHead)
    with pytest.raises(ConfigError, match=r"model.mask_ratio: 1.0 keeps nothing"):
        network(mask_ratio=1.0)
    with pytest.raises(ConfigError, match=r"model.mask_ratio: 0.0 masks nothing"):
        network(mask_ratio=0.0)
    given = batch()
    with pytest.raises(ConfigError, match=r"model.mask_side: squares of 8 on 6x8 features: one, which is never masked"):
        masked_squares(torch.zeros(1, 2, 6, 8), 0.5, 8)
    del given["unlabelled"]
    with pytest.raises(ConfigError, match=r"gives no unlabelled images - take data.AdaptationFolders"):
        network().losses(given)


def test_each_labelled_image_has_an_unlabelled_one_beside_it(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for folder, count in (("source", 3), ("other/in", 4), ("val", 2)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(count):
            shade = draw.integers(0, 256, (40, 50, 3), np.uint8) if folder == "source" else np.full((40, 50, 3), 9 * i)
            Image.fromarray(shade.astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
            (tmp_path / "masks" / folder).mkdir(exist_ok=True, parents=True)
            Image.fromarray(draw.integers(0, 3, (40, 50), np.uint8)).save(tmp_path / "masks" / folder / f"{i}.png")
    made: dict[str, Any] = {
        "root": str(tmp_path), "train": MaskSplit("source", "masks/source"), "val": MaskSplit("val", "masks/val"),
        "classes": ("a", "b", "c"), "batch_size": 2, "workers": 0,
        "augment": MaskAugment(crop=(16, 24), scale=None, color=False),
    }  # fmt: skip
    data = AdaptationFolders(unlabelled="other", **made)
    samples = data.dataset("train")
    shades = {int(samples.sample(0, seed).unlabelled[0, 0, 0]) for seed in range(20)}
    assert shades == {0, 9, 18, 27}
    again = samples.sample(1, 5)
    assert np.array_equal(again.unlabelled, samples.sample(1, 5).unlabelled)
    found = next(iter(data.train_dataloader()))
    assert found["image"].shape == found["unlabelled"].shape == (2, 3, 16, 24)
    assert found["num_targets"] == 2 * 16 * 24
    assert "unlabelled" not in next(iter(data.val_dataloader()))
    mixed = [PairedImage(sample.labelled, sample.unlabelled[:12, :30]) for sample in map(samples.sample, (0, 1))]
    mixed[0] = PairedImage(mixed[0].labelled, np.full((12, 30, 3), 7, np.uint8))
    found = data.collate(mixed)
    assert found["image"].shape == found["unlabelled"].shape == (2, 3, 16, 30)
    assert found["unlabelled_size"][0].tolist() == [12, 30]
    assert found["unlabelled"][0].sum() == 3 * 12 * 30 * 7
    (tmp_path / "other" / "bad.png").write_text("no picture")
    report = AdaptationFolders(unlabelled="other", **made).check(tmp_path / "report")
    assert not report.ok
    assert [Path(file).name for file in report.splits["train"].bad_files] == ["bad.png"]
    with pytest.raises(DataError, match=r"nothing: no such folder - correct data.unlabelled"):
        AdaptationFolders(unlabelled="nothing", **made).find("train")
