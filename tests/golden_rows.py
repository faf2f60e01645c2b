"""Golden rows: sampled outputs of ours under weights that a formula gives, so that they run everywhere, for ever.

A row is written once a model equals its authors' code (`tests/parity`); `python tests/golden_rows.py` writes those that
are missing. A row that differs afterwards is a changed model, and is mended there and not here.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from backbone_contract import CASES, Case
from parity.models import FourMaps, TinyBackbone, TinyBody, as_batch, contiguous
from torch import Tensor, nn

from vistrain.detection import (
    ATSS,
    DINO,
    GFL,
    ATSSHead,
    BoxHead,
    CascadeMaskRCNN,
    DeformableDETR,
    FocusDETR,
    GFLHead,
    MaskHead,
    MaskRCNN,
    RetinaHead,
    RetinaNet,
    RPNHead,
)
from vistrain.detr import ContrastiveDenoising, DenoisingNoise
from vistrain.matching.overlap import RandomSampler
from vistrain.necks import FPN
from vistrain.restoration import DRCT, HAT, MAXIM, RGT, DLGSANet, DnCNN, NAFNet, NAFNetLocal, SwinIR
from vistrain.segmentation import (
    PEM,
    BEVANet,
    DAFormerHead,
    DeformablePixelDecoder,
    ESPNet,
    FCNHead,
    FPNHead,
    GatedPixelDecoder,
    Mask2Former,
    MaskedDecoder,
    PEMDecoder,
    PEMPixelDecoder,
    SegFormerHead,
    SemanticSegmenter,
    UPerHead,
    VWCityHead,
    VWHead,
    WNet,
)
from vistrain.segmentation.scnn import MessagePassing
from vistrain.structures import Factory

FOLDER = Path(__file__).parent / "golden"
SAMPLES = 8


def wave(shape: tuple[int, ...], name: str) -> Tensor:
    """Float32 numbers in -1..1 that depend on nothing but the name; no random generator, whose streams may change."""
    phase = zlib.crc32(name.encode()) % 10_000 / 1000
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (12.9898 * steps + phase).sin().mul(43758.5453).frac().reshape(shape).float()


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Every floating-point tensor by formula: variances and norm weights near 1, matrices scaled to their fan-in."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        values = wave(tuple(tensor.shape), name)
        if tensor.dim() > 1:
            values *= 1.7 / math.sqrt(tensor[0].numel())
        elif name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            values = 1 + 0.3 * values
        else:
            values *= 0.3
        tensor.copy_(values)
    return module


def sampled(tensor: Tensor) -> list[float]:
    """A few values spread over a tensor, to six digits."""
    flat = tensor.detach().double().flatten()
    index = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat))).long()
    return [float(f"{value:.6g}") for value in flat[index].tolist()]


def detector_batch(second: tuple[int, int]) -> dict[str, Any]:
    """Two uint8 images, the first of 96x128 pixels, with three objects."""
    sizes = {"image 96": (96, 128), "image 72": second}
    images = [wave((3, *size), name).add(1).mul(127.5).to(torch.uint8) for name, size in sizes.items()]
    boxes = [torch.tensor([[8.0, 10.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]), torch.tensor([[5.0, 5.0, 40.0, 60.0]])]
    return as_batch(images, [torch.tensor([1, 4]), torch.tensor([0])], boxes, scale=2)


def detector(cls: type[nn.Module], second: tuple[int, int] = (72, 80), **changes: Any) -> Callable[[], dict[str, Any]]:
    """Outputs, losses and detections of a small detector; `second` is the size of the batch's second image."""

    def row() -> dict[str, Any]:
        widths = [8, 12, 16, 20]
        sizes = {"embed_dim": 32, "num_heads": 4, "num_queries": 10, "encoder_layers": 2, "decoder_layers": 2}
        backbone = TinyBackbone(TinyBody(widths), tuple(widths[1:]))
        model = cls(backbone, contiguous(5), ffn_dim=48, dropout=0.0, **sizes, **changes)
        fill(model).eval()
        batch = detector_batch(second)
        with torch.no_grad():
            outputs = model(*model.normalize(batch["image"], batch["size"]))
            losses = model.losses(batch, denoising_noise() if model.denoising else None)
        found = model.predict(batch)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "logits": sampled(outputs["pred_logits"]),
            "boxes": sampled(outputs["pred_boxes"]),
            "detected scores": sampled(found[0].scores),
            "detected boxes": sampled(found[0].boxes),
            "losses": {name: float(f"{value.item():.6g}") for name, value in losses.items()},
        }

    return row


def network(build: Callable[[], nn.Module], size: tuple[int, int, int]) -> Callable[[], dict[str, Any]]:
    """Outputs of a network that takes an image of `size` (C, H, W) and gives one."""

    def row() -> dict[str, Any]:
        model = fill(build()).eval()
        with torch.no_grad():
            output = model(wave((1, *size), "image").add(1).div(2))
        return {"parameters": sum(p.numel() for p in model.parameters()), "output": sampled(output)}

    return row


