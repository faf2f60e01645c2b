"""Deformable-DETR: Deformable Transformers for End-to-End Object Detection (arXiv 2010.04159).

Authors' code: github.com/fundamentalvision/Deformable-DETR, commit 11169a6, Apache-2.0. The weights of a second
implementation load too: IDEA-Research/detrex, commit e244e6c, Apache-2.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone
from vistrain.detection.deformable_detr_keys import DETREX, OFFICIAL
from vistrain.detection.targets import relative_targets, top_detections
from vistrain.errors import ConfigError
from vistrain.layers.deformable import MSDeformAttn
from vistrain.layers.mlp import MLP
from vistrain.layers.padding import Normalize, resize_mask
from vistrain.layers.position import SinePositionEncoding
from vistrain.losses import SetCriterion, SetPrediction
from vistrain.matching import HungarianMatcher
from vistrain.necks import ChannelMapper
from vistrain.structures import Detections, Factory, LabelSpace, Preprocessing
from vistrain.transformer import (
    ContrastiveDenoising,
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    DenoisingNoise,
    DenoisingQueries,
    box_position,
    token_proposals,
    top_proposals,
    valid_extents,
)


@dataclass(frozen=True)
class _Memory:
    """Encoded tokens `[B, N, C]` of all levels and what is needed to read them; None where nothing is padded."""

    tokens: Tensor
    shapes: list[tuple[int, int]]
    padding_mask: Tensor | None  # [B, N]
    extents: Tensor | None  # [B, L, 2] valid columns and rows
    ratios: Tensor | None  # [B, L, 2] the same as shares of the padded maps


@dataclass(frozen=True)
class _Queries:
    """What enters the decoder: `[B, Q, C]` content and position, `[B, Q, 2 or 4]` reference points in 0..1."""

    content: Tensor
    position: Tensor
    reference_points: Tensor
    proposals: tuple[Tensor, Tensor] | None = None  # two-stage: every token's logits [B, N, K] and boxes [B, N, 4]


class DeformableDETR(nn.Module):
    """Deformable-DETR in its three forms: basic, with box refinement, and two-stage.

    Defaults are the authors'. detrex's models need `inverse_sigmoid_eps=1e-3`, `giou_eps=1e-6` in matcher and
    criterion, `class_weight=1` in the criterion, `mask_padding_in_eval=False`, `clip_boxes=True` and
    `detections_per_image=300`. For the single-scale model give `num_levels=1` (the coarsest map is used).

    Args:
        backbone: gives maps `[B, C_i, H_i, W_i]` fine to coarse. From Python, any module with `.strides` and
            `.channels` (and perhaps `.preprocessing`) will do.
        labels: the label space; its `num_classes` is the number of logits K (91 for COCO's raw ids).
        neck: maps the backbone's maps to `num_levels` maps of `embed_dim`; default `necks.ChannelMapper`.
        num_levels: L.
        embed_dim, num_heads, num_points: C, attention heads, sampling points per head and level.
        num_queries: Q; an image with fewer tokens than that gives one two-stage query per token.
        encoder_layers, decoder_layers, ffn_dim, dropout: of the transformer.
        box_refinement: each decoder layer starts from the boxes of the one before, with heads of its own.
        two_stage: queries are the best of all tokens' proposals (needs `box_refinement`).
        position_temperature, position_offset: of the sine encoding of tokens (see `SinePositionEncoding`).
        inverse_sigmoid_eps: 1e-5 here, 1e-3 in detrex.
        aux_loss: losses on every decoder layer.
        matcher, criterion: default to the authors' weights (2, 5, 2).
        detections_per_image: 100 here; detrex gives more.
        clip_boxes: cut detections at the image's border and drop empty ones (detectron2, detrex).
        mask_padding_in_eval: hide padding from the transformer in evaluation too; detrex does in training only.
        denoising: noised objects as extra training queries (DINO); needs `two_stage`, where boxes have positions.
        activation_checkpointing: recompute transformer layers in the backward pass instead of storing them.
        sampling_core: of `layers.deformable.deformable_sampling`.

    Raises:
        ConfigError: a combination that cannot be built.
    """

    key_maps = (OFFICIAL, DETREX)
    class_layers = (r"^class_embed\.", r"^label_embed\.")
    compiled_parts = ("backbone", "neck", "encoder", "decoder")

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        labels: LabelSpace,
        *,
        neck: Factory[nn.Module] | None = None,
        num_levels: int = 4,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        num_queries: int = 300,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        box_refinement: bool = False,
        two_stage: bool = False,
        position_temperature: float = 10000.0,
        position_offset: float = -0.5,
        inverse_sigmoid_eps: float = 1e-5,
        aux_loss: bool = True,
        matcher: HungarianMatcher | None = None,
        criterion: SetCriterion | None = None,
        detections_per_image: int = 100,
        clip_boxes: bool = False,
        mask_padding_in_eval: bool = True,
        denoising: ContrastiveDenoising | None = None,
        activation_checkpointing: bool = False,
        sampling_core: str = "auto",
    ) -> None:
        super().__init__()
        if two_stage and not box_refinement:
            raise ConfigError("model.two_stage", "two-stage queries are boxes to refine", "set box_refinement: true")
        if denoising is not None and not two_stage:
            raise ConfigError("model.denoising", "noised boxes need queries that are boxes", "set two_stage: true")
        if decoder_layers < 1:
            raise ConfigError("model.decoder_layers", "the decoder needs a layer", "at least 1")
        self.backbone, self.labels = backbone, labels
        # The authors resize bilinearly, whatever the backbone's weights were trained with.
        self.preprocessing = replace(getattr(backbone, "preprocessing", Preprocessing()), interpolation="bilinear")
        self.normalize = Normalize(self.preprocessing)
        neck = neck or Factory(ChannelMapper)
        self.neck = neck(
            channels=backbone.channels, strides=backbone.strides, num_levels=num_levels, embed_dim=embed_dim
        )
        self.box_refinement, self.two_stage, self.aux_loss = box_refinement, two_stage, aux_loss
        self.num_queries, self.denoising = num_queries, denoising
        self.matcher, self.criterion = matcher or HungarianMatcher(), criterion or SetCriterion()
        self.detections_per_image, self.clip_boxes = detections_per_image, clip_boxes
        self.mask_padding_in_eval = mask_padding_in_eval

        self.position = SinePositionEncoding(embed_dim // 2, position_temperature, offset=position_offset)
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        sizes = (embed_dim, num_heads, num_levels, num_points, ffn_dim, dropout, sampling_core)
        self.encoder = DeformableEncoder(
            partial(DeformableEncoderLayer, *sizes), encoder_layers, activation_checkpointing
        )
        self.decoder = DeformableDecoder(
            partial(DeformableDecoderLayer, *sizes), decoder_layers, inverse_sigmoid_eps, activation_checkpointing
        )
        if two_stage:
            self.enc_output = nn.Linear(embed_dim, embed_dim)
            self.enc_output_norm = nn.LayerNorm(embed_dim)
            self.pos_trans = nn.Linear(2 * embed_dim, 2 * embed_dim)
            self.pos_trans_norm = nn.LayerNorm(2 * embed_dim)
        else:
            self.query_embed = nn.Embedding(num_queries, 2 * embed_dim)
            self.reference_points = nn.Linear(embed_dim, 2)
        if denoising is not None:
            self.label_embed = nn.Embedding(labels.num_classes, embed_dim)
        # Without refinement the layers share one head, under as many names: as in the authors' checkpoints.
        heads = decoder_layers + two_stage if box_refinement else 1
        copies = 1 if box_refinement else decoder_layers
        # The first boxes that learned points give are small; proposals have sizes of their own.
        initial = [(0.0, 0.0, 0.0, 0.0) if two_stage or i else (0.0, 0.0, -2.0, -2.0) for i in range(heads)]
        self.class_embed = nn.ModuleList([_class_head(embed_dim, labels.num_classes) for _ in initial] * copies)
        self.bbox_embed = nn.ModuleList([MLP(embed_dim, embed_dim, 4, initial=x) for x in initial] * copies)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation of the transformer."""
        nn.init.normal_(self.level_embed)
        parts = [self.encoder, self.decoder]
        parts += [self.enc_output, self.pos_trans] if self.two_stage else [self.reference_points]
        for part in parts:
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
            for module in part.modules():
                if isinstance(module, MSDeformAttn):
                    module.reset_parameters()
        if not self.two_stage:
            nn.init.zeros_(self.reference_points.bias)

    # ---------------------------------------------------------------- the network's three uses

    def forward(self, images: Tensor, padding_mask: Tensor | None = None) -> dict[str, Any]:
        """All outputs of the network.

        Args:
            images: `[B, 3, H, W]` normalised, zero on padding.
            padding_mask: `[B, H, W]` bool, True on (bottom, right) padding; None if nothing is padded.

        Returns:
            `pred_logits` `[B, Q, K]` and `pred_boxes` `[B, Q, 4]` (cx, cy, w, h in 0..1 of the unpadded image) of the
            last layer; `aux_outputs`, the same of the earlier layers (with `aux_loss`); `enc_outputs`, the proposals of
            all N tokens, `[B, N, K]` and `[B, N, 4]` (two-stage).
        """
        logits, boxes, proposals = self._run(images, padding_mask)
        layers = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes, strict=True)]
        outputs: dict[str, Any] = layers.pop()
        if self.aux_loss:
            outputs["aux_outputs"] = layers
        if proposals is not None:
            outputs["enc_outputs"] = {"pred_logits": proposals[0], "pred_boxes": proposals[1]}
        return outputs

    def losses(self, batch: Mapping[str, Any], noise: DenoisingNoise | None = None) -> dict[str, Tensor]:
        """Weighted training losses.

        Args:
            batch: `image`, `size`, `target`, and `num_targets` where gradients are accumulated.
            noise: stored draws for the denoising queries; None draws new ones.

        Returns:
            scalars `loss_class`, `loss_bbox`, `loss_giou`; with suffix `_0`, `_1` ... of earlier decoder layers, `_enc`
            of the proposals, `_dn`, `_dn_0` ... of denoising. Their gradients reach every trainable parameter.
        """
        images, mask = self.normalize(batch["image"], batch["size"])
        labels, boxes = relative_targets(batch)
        extra = None if self.denoising is None else self.denoising(labels, boxes, self.labels.num_classes, noise)
        logits, predicted, proposals = self._run(images, mask, extra)
        predictions = self._predictions(logits, predicted, proposals, extra)
        losses = self.criterion(predictions, labels, boxes, self.matcher, batch.get("num_targets"))
        if self.denoising is not None and extra is None:
            zero = logits.new_zeros((), dtype=torch.float32)
            names = [name for name in losses if not name.endswith("_enc")]
            losses |= {_denoised(name): zero for name in names}
        idle = self._idle_parameters(extra)
        if idle:  # a parameter without gradient stops DistributedDataParallel
            losses["loss_class"] = losses["loss_class"] + sum(p.float().sum() for p in idle) * 0.0
        return losses

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Any]) -> list[Detections]:
        """Detections of each image, in pixels of the original image, best first.

        Args:
            batch: `image`, `size` and `original_size`.
        """
        images, mask = self.normalize(batch["image"], batch["size"])
        logits, boxes, _ = self._run(images, mask if self.mask_padding_in_eval else None, last_only=True)
        return top_detections(logits[-1], boxes[-1], batch["original_size"], self.detections_per_image, self.clip_boxes)

    # ---------------------------------------------------------------- parts

    def _run(
        self,
        images: Tensor,
        padding_mask: Tensor | None,
        extra: DenoisingQueries | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Logits `[layers, B, Q, K]`, boxes `[layers, B, Q, 4]`, proposals; `last_only` skips what only losses read."""
        memory = self._encode(images, padding_mask)
        queries = self._two_stage_queries(memory, last_only) if self.two_stage else self._learned_queries(len(images))
        attn_mask = None
        if extra is not None:
            attn_mask = extra.attn_mask(queries.content.shape[1])
            queries = self._prepend(extra, queries)
        states, boxes = self.decoder(
            queries.content,
            queries.position,
            queries.reference_points,
            memory.tokens,
            memory.shapes,
            memory.ratios,
            memory.padding_mask,
            self.bbox_embed,
            self.box_refinement,
            attn_mask,
        )
        if last_only:
            return self.class_embed[len(states) - 1](states[-1])[None], boxes[-1:], None
        logits = torch.stack([head(x) for head, x in zip(self.class_embed, states, strict=False)])
        return logits, boxes, queries.proposals

    def _encode(self, images: Tensor, padding_mask: Tensor | None) -> _Memory:
        levels = self.neck(self.backbone(images))
        shapes = [(x.shape[-2], x.shape[-1]) for x in levels]
        masks = [None if padding_mask is None else resize_mask(padding_mask, shape) for shape in shapes]
        positions = [
            self.position(shape, mask, images.device) + embed
            for shape, mask, embed in zip(shapes, masks, self.level_embed, strict=True)
        ]
        tokens = torch.cat([x.flatten(2) for x in levels], 2).transpose(1, 2).contiguous()
        present = [m for m in masks if m is not None]
        mask = torch.cat([m.flatten(1) for m in present], 1) if present else None
        extents = valid_extents(present) if present else None
        ratios = None if extents is None else extents / extents.new_tensor([(w, h) for h, w in shapes])
        tokens = self.encoder(tokens, torch.cat(positions, 1), shapes, ratios, mask)
        return _Memory(tokens, shapes, mask, extents, ratios)

    def _learned_queries(self, batch: int) -> _Queries:
        position, content = self.query_embed.weight.expand(batch, -1, -1).chunk(2, -1)
        return _Queries(content, position, self.reference_points(position).float().sigmoid())

    def _two_stage_queries(self, memory: _Memory, last_only: bool) -> _Queries:
        tokens = memory.tokens
        origin, unusable = token_proposals(memory.shapes, memory.extents, memory.padding_mask, tokens.device)
        tokens = self.enc_output_norm(self.enc_output(tokens.masked_fill(unusable[..., None], 0.0)))
        logits = self.class_embed[-1](tokens)
        # The authors rank proposals by class 0 alone, which the binary encoder loss trains as "any object": faithful.
        best = top_proposals(logits[..., 0].float(), self.num_queries)[..., None]
        if last_only:
            chosen = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
            origin = origin.expand(len(tokens), -1, -1).gather(1, best.expand(-1, -1, 4))
            box_logits, proposals = self.bbox_embed[-1](chosen).float() + origin, None
        else:
            all_logits = self.bbox_embed[-1](tokens).float() + origin
            box_logits, proposals = all_logits.gather(1, best.expand(-1, -1, 4)), (logits, all_logits.sigmoid())
        box_logits = box_logits.detach()
        position, content = self._box_queries(box_logits).chunk(2, -1)
        return _Queries(content, position, box_logits.sigmoid(), proposals)

    def _box_queries(self, box_logits: Tensor) -> Tensor:
        """`[B, Q, 4]` -> `[B, Q, 2C]`: position, then content, of queries that are boxes."""
        features = self.pos_trans.in_features // 4
        return self.pos_trans_norm(self.pos_trans(box_position(box_logits, features).to(self.pos_trans.weight.dtype)))

    def _prepend(self, extra: DenoisingQueries, queries: _Queries) -> _Queries:
        """Denoising queries in front: label embeddings at positions made as those of proposals."""
        position = self._box_queries(extra.box_logits).chunk(2, -1)[0]
        content = self.label_embed(extra.labels) * extra.filled[..., None]
        return _Queries(
            torch.cat((content.to(queries.content.dtype), queries.content), 1),
            torch.cat((position, queries.position), 1),
            torch.cat((extra.box_logits.sigmoid(), queries.reference_points), 1),
            queries.proposals,
        )

    def _predictions(
        self,
        logits: Tensor,
        boxes: Tensor,
        proposals: tuple[Tensor, Tensor] | None,
        extra: DenoisingQueries | None,
    ) -> Sequence[SetPrediction]:
        """Outputs as the criterion takes them; the order decides the order of the losses."""
        suffixes: tuple[str, ...] = (*(f"_{i}" for i in range(len(logits) - 1)), "")
        if not self.aux_loss:
            logits, boxes, suffixes = logits[-1:], boxes[-1:], ("",)
        count = 0 if extra is None else extra.labels.shape[1]
        predictions = [SetPrediction(logits[:, :, count:], boxes[:, :, count:], suffixes)]
        if proposals is not None:
            predictions.append(SetPrediction(proposals[0][None], proposals[1][None], ("_enc",), class_agnostic=True))
        if extra is not None:
            names = tuple(f"_dn{suffix}" for suffix in suffixes)
            predictions.append(
                SetPrediction(logits[:, :, :count], boxes[:, :, :count], names, match=extra.match, groups=extra.groups)
            )
        return predictions

    def _idle_parameters(self, extra: DenoisingQueries | None) -> list[nn.Parameter]:
        """Parameters that this batch's losses do not reach."""
        idle: list[nn.Parameter] = []
        if self.denoising is not None and extra is None:
            idle += self.label_embed.parameters()
        if self.box_refinement and not self.aux_loss:
            layers = len(self.decoder.layers)
            for heads in (self.class_embed, self.bbox_embed):
                idle += [p for head in heads[: layers - 1] for p in head.parameters()]
        return [p for p in idle if p.requires_grad]


def _class_head(embed_dim: int, num_classes: int) -> nn.Linear:
    head = nn.Linear(embed_dim, num_classes)
    nn.init.constant_(head.bias, -math.log(99))  # prior probability 0.01
    return head


def _denoised(name: str) -> str:
    """`loss_class_3` -> `loss_class_dn_3`."""
    kind, _, layer = name.removeprefix("loss_").partition("_")
    return f"loss_{kind}_dn" + (f"_{layer}" if layer else "")
