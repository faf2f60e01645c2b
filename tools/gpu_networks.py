"""The networks that `gpu_check.py` measures: one of each kind, on random data, as their tasks train them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gpu_measuring import Check, flops
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.devices import triton_serves
from vistrain.network import Network
from vistrain.structures import LabelSpace


def network(
    check: Check,
    part: str,
    name: str,
    model: nn.Module,
    evaluate: Callable[[nn.Module], object],
    losses: Callable[[nn.Module], Tensor],
    images: int,
    compile_parts: Sequence[str] | None = None,
    profile: bool = True,
) -> None:
    """Forward pass and training step in bf16, and rows of what they cost.

    Args:
        check, part, name: where rows go.
        model: on the device.
        evaluate: a forward pass.
        losses: of a training batch, to be minimised.
        images: in a batch.
        compile_parts: sub-modules to compile first, `""` for all of it; None: eager.
        profile: count waits and kernels of a step.
    """
    how = "eager" if compile_parts is None else "compiled"
    for path in compile_parts or ():
        model.get_submodule(path).compile(dynamic=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def infer() -> None:
        with torch.no_grad(), check.half():
            evaluate(model)

    def gradients() -> None:
        with check.half():
            loss = losses(model)
        loss.backward()

    def step() -> None:
        gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    if check.cuda:  # warm up
        infer()
    forward_ms = check.milliseconds(infer)
    model.train()
    operations = flops(gradients) if compile_parts is None else None
    if check.cuda:
        step()
        step()
    training_ms = check.milliseconds(step, 1.0, 20)
    numbers: dict[str, Any] = {
        "batch": images,
        "forward_images_per_s": 1000 * images / forward_ms,
        "step_ms": training_ms,
        "step_images_per_s": 1000 * images / training_ms,
        "peak_gib": check.peak_gib(step),
    }
    known = FLOPS.setdefault((part, name), operations) or 0.0
    if check.rates and known:
        numbers["tflop_per_step"] = known / 1e12
        numbers["share_of_matrix_rate"] = known / (training_ms / 1000) / check.rates["matrix"]
    if profile:
        places = check.optional(lambda: check.waits(step))
        numbers["waits"] = None if places is None else sum(places.values())
        found = check.optional(lambda: check.kernels(step))
        if found is not None:
            numbers["gpu_busy"] = found[1] / training_ms
            numbers["kernels"] = found[0]
        if places:
            numbers["waits_at"] = places
    check.record(part, f"{name}, {how}", **numbers)


FLOPS: dict[tuple[str, str], float | None] = {}  # of a step by part and name, counted once, eagerly


def classifier(check: Check, part: str, name: str, batch: int, how: str, side: int = 224) -> None:
    """A timm model, ours among them, trained with cross-entropy on random images."""
    import timm

    import vistrain.backbones  # noqa: F401 - registers ours

    arguments: dict[str, Any] = {"num_classes": 1000}
    if check.dry:
        name, batch, side = "test_vit", 2, 32
        arguments = {"num_classes": 10, "img_size": 32}
    model = timm.create_model(name, **arguments).to(check.device, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, side, side, device=check.device).to(memory_format=torch.channels_last)
    labels = torch.randint(arguments["num_classes"], (batch,), device=check.device)
    network(
        check,
        part,
        name,
        model,
        lambda model: model(images),
        lambda model: F.cross_entropy(model(images), labels),
        batch,
        None if how == "eager" else ("",),
    )


def detector(check: Check, kind: str, core: str, batch: int, how: str) -> None:
    """A detector of the DETR family with ResNet-50 at 800x1333, matching and all losses included."""
    from vistrain.backbones import Backbone
    from vistrain.detection import DINO, DeformableDETR, FocusDETR

    sizes: dict[str, Any] = {"sampling_core": core}
    image, backbone = (800, 1333), "resnet50"
    if check.dry:
        sizes |= {"embed_dim": 32, "num_heads": 2, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
        sizes |= {"num_queries": 10} | ({"cascade": (1.0,), "topk_sa": 5} if kind == "FocusDETR" else {})
        image, backbone, batch = (32, 64), "test_resnet", 1
    body = Backbone(backbone, strides=(8, 16, 32), freeze_at_stride=4, frozen_norm=True)
    kinds = {"DeformableDETR": DeformableDETR, "DINO": DINO, "FocusDETR": FocusDETR}
    model = kinds[kind](body, classes(80), **sizes).to(check.device)
    model.backbone.to(memory_format=torch.channels_last)
    corners = torch.rand(batch, 7, 2, device=check.device) * 0.6
    boxes = torch.cat((corners, corners + 0.05 + torch.rand_like(corners) * 0.3), -1)
    boxes = boxes * torch.tensor([image[1], image[0]] * 2, device=check.device)
    given = {
        **pictures(check, batch, image),
        "target": [{"boxes": b, "labels": torch.arange(7, device=check.device)} for b in boxes],
        "num_targets": torch.tensor(7.0 * batch, device=check.device),
    }
    served = core if core != "triton" or triton_serves(check.device) else "triton is not here, a plain core"
    task(check, "detection", f"{kind}, {served}", model, given, how)


def segmenter(check: Check, kind: str, batch: int, how: str) -> None:
    """UPerNet with Swin-T, or Mask2Former with ResNet-50, on crops of 512, losses included."""
    from vistrain import segmentation
    from vistrain.backbones import Backbone
    from vistrain.structures import Factory

    side, count, batch = (64, 5, 2) if check.dry else (512, 150, batch)
    name = "test_resnet" if check.dry else {"UPerNet": "swin_tiny_patch4_window7_224", "Mask2Former": "resnet50"}[kind]
    body = Backbone(name, strides=(4, 8, 16, 32))
    model: Network
    if kind == "UPerNet":
        width = 16 if check.dry else 512
        model = segmentation.SemanticSegmenter(
            body,
            classes(count),
            Factory(segmentation.UPerHead, embed_dim=width),
            auxiliary=Factory(segmentation.FCNHead, embed_dim=width // 2, stride=16),
        )
        target = {"label_map": torch.randint(count, (side, side), device=check.device, dtype=torch.uint8)}
    else:
        few: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "ffn_dim": 32, "num_layers": 1} if check.dry else {}
        queries: dict[str, Any] = {"num_queries": 5} if check.dry else {}
        widths: dict[str, Any] = {"mask_dim": 8} if check.dry else {}
        model = segmentation.Mask2Former(
            body,
            classes(count),
            pixel_decoder=Factory(segmentation.DeformablePixelDecoder, **few, **widths),
            decoder=Factory(segmentation.MaskedDecoder, **few, **queries),
        )
        parts = torch.arange(side, device=check.device) * 7 // side  # seven regions, bands
        masks = (parts == torch.arange(7, device=check.device)[:, None])[:, :, None].expand(-1, -1, side)
        target = {"labels": torch.arange(7, device=check.device) % count, "masks": masks.contiguous()}
    model = model.to(check.device)
    given = {**pictures(check, batch, (side, side)), "target": [target] * batch}
    task(check, "segmentation", f"{kind}, {name}, {side} pixels", model, given, how)


def volume(check: Check, batch: int, how: str) -> None:
    """nnU-Net's plain 3-D network of six levels on patches of 128 voxels, four channels, deep supervision."""
    from vistrain.segmentation import UNet3d, VolumeSegmenter
    from vistrain.structures import Channels, Factory

    widths, side, batch = ((4, 8), 16, 1) if check.dry else ((32, 64, 128, 256, 320, 320), 128, batch)
    network = Factory(UNet3d, widths=widths)
    model = VolumeSegmenter(classes(4), network, window=(side,) * 3, channels=Channels(4)).to(check.device)
    size = torch.tensor([[side] * 3] * batch, device=check.device)
    truth = torch.randint(4, (side,) * 3, device=check.device, dtype=torch.uint8)
    given = {
        "image": torch.randn(batch, 4, *(side,) * 3, device=check.device),
        "size": size,
        "original_size": size,
        "id": list(range(batch)),
        "target": [{"label_map": truth}] * batch,
    }
    task(check, "volumes", f"3-D U-Net, patches of {side}", model, given, how)