def backbone(case: Case) -> Callable[[], dict[str, Any]]:
    """Logits of a small backbone, and its maps of an image that is odd and not square."""

    def row() -> dict[str, Any]:
        dtype = torch.float64 if case.sorts else torch.float32
        model = fill(timm.create_model(case.name, num_classes=8, **case.args)).eval().to(dtype)
        with torch.no_grad():
            logits = model(wave((1, 3, *case.size), "image").to(dtype))
            odd = wave((1, 3, *case.sizes[0]), "image").to(dtype)
            maps = model.forward_intermediates(odd, intermediates_only=True)
        numbers = {f"stage {i}": sampled(x) for i, x in enumerate(maps, 1)}
        return {"parameters": sum(p.numel() for p in model.parameters()), "logits": sampled(logits), **numbers}

    return row


def four_maps() -> TinyBackbone:
    """A small backbone of strides 4 to 32."""
    widths = (8, 12, 16, 20)
    return TinyBackbone(FourMaps(list(widths)), widths, (4, 8, 16, 32))


def head(cls: Any, **changes: Any) -> Callable[[], dict[str, Any]]:
    """Logits of a small segmenter with this head."""
    made = Factory(cls, embed_dim=changes.pop("embed_dim", 8), **changes)
    return network(lambda: SemanticSegmenter(four_maps(), contiguous(5), made), (3, 64, 128))


def masks(cls: Any, pixels: Any, decoder: Any, **changes: Any) -> Callable[[], dict[str, Any]]:
    """Classes and masks of a small network of queries."""
    sizes = {"embed_dim": 32, "num_queries": 6, "num_layers": 3, "num_heads": 4, "ffn_dim": 16}
    parts = {
        "pixel_decoder": Factory(pixels, embed_dim=32, mask_dim=8, **changes),
        "decoder": Factory(decoder, **sizes),
    }

    def row() -> dict[str, Any]:
        model = fill(cls(four_maps(), contiguous(5), **parts)).eval()
        with torch.no_grad():
            outputs = model(wave((1, 3, 64, 96), "image"))
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "logits": sampled(outputs["pred_logits"]),
            "masks": sampled(outputs["pred_masks"]),
        }

    return row


def anchors(build: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """Losses and detections of a detector of anchors, whose samples are the first there are."""

    def row() -> dict[str, Any]:
        model = fill(build()).eval()
        batch = detector_batch(SAME)
        for target, size in zip(batch["target"], batch["size"].tolist(), strict=True):
            target["masks"] = wave((len(target["labels"]), *size), "masks") > 0
        with torch.no_grad():
            losses = model.losses(batch)
        found = model.predict(batch)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "detected scores": sampled(found[0].scores),
            "detected boxes": sampled(found[0].boxes),
            "losses": {name: float(f"{value.item():.6g}") for name, value in losses.items()},
        }

    return row


def dense(cls: Any, kind: Any, extra: str) -> Callable[[], dict[str, Any]]:
    """A detector whose levels share a head."""
    neck, made = Factory(FPN, embed_dim=32, num_levels=5, extra=extra), Factory(kind, embed_dim=32, num_convs=1)
    widths = [8, 12, 16, 20]
    return anchors(lambda: cls(TinyBackbone(TinyBody(widths), (12, 16, 20)), contiguous(5), neck=neck, head=made))


def first(count: int, share: float) -> RandomSampler:
    """A sampler that takes the first there are."""
    sampler = RandomSampler(count, share)
    sampler.draw = torch.arange
    return sampler


def staged(cls: Any, **box: Any) -> Callable[[], dict[str, Any]]:
    """A detector of proposals."""
    parts = {
        "neck": Factory(FPN, embed_dim=8, num_levels=5),
        "rpn": Factory(RPNHead, embed_dim=8, sampler=first(64, 0.5), proposals=(50, 50)),
        "box_head": Factory(BoxHead, fc_dim=8, **box),
        "mask_head": Factory(MaskHead, num_convs=1, embed_dim=8),
        "sampler": first(32, 0.25),
    }
    return anchors(lambda: cls(four_maps(), contiguous(5), **parts))


def denoising_noise() -> DenoisingNoise:
    """Draws for three objects, at most two in an image, and six positives: three groups."""
    count = 2 * 3 * 3
    return DenoisingNoise(
        label_draw=wave((count,), "draw").abs(),
        new_labels=wave((count,), "labels").abs().mul(5).long(),
        signs=wave((count, 4), "signs").sign(),
        magnitudes=wave((count, 4), "magnitudes").abs(),
    )


