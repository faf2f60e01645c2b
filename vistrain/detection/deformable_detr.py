"""Deformable-DETR: Deformable Transformers for End-to-End Object Detection (arXiv 2010.04159).

Authors' code: github.com/fundamentalvision/Deformable-DETR, commit 11169a6, Apache-2.0. The weights of a second
implementation load too: IDEA-Research/detrex, commit e244e6c, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.detection.deformable_detr_keys import DETREX, OFFICIAL, names_of
from vistrain.detection.set_detector import Decoded, SetDetector, class_head, initialize
from vistrain.detr import DenoisingQueries, Pyramid, box_position, flatten_pyramid, token_proposals, top_proposals
from vistrain.detr.deformable import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
)
from vistrain.errors import ConfigError
from vistrain.layers.mlp import MLP
from vistrain.layers.position import SinePositionEncoding
from vistrain.layers.precision import at_least_float32
from vistrain.necks import default_neck
from vistrain.structures import Factory, LabelSpace


@dataclass(frozen=True)
class _Queries:
    """What enters the decoder: `[B, Q, C]` content and position, `[B, Q, 2 or 4]` reference points in 0..1."""

    content: Tensor
    position: Tensor
    reference_points: Tensor
    proposals: tuple[Tensor, Tensor] | None = None  # two-stage: every token's logits [B, N, K] and boxes [B, N, 4]


class DeformableDETR(SetDetector):
    """Deformable-DETR in its three forms: basic, with box refinement, and two-stage.

    Defaults are the authors'. detrex's models need `inverse_sigmoid_eps=1e-3`, `giou_eps=1e-6` in matcher and
    criterion, `class_weight=1` in the criterion, `mask_padding_in_eval=False`, `clip_boxes=True` and
    `detections_per_image=300`. For the single-scale model give `num_levels=1` (the coarsest map is used).

    Args:
        neck: maps the backbone's maps to `num_levels` maps of `embed_dim`; default: see `necks.default_neck`.
        num_levels: L.
        embed_dim, num_heads, num_points: C, attention heads, sampling points per head and level.
        num_queries: Q; an image with fewer tokens than that gives one two-stage query per token.
        encoder_layers, decoder_layers, ffn_dim, dropout: of the transformer.
        box_refinement: each decoder layer starts from the boxes of the one before, with heads of its own.
        two_stage: queries are the best of all tokens' proposals (needs `box_refinement`).
        position_temperature, position_offset: of the sine encoding of tokens (see `SinePositionEncoding`).
        inverse_sigmoid_eps: 1e-5 here, 1e-3 in detrex.
        activation_checkpointing: recompute transformer layers in the backward pass instead of storing them.
        sampling_core: auto, grid_sample, embedding_bag, gather or triton, which compute the same; auto takes what was
            measured to be fastest on the device (docs/gpu.md).
        base: see `SetDetector`. `denoising` needs `two_stage`, where boxes have positions.

    Raises:
        ConfigError: a combination that cannot be built.
    """

    key_maps = (OFFICIAL, DETREX)
    class_layers = (r"^class_embed\.", r"^label_embed\.")
    compiled_parts = ("backbone", "neck", "encoder", "decoder")
    class_agnostic_proposals = True

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
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
        activation_checkpointing: bool = False,
        sampling_core: str = "auto",
        **base: Any,
    ) -> None:
        super().__init__(backbone, labels, **base)
        if two_stage and not box_refinement:
            raise ConfigError("model.two_stage", "two-stage queries are boxes to refine", "set box_refinement: true")
        if self.denoising is not None and not two_stage:
            raise ConfigError("model.denoising", "noised boxes need queries that are boxes", "set two_stage: true")
        if decoder_layers < 1:
            raise ConfigError("model.decoder_layers", "the decoder needs a layer", "at least 1")
        self.neck = (neck or default_neck(backbone, num_levels))(
            channels=backbone.channels, strides=backbone.strides, num_levels=num_levels, embed_dim=embed_dim
        )
        self.box_refinement, self.two_stage, self.num_queries = box_refinement, two_stage, num_queries
        self.key_maps = names_of(box_refinement, two_stage)
        self.position = SinePositionEncoding(embed_dim // 2, position_temperature, offset=position_offset)
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        sizes: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads, "num_points": num_points}
        sizes |= {"num_levels": num_levels, "ffn_dim": ffn_dim, "dropout": dropout, "core": sampling_core}
        self.encoder = DeformableEncoder(
            partial(DeformableEncoderLayer, **sizes), encoder_layers, activation_checkpointing
        )
        self.decoder = DeformableDecoder(
            partial(DeformableDecoderLayer, **sizes), decoder_layers, inverse_sigmoid_eps, activation_checkpointing
        )
        if two_stage:
            self.enc_output = nn.Linear(embed_dim, embed_dim)
            self.enc_output_norm = nn.LayerNorm(embed_dim)
            self.pos_trans = nn.Linear(2 * embed_dim, 2 * embed_dim)
            self.pos_trans_norm = nn.LayerNorm(2 * embed_dim)
        else:
            self.query_embed = nn.Embedding(num_queries, 2 * embed_dim)
            self.reference_points = nn.Linear(embed_dim, 2)
        if self.denoising is not None:
            self.label_embed = nn.Embedding(labels.num_classes, embed_dim)
        # Without refinement the layers share one head, under as many names: as in the authors' checkpoints.
        heads = decoder_layers + two_stage if box_refinement else 1
        copies = 1 if box_refinement else decoder_layers
        # The first boxes that learned points give are small; proposals have sizes of their own.
        initial = [(0.0, 0.0, 0.0, 0.0) if two_stage or i else (0.0, 0.0, -2.0, -2.0) for i in range(heads)]
        self.class_embed = nn.ModuleList([class_head(embed_dim, labels.num_classes) for _ in initial] * copies)
        self.bbox_embed = nn.ModuleList([MLP(embed_dim, embed_dim, 4, initial=x) for x in initial] * copies)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' initialisation of the transformer."""
        nn.init.normal_(self.level_embed)
        parts = [self.encoder, self.decoder]
        parts += [self.enc_output, self.pos_trans] if self.two_stage else [self.reference_points]
        for part in parts:
            initialize(part)
        if not self.two_stage:
            nn.init.zeros_(self.reference_points.bias)

    def decode(
        self,
        images: Tensor,
        padding_mask: Tensor | None,
        extra: DenoisingQueries | None = None,
        last_only: bool = False,
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Decoded:
        """Run the network; see `SetDetector.decode`."""
        levels = self.neck(self.backbone(images))
        pyramid = flatten_pyramid(levels, padding_mask, self.position, self.level_embed, sizes)
        mask = pyramid.padding_mask
        tokens = self.encoder(pyramid.tokens, pyramid.position, pyramid.shapes, pyramid.ratios, mask)
        if self.two_stage:
            queries = self._two_stage_queries(tokens, pyramid, last_only)
        else:
            queries = self._learned_queries(images.shape[0])
        attn_mask = None
        if extra is not None:
            attn_mask = extra.attn_mask(queries.content.shape[1])
            queries = self._prepend(extra, queries)
        states, boxes = self.decoder(
            queries.content,
            queries.position,
            queries.reference_points,
            tokens,
            pyramid.shapes,
            pyramid.ratios,
            mask,
            self.bbox_embed,
            self.box_refinement,
            attn_mask,
        )
        if last_only:
            return Decoded(self.class_embed[len(states) - 1](states[-1])[None], boxes[-1:])
        logits = torch.stack([head(x) for head, x in zip(self.class_embed, states, strict=False)])
        return Decoded(logits, boxes, queries.proposals, pyramid.shapes)

    def _learned_queries(self, batch: int) -> _Queries:
        position, content = self.query_embed.weight.expand(batch, -1, -1).chunk(2, -1)
        return _Queries(content, position, at_least_float32(self.reference_points(position)).sigmoid())

    def _two_stage_queries(self, tokens: Tensor, pyramid: Pyramid, last_only: bool) -> _Queries:
        origin, unusable = token_proposals(pyramid.shapes, pyramid.extents, pyramid.padding_mask, tokens.device)
        tokens = self.enc_output_norm(self.enc_output(tokens.masked_fill(unusable[..., None], 0.0)))
        logits = self.class_embed[-1](tokens)
        # The authors rank proposals by class 0 alone, which the binary encoder loss trains as "any object": faithful.
        best = top_proposals(at_least_float32(logits[..., 0]), self.num_queries)[..., None]
        if last_only:
            chosen = tokens.gather(1, best.expand(-1, -1, tokens.shape[-1]))
            origin = origin.expand(tokens.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
            box_logits, proposals = at_least_float32(self.bbox_embed[-1](chosen)) + origin, None
        else:
            all_logits = at_least_float32(self.bbox_embed[-1](tokens)) + origin
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

    def idle_parameters(self, extra: DenoisingQueries | None) -> list[nn.Parameter]:
        """See `SetDetector.idle_parameters`."""
        idle: list[nn.Parameter] = []
        if self.denoising is not None and extra is None:
            idle += self.label_embed.parameters()
        if self.box_refinement and not self.aux_loss:
            layers = len(self.decoder.layers)
            for heads in (self.class_embed, self.bbox_embed):
                idle += [p for head in heads[: layers - 1] for p in head.parameters()]
        return idle