def classes(count: int) -> LabelSpace:
    """So many of them."""
    return LabelSpace(tuple(f"class {i}" for i in range(count)), tuple(range(count)))


def pictures(check: Check, batch: int, image: tuple[int, int]) -> dict[str, Any]:
    """A batch of random pictures of (height, width) = `image` pixels, without targets."""
    size = torch.tensor([image] * batch, device=check.device)
    images = torch.randint(256, (batch, 3, *image), device=check.device, dtype=torch.uint8)
    known = {"size": size, "host_size": [image] * batch, "original_size": size}
    return {"image": images, **known, "id": list(range(batch))}


def task(check: Check, part: str, name: str, model: Network, given: Mapping[str, Any], how: str) -> None:
    """A network of ours as its task trains it: its losses of a batch, and its predictions."""
    network(
        check,
        part,
        name,
        model,
        lambda _: model.predict(given),
        lambda _: torch.stack([loss.reshape(()) for loss in model.losses(given).values()]).sum(),
        len(given["image"]),
        None if how == "eager" else model.compiled_parts,
    )


def restorer(check: Check, batch: int, how: str) -> None:
    """HAT x4 on patches of 64 pixels."""
    from vistrain.restoration import HAT

    small: dict[str, Any] = {"depths": (1,), "num_heads": (2,), "embed_dim": 12, "window_size": 4} if check.dry else {}
    small |= {"compress_ratio": 3, "squeeze_factor": 4} if check.dry else {}
    side, batch = (16, 1) if check.dry else (64, batch)
    model = HAT(upscale=4, **small).to(check.device)
    images = torch.rand(batch, 3, side, side, device=check.device)
    truth = torch.rand(batch, 3, 4 * side, 4 * side, device=check.device)
    network(
        check,
        "restoration",
        "HAT x4, 64 pixels",
        model,
        lambda model: model(images),
        lambda model: (model(images) - truth).abs().mean(),
        batch,
        None if how == "eager" else ("",),
    )
