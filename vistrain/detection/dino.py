"""DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection (arXiv 2203.03605).

Authors' code: github.com/IDEA-Research/DINO, commit faa8520, Apache-2.0. The weights of a second implementation, which
is another model in details, load too: IDEA-Research/detrex, commit e244e6c, Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.checkpoints import KeyMap
from vistrain.detection.dino_keys import detrex_names, official_names
from vistrain.detection.set_detector import Decoded, SetDetector, class_head, initialize
from vistrain.detr import (
    ContrastiveDenoising,
    DenoisingQueries,
    Pyramid,
    flatten_pyramid,
    token_proposals,
    top_proposals,
)
from vistrain.detr.box_decoder import BoxDecoder
from vistrain.detr.deformable import DeformableDecoderLayer, DeformableEncoder, DeformableEncoderLayer
from vistrain.errors import ConfigError
from vistrain.layers.mlp import MLP
from vistrain.layers.position import SinePositionEncoding
from vistrain.layers.precision import at_least_float32
from vistrain.losses import SetCriterion
from vistrain.matching import HungarianMatcher
from vistrain.necks import default_neck
from vistrain.structures import Factory, LabelSpace


class DINO(SetDetector):
    """DINO: two-stage Deformable-DETR with contrastive denoising, mixed query selection and look forward twice.

    Defaults are the authors'. detrex's models need `shared_heads=False`, `spare_label=False`,
    `position_temperature=10000` and `position_offset=-0.5` (but not where its config says 20 and 0, as for 24 epochs),
    `denoising=ContrastiveDenoising(box_noise_scale=1.0)`, `mask_padding_in_eval=False` and `clip_boxes=True`.

    Args:
        neck: maps the backbone's maps to `num_levels` maps of `embed_dim`; default: see `necks.default_neck`.
        num_levels: L; 4 from strides 8 to 32, 5 from strides 4 to 32.
        embed_dim, num_heads, num_points: C, attention heads, sampling points per head and level.
        num_queries: Q; an image with fewer tokens than that gives one query per token.
        encoder_layers, decoder_layers, ffn_dim, dropout: of the transformer.
        shared_heads: all decoder layers share one class and one box head. The proposals have heads of their own in
            either case.
        spare_label: one more row in the table of label embeddings, which nothing uses (the authors' table has it).
        position_temperature, position_offset: of the sine encoding of tokens (see `SinePositionEncoding`).
        inverse_sigmoid_eps: 1e-3 in both codes.
        activation_checkpointing: recompute transformer layers in the backward pass instead of storing them.
        sampling_core: auto, grid_sample, embedding_bag, gather or triton, which compute the same; auto takes what was
            measured to be fastest on the device (docs/gpu.md).
        detections_per_image: (query, class) pairs kept.
        base: see `SetDetector`. By default costs are (2, 5, 2), losses (1, 5, 2) with a GIoU eps of 1e-6, as in both
            codes; denoising has 100 positives, labels noised at 0.5, boxes at 0.4, and the authors' rule for few
            positives, `denoising: {number: 0}` trains without. Where one of the three is given, the part's own defaults
            stand for the rest.

    Attributes:
        key_maps: the names in official files. They depend on the number of maps and layers.

    Raises:
        ConfigError: a combination that cannot be built.
    """

    default_matcher = Factory(HungarianMatcher, giou_eps=1e-6)
    default_criterion = Factory(SetCriterion, class_weight=1.0, giou_eps=1e-6)
    default_denoising = Factory(ContrastiveDenoising, box_noise_scale=0.4, group_threshold=100)
    class_layers = (r"^class_embed\.", r"^enc_out_class_embed\.", r"^label_enc\.")
    compiled_parts = ("backbone", "neck", "encoder", "decoder")
    encoder_type: type[DeformableEncoder] = DeformableEncoder
    encoder_layer_type: type[DeformableEncoderLayer] = DeformableEncoderLayer

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
        num_queries: int = 900,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        ffn_dim: int = 2048,
        dropout: float = 0.0,
        shared_heads: bool = True,
        spare_label: bool = True,
        position_temperature: float = 20.0,
        position_offset: float = 0.0,
        inverse_sigmoid_eps: float = 1e-3,
        activation_checkpointing: bool = False,
        sampling_core: str = "auto",
        detections_per_image: int = 300,
        **base: Any,
    ) -> None:
        super().__init__(backbone, labels, detections_per_image=detections_per_image, **base)
        for name, value in (("decoder_layers", decoder_layers), ("num_queries", num_queries)):
            if value < 1:
                raise ConfigError(f"model.{name}", f"{value} is too few", "at least 1")
        self.neck: Any = (neck or default_neck(backbone, num_levels))(
            channels=backbone.channels, strides=backbone.strides, num_levels=num_levels, embed_dim=embed_dim
        )
        self.position = SinePositionEncoding(embed_dim // 2, position_temperature, offset=position_offset)
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        sizes: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": num_heads, "num_points": num_points}
        sizes |= {"num_levels": num_levels, "ffn_dim": ffn_dim, "dropout": dropout, "core": sampling_core}
        self.encoder = self.encoder_type(
            partial(self.encoder_layer_type, **sizes), encoder_layers, activation_checkpointing
        )
        self.decoder = BoxDecoder(
            partial(DeformableDecoderLayer, **sizes),
            decoder_layers,
            inverse_sigmoid_eps,
            embed_dim,
            activation_checkpointing=activation_checkpointing,
        )
        self.enc_output = nn.Linear(embed_dim, embed_dim)
        self.enc_output_norm = nn.LayerNorm(embed_dim)
        self.tgt_embed = nn.Embedding(num_queries, embed_dim)
        self.label_enc = nn.Embedding(labels.num_classes + spare_label, embed_dim)
        # Unshared, the heads of the proposals stand behind those of the decoder's layers: as in detrex's checkpoints.
        self.shared_heads = shared_heads
        heads = 1 if shared_heads else decoder_layers + 1
        self.class_embed = nn.ModuleList(class_head(embed_dim, labels.num_classes) for _ in range(heads))
        self.bbox_embed = nn.ModuleList(_box_head(embed_dim) for _ in range(heads))
        if shared_heads:
            self.enc_out_class_embed = class_head(embed_dim, labels.num_classes)
            self.enc_out_bbox_embed = _box_head(embed_dim)
        maps = min(num_levels, len(backbone.channels))
        self.key_maps = self._names(maps, encoder_layers, decoder_layers, shared_heads)
        nn.init.normal_(self.level_embed)
        for part in (self.encoder, self.decoder, self.enc_output):
            initialize(part)

    @staticmethod
    def _names(maps: int, encoder_layers: int, decoder_layers: int, shared: bool) -> tuple[KeyMap, ...]:
        return official_names(maps, decoder_layers, shared), detrex_names(maps)

    @property
    def proposal_heads(self) -> tuple[nn.Module, nn.Module]:
        """Class and box head of the encoder's proposals."""
        if self.shared_heads:
            return self.enc_out_class_embed, self.enc_out_bbox_embed
        return self.class_embed[-1], self.bbox_embed[-1]

    def proposal_features(self, tokens: Tensor, unusable: Tensor) -> Tensor:
        """Tokens `[B, N, C]`, zeroed where `[B or 1, N]` is True, as the proposals' heads read them: `[B, N, C]`."""
        return self.enc_output_norm(self.enc_output(tokens.masked_fill(unusable[..., None], 0.0)))

    def encode(self, pyramid: Pyramid, unusable: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The encoder's output.

        Args:
            pyramid: the tokens.
            unusable: `[B or 1, N]` bool, tokens that can propose nothing.

        Returns:
            tokens `[B, N, C]`, and further outputs of the network.
        """
        encoded = self.encoder(pyramid.tokens, pyramid.position, pyramid.shapes, pyramid.ratios, pyramid.padding_mask)
        return encoded, {}

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
        origin, unusable = token_proposals(pyramid.shapes, pyramid.extents, pyramid.padding_mask, images.device)
        tokens, extras = self.encode(pyramid, unusable)
        references, proposals = self._select(tokens, origin, unusable)
        # Mixed query selection (section 3.4): boxes from the proposals, contents learned.
        content = self.tgt_embed.weight[: references.shape[1]].to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        attn_mask = None
        if extra is not None:
            attn_mask = extra.attn_mask(references.shape[1])
            noised = self.label_enc(extra.labels) * extra.filled[..., None]
            content = torch.cat((noised.to(content.dtype), content), 1)
            references = torch.cat((extra.box_logits.sigmoid(), references), 1)
        count = len(self.decoder.layers)
        copies = count if self.shared_heads else 1
        class_heads, box_heads = list(self.class_embed) * copies, list(self.bbox_embed) * copies
        states, starts = self.decoder(
            content,
            references,
            tokens,
            pyramid.shapes,
            pyramid.ratios,
            pyramid.padding_mask,
            box_heads,
            attn_mask,
        )
        wanted = [count - 1] if last_only else list(range(count))
        logits = torch.stack([class_heads[i](states[i]) for i in wanted])
        boxes = torch.stack([self.decoder.report(box_heads[i](states[i]), starts[i]) for i in wanted])
        return Decoded(logits, boxes, None if last_only else proposals, pyramid.shapes, extras)

    def idle_parameters(self, extra: DenoisingQueries | None) -> list[nn.Parameter]:
        """See `SetDetector.idle_parameters`."""
        idle = list(self.label_enc.parameters()) if extra is None else []
        if not self.aux_loss and not self.shared_heads:
            last = len(self.decoder.layers) - 1
            # The last layer's boxes start from those of the one before, and gradients reach its head (look forward
            # twice); the earlier ones give detached boxes alone.
            unread = [*self.class_embed[:last], *self.bbox_embed[: max(last - 1, 0)]]
            idle += [p for head in unread for p in head.parameters()]
        return idle

    def _select(self, tokens: Tensor, origin: Tensor, unusable: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Boxes `[B, Q, 4]` (in 0..1, detached) of the best proposals, and their logits and boxes for the losses."""
        class_head, box_head = self.proposal_heads
        batch, _, width = tokens.shape
        with torch.no_grad():  # here scores only choose; the chosen few are computed again, for their gradients
            scores = at_least_float32(class_head(self.proposal_features(tokens, unusable))).amax(-1)
            best = top_proposals(scores, self.tgt_embed.num_embeddings)
        chosen = tokens.gather(1, best[..., None].expand(-1, -1, width))
        chosen = self.proposal_features(chosen, unusable.expand(batch, -1).gather(1, best))
        origin = origin.expand(batch, -1, -1).gather(1, best[..., None].expand(-1, -1, 4))
        boxes = (at_least_float32(box_head(chosen)) + origin).sigmoid()
        return boxes.detach(), (class_head(chosen), boxes)


def _box_head(embed_dim: int) -> MLP:
    return MLP(embed_dim, embed_dim, 4, initial=(0.0, 0.0, 0.0, 0.0))  # proposals are kept as they are at first
