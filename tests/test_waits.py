"""How often a training step makes the host wait for a GPU: the least that each task needs, so that none is added."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from detector_tools import make_batch
from device_waits import DeviceWaits, counted
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.overrides import TorchFunctionMode
from torch.utils.data._utils.pin_memory import pin_memory
from torch.utils.weak import WeakTensorKeyDictionary

from vistrain import devices, segmentation
from vistrain.backbones import Backbone, TimmModel
from vistrain.classification import Classifier
from vistrain.data.base.collate import batch_of
from vistrain.detection import (
    ATSS,
    DINO,
    GFL,
    CascadeMaskRCNN,
    DeformableDETR,
    FasterRCNN,
    FocusDETR,
    MaskRCNN,
    RetinaNet,
)  # fmt: skip
from vistrain.detection.roi_heads import BoxHead
from vistrain.detection.rpn import RPNHead
from vistrain.devices import upload
from vistrain.layers.packed_masks import PackedMasks
from vistrain.losses import MaskCriterion, PixelCrossEntropy
from vistrain.necks import FPN
from vistrain.pretraining import MAE, PatchEncoder
from vistrain.restoration import NAFNet, RestorationModel, SwinIR
from vistrain.structures import Channels, Factory, LabelSpace

LABELS = LabelSpace(tuple("abcde"), tuple(range(5)))
SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "ffn_dim": 32, "num_queries": 8, "encoder_layers": 1}
SMALL |= {"decoder_layers": 2}
SIZES = [(64, 64), (48, 64)]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at on a CPU alone is not looked at, as if the tensors were on a GPU."""
    monkeypatch.setattr(devices, "reads_freely", lambda tensor: False)


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
        (FocusDETR, {"cascade": (1.0,)}, ["matching/hungarian.py: cpu"]),
    ],
)
@pytest.mark.parametrize("core", ["grid_sample", "embedding_bag"])
def test_detection_waits_for_the_costs_of_matching_alone(
    kind: type[DeformableDETR | DINO],
    more: dict[str, Any],
    expected: list[str],
    core: str,
) -> None:
    backbone = Backbone("test_resnet", strides=(8, 16, 32), frozen_norm=True)
    model = kind(backbone, LABELS, sampling_core=core, **SMALL, **more).train()
    waits = counted(functools.partial(step, model, detection_batch()))
    assert places(waits) == expected, waits.places


def detection_batch() -> dict[str, Any]:
    """One image with objects, and a smaller one without; as the collate function gives it."""
    return make_batch([3, 0], SIZES) | {"host_size": SIZES}


def places(waits: DeviceWaits) -> list[str]:
    """File and operation of each wait."""
    return sorted(f"{place.split(':')[0]}:{place.split(':')[2]}" for place in waits.places.elements())


@pytest.mark.parametrize("kind", [RetinaNet, ATSS, GFL])
def test_detection_with_anchors_waits_for_how_many_are_positive(kind: type[RetinaNet | ATSS | GFL]) -> None:
    model = kind(Backbone("test_resnet", strides=(8, 16, 32), frozen_norm=True), LABELS).train()
    waits = counted(functools.partial(step, model, detection_batch()))
    assert places(waits) == ["devices.py: tolist"], waits.places


# How many anchors there are of each kind, which proposals are empty, and what suppression leaves over in each image
PROPOSING = ["devices.py: tolist"] * 2 + ["layers/boxes.py: nms"] * 2
STAGE = ["devices.py: tolist", "detection/roi_heads.py: cpu"]  # how many regions of each kind; their levels and owners


@pytest.mark.parametrize(
    ("kind", "packed", "expected"),
    [
        (FasterRCNN, False, PROPOSING + STAGE),
        (MaskRCNN, True, PROPOSING + STAGE),
        (CascadeMaskRCNN, False, PROPOSING + 3 * STAGE),
    ],
)
def test_detection_in_two_stages_waits_for_sizes_of_what_it_selects(
    kind: type[FasterRCNN | CascadeMaskRCNN], packed: bool, expected: list[str]
) -> None:
    backbone = Backbone("test_resnet", strides=(4, 8, 16, 32), frozen_norm=True)
    boxes, rpn = {"fc_dim": 8} | kind.default_box_head.arguments, {"embed_dim": 8} | kind.default_rpn.arguments
    parts = {"neck": Factory(FPN, num_levels=5, embed_dim=8), "rpn": Factory(RPNHead, **rpn)}
    model = kind(backbone, LABELS, box_head=Factory(BoxHead, **boxes), **parts).train()
    batch = detection_batch()
    for target, size in zip(batch["target"], SIZES, strict=True):
        masks = torch.rand(len(target["labels"]), *size) > 0.5
        target["masks"] = PackedMasks.of_tensor(masks) if packed else masks
    waits = counted(functools.partial(step, model, batch))
    assert places(waits) == sorted(expected), waits.places


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


FEW: dict[str, Any] = {"embed_dim": 32, "num_heads": 4, "ffn_dim": 16, "num_layers": 2}