SWIN: dict[str, Any] = {"img_size": 16, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3), "window_size": 4}
NAFNET: dict[str, Any] = {"width": 8, "enc_blk_nums": (1, 1), "dec_blk_nums": (1, 1)}
REFINED = {"box_refinement": True}
SAME = (96, 128)
TWO_STAGE = {**REFINED, "two_stage": True}
ROWS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "deformable_detr": detector(DeformableDETR),
    "deformable_detr_single_scale": detector(DeformableDETR, num_levels=1),
    "deformable_detr_refine": detector(DeformableDETR, **REFINED),
    "deformable_detr_two_stage": detector(DeformableDETR, **TWO_STAGE),
    "deformable_detr_denoising": detector(DeformableDETR, **TWO_STAGE, denoising=ContrastiveDenoising(number=6)),
    # Padded tokens all score alike, and here they score well: which of them is chosen would be anyone's guess.
    "dino": detector(DINO, SAME, denoising=ContrastiveDenoising(number=6, box_noise_scale=0.4)),
    "dino_detrex": detector(
        DINO,
        SAME,
        shared_heads=False,
        spare_label=False,
        position_temperature=10000.0,
        position_offset=-0.5,
        mask_padding_in_eval=False,
        clip_boxes=True,
        denoising=ContrastiveDenoising(number=6),
    ),
    "focus_detr": detector(
        FocusDETR, SAME, keep_ratio=0.4, cascade=(1.0, 0.6), topk_sa=20, denoising=ContrastiveDenoising(number=6)
    ),
    "dncnn": network(lambda: DnCNN(nc=8, nb=5), (1, 13, 18)),
    "dncnn_weighted": network(lambda: DnCNN(nc=8, nb=5, act_mode="R", den=(0.7,)), (1, 13, 18)),
    "nafnet": network(lambda: NAFNet(**NAFNET), (3, 13, 18)),
    "nafnet_local": network(lambda: NAFNetLocal(**NAFNET, train_size=(8, 8)), (3, 23, 18)),
    "swinir": network(lambda: SwinIR(**SWIN, upscale=3, resi_connection="3conv"), (3, 13, 18)),
    "swinir_denoising": network(lambda: SwinIR(**SWIN, upscale=1, upsampler="none", in_chans=1), (1, 12, 16)),
    "swinir_real": network(lambda: SwinIR(**SWIN, upscale=4, upsampler="nearest+conv"), (3, 12, 8)),
    "swinir_light": network(lambda: SwinIR(**SWIN, upscale=2, upsampler="pixelshuffledirect"), (3, 12, 8)),
    "hat": network(lambda: HAT(**SWIN, squeeze_factor=4), (3, 12, 16)),
    "drct": network(lambda: DRCT(**SWIN | {"num_heads": (2, 4)}, gc=4), (3, 12, 16)),
    "rgt": network(lambda: RGT(embed_dim=64, depth=(3, 2), num_heads=(2, 4), split_size=(4, 8)), (3, 18, 29)),
    "dlgsanet": network(
        lambda: DLGSANet(dim=12, groups=2, blocks=1, restormer_num_heads=3, tlc_kernel=12), (3, 13, 30)
    ),
    "maxim": network(
        lambda: MAXIM(
            features=4,
            num_supervision_scales=2,
            block_size_hr=(4, 2),
            block_size_lr=(2, 2),
            grid_size_hr=(2, 4),
            channels_reduction=2,
        ),
        (3, 13, 18),
    ),
    "upernet": head(UPerHead),
    "fcn": head(FCNHead, num_convs=2, concat_input=True),
    "semantic_fpn": head(FPNHead),
    "segformer": head(SegFormerHead),
    "daformer": head(DAFormerHead, pool=True),
    "vwformer": head(VWHead, embed_dim=64, num_heads=2),
    "vwformer_city": head(VWCityHead, embed_dim=64, short_cut=False),
    "espnet": network(lambda: ESPNet(contiguous(5), alpha3=2), (3, 48, 72)),
    "espnet_raw": network(lambda: ESPNet(contiguous(5), alpha3=2, skip="raw"), (3, 40, 56)),
    "bevanet": network(lambda: BEVANet(contiguous(5), width=8, pyramid_width=8, head_width=8), (3, 128, 96)),
    "wnet": network(lambda: WNet(contiguous(2)), (3, 32, 24)),
    "scnn_message_passing": network(lambda: MessagePassing(6, 5), (6, 7, 9)),
    "mask2former": masks(Mask2Former, DeformablePixelDecoder, MaskedDecoder, num_layers=2, num_heads=4, ffn_dim=32),
    "eco_m2f": masks(Mask2Former, GatedPixelDecoder, MaskedDecoder, num_layers=3, num_heads=4, ffn_dim=32, num_gates=2),
    "pem": masks(PEM, PEMPixelDecoder, PEMDecoder),
    "retinanet": dense(RetinaNet, RetinaHead, "on_input"),
    "atss": dense(ATSS, ATSSHead, "on_output"),
    "gfl": dense(GFL, GFLHead, "on_output"),
    "mask_rcnn": staged(MaskRCNN),
    "cascade_mask_rcnn": staged(CascadeMaskRCNN),
    **{case.name: backbone(case) for case in CASES},
}


def write_missing() -> None:
    """Writes the rows that are not there yet."""
    FOLDER.mkdir(exist_ok=True)
    for name, row in ROWS.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(row(), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write_missing()