def given(targets: list[dict[str, Any]], images: torch.Tensor | None = None) -> dict[str, Any]:
    """A batch of two images of 64x64 pixels, of which the second is smaller."""
    size = torch.tensor(SIZES if images is None else [images.shape[2:]] * 2)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8) if images is None else images
    return {"image": images, "size": size, "original_size": size, "id": [0, 1], "target": targets}


@pytest.mark.parametrize("loss", [{}, {"over_all": False, "class_weights": (1.0, 2.0, 1.0, 1.0, 1.0)}])
@pytest.mark.parametrize("head", [segmentation.UPerHead, segmentation.SegFormerHead])
def test_segmentation_waits_for_nothing(head: type[segmentation.DecodeHead], loss: dict[str, Any]) -> None:
    model = segmentation.SemanticSegmenter(
        Backbone("test_resnet", strides=(4, 8, 16, 32)),
        LABELS,
        Factory(head, embed_dim=16),
        auxiliary=Factory(segmentation.FCNHead, embed_dim=8, stride=16),
        loss=PixelCrossEntropy(**loss),
    )
    batch = given([{"label_map": torch.randint(5, size, dtype=torch.uint8)} for size in SIZES])
    assert not counted(functools.partial(step, model.train(), batch)).places


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [segmentation.Mask2Former, segmentation.PEM])
def test_mask_classification_waits_for_the_costs_of_matching_alone(
    kind: type[segmentation.MaskClassifier], packed: bool
) -> None:
    pixels = Factory(segmentation.DeformablePixelDecoder, mask_dim=8, **FEW)
    decoder = Factory(segmentation.MaskedDecoder, num_queries=5, **FEW)
    if kind is segmentation.PEM:
        pixels = Factory(segmentation.PEMPixelDecoder, embed_dim=32, mask_dim=8)
        decoder = Factory(segmentation.PEMDecoder, num_queries=5, **FEW)
    body = Backbone("test_resnet", strides=(4, 8, 16, 32))
    model = kind(body, LABELS, pixel_decoder=pixels, decoder=decoder, criterion=MaskCriterion(num_points=20)).train()
    masks = [torch.rand(count, *size) > 0.5 for count, size in zip((3, 2), SIZES, strict=True)]
    targets = [
        {"labels": torch.arange(len(mask)), "masks": PackedMasks.of_tensor(mask) if packed else mask} for mask in masks
    ]
    waits = counted(functools.partial(step, model, given(targets)))
    assert places(waits) == ["matching/masks.py: cpu"], waits.places


@pytest.mark.parametrize("outputs", ["softmax", "regions"])
def test_volumes_wait_for_nothing(outputs: segmentation.volume.Outputs) -> None:
    regions = (("WT", (1, 2, 3)), ("TC", (1, 3)), ("ET", (3,)))
    labels = LabelSpace(("background", "necrosis", "oedema", "enhancing"), (0, 1, 2, 4), regions=regions)
    network = Factory(segmentation.UNet3d, widths=(4, 8, 8))
    model = segmentation.VolumeSegmenter(labels, network, outputs, channels=Channels(2)).train()
    truth = [{"label_map": torch.randint(4, (16, 16, 16), dtype=torch.uint8)} for _ in range(2)]
    batch = given(truth, torch.randn(2, 2, 16, 16, 16)) | {"num_targets": 8192.0, "micro_batches": 1}
    assert not counted(functools.partial(step, model, batch)).places


def test_pretraining_waits_for_nothing() -> None:
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    encoder = PatchEncoder("vit_tiny_patch16_224", args=vit, image_channels=Channels(3))
    model = MAE(encoder, decoder_dim=16, decoder_depth=1, decoder_heads=2).train()
    batch = given([], torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
    assert not counted(functools.partial(step, model, batch)).places


class Transfers(TorchFunctionMode):
    """Plays a machine on which memory can be pinned, and notes the copies from there.

    Attributes:
        copies: of each whether it was from pinned memory, and whether the host does not wait for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[bool, bool]] = []
        self._pinned = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.__name__
        if name == "is_pinned":
            return args[0] in self._pinned
        if name == "pin_memory":
            pinned = args[0].clone()
            self._pinned[pinned] = True
            return pinned
        if name == "to":
            self.copies.append((args[0] in self._pinned, bool(kwargs.get("non_blocking"))))
        return func(*args, **kwargs)


def test_all_of_a_batch_is_copied_from_pinned_memory_without_waiting() -> None:
    masks = torch.rand(2, 4, 6) > 0.5
    target = {"labels": torch.arange(2), "masks": PackedMasks.of_tensor(masks), "name": "a"}
    batch = batch_of([np.ones((4, 6, 3), np.uint8)], [(8, 12)], ["a"], [target])
    batch |= {"views": [torch.ones(2)], "num_targets": 2.0}
    with Transfers() as transfers:
        moved = move_data_to_device(pin_memory(batch), torch.device("meta"))
    # image, size, original_size, labels, two tensors of masks, and a view
    assert transfers.copies == [(True, True)] * 7
    assert moved["image"].dtype == torch.uint8
    assert moved["host_size"] == [(4, 6)]


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
