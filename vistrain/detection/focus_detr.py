"""Focus-DETR: Less is More: Focus Attention for Efficient DETR (arXiv 2307.12612).

Authors' code: github.com/huawei-noah/noah-research, Focus-DETR, commit aa0f80c, Apache-2.0; built on detrex's DINO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vistrain.backbones import Backbone, DenseBackbone
from vistrain.checkpoints import KeyMap
from vistrain.detection.dino import DINO
from vistrain.detection.focus_detr_keys import official_names
from vistrain.detection.set_detector import Decoded, initialize
from vistrain.detr import ContrastiveDenoising, Pyramid, encoder_reference_points
from vistrain.detr.attention import QuerySelfAttention
from vistrain.detr.deformable import DeformableEncoder, DeformableEncoderLayer
from vistrain.devices import upload
from vistrain.errors import ConfigError
from vistrain.layers.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from vistrain.layers.deformable import Shapes
from vistrain.layers.loss_weights import refuse_negative
from vistrain.layers.precision import at_least_float32
from vistrain.losses import foreground_loss, foreground_targets
from vistrain.structures import Factory, LabelSpace

CASCADE = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)


class ForegroundPredictor(nn.Module):
    """A score for each token of one level, from the token and the mean of its level (the official `MaskPredictor`).

    Args:
        embed_dim: C.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        half, quarter = embed_dim // 2, embed_dim // 4
        self.layer1 = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim), nn.GELU())
        self.layer2 = nn.Sequential(
            nn.Linear(embed_dim, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N_l, C]` tokens of a level, padding included -> `[B, N_l]` logits."""
        local, shared = self.layer1(x).chunk(2, -1)
        shared = shared.mean(1, keepdim=True).expand(-1, x.shape[1], -1)
        return self.layer2(torch.cat((local, shared), -1))[..., 0]


class ForegroundSelector(nn.Module):
    """Foreground logits of all tokens, coarse to fine, each level modulated by the one above (section 3.2, equation 1).

    Args:
        embed_dim: C.
        num_levels: L.
        alpha_range: the L - 1 factors of the modulation start uniform in plus or minus this.
    """

    def __init__(self, embed_dim: int, num_levels: int, alpha_range: float) -> None:
        super().__init__()
        self.predictor = ForegroundPredictor(embed_dim)
        factors = torch.empty(num_levels - 1).uniform_(-alpha_range, alpha_range)
        self.alpha = nn.Parameter(factors) if num_levels > 1 else None  # a single level is modulated by none
        initialize(self.predictor)

    def forward(self, features: Tensor, shapes: Shapes) -> Tensor:
        """Args: features: `[B, N, C]`; shapes: (height, width) of each level. Returns: `[B, N]` logits."""
        levels = features.split([h * w for h, w in shapes], 1)
        logits = [self.predictor(levels[-1])]
        for level, factor in zip(range(len(shapes) - 2, -1, -1), () if self.alpha is None else self.alpha, strict=True):
            above = logits[0].unflatten(1, shapes[level + 1])[:, None]
            above = F.interpolate(above, size=shapes[level], mode="bilinear", align_corners=True).flatten(1)
            # One factor per token, most of which the predictor's first norm takes out again: faithful.
            tokens = levels[level] + levels[level] * (above * factor)[..., None]
            logits.insert(0, self.predictor(tokens))
        return torch.cat(logits, 1)


class FocusEncoderLayer(DeformableEncoderLayer):
    """Dual attention (section 3.3): self-attention among a few tokens, then the deformable layer for all that are kept.

    Args:
        embed_dim, num_heads: C and attention heads, of both attentions.
        ffn_dim: width of the feed-forward network.
        dropout: after attention, inside and after the feed-forward network.
        base: see `DeformableEncoderLayer`.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, ffn_dim: int = 2048, dropout: float = 0.0, **base: Any
    ) -> None:
        super().__init__(embed_dim, num_heads, ffn_dim=ffn_dim, dropout=dropout, **base)
        self.select_attn = QuerySelfAttention(embed_dim, num_heads, dropout)
        self.select_norm = nn.LayerNorm(embed_dim)

    def forward(  # type: ignore[override]  # queries are some of the tokens, and not what is sampled
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None,
        values: Tensor,
        chosen: Tensor,
    ) -> Tensor:
        """`[B, K, C]` kept tokens -> `[B, K, C]`.

        Args:
            x, position: `[B, K, C]` the tokens and their position and level encoding.
            reference_points: `[B, K, L, 2]`.
            shapes: (height, width) of each level.
            padding_mask: `[B, N]` bool, True on padding, or None.
            values: `[B, N, C]`, what is sampled.
            chosen: `[B, S]` int64, those of the K tokens that attend to each other.
        """
        few = take(x, chosen)
        few = self.select_norm(few + self.dropout(self.select_attn(few, take(position, chosen))))
        x = put(x, chosen, few)
        attended = self.self_attn(x + position, reference_points, values, shapes, padding_mask)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(self.linear1(x).relu()))))


class FocusEncoder(DeformableEncoder):
    """A stack of `FocusEncoderLayer`, each for fewer tokens than the one before.

    Args:
        As `DeformableEncoder`.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        position: Tensor,
        shapes: Shapes,
        ratios: Tensor | None,
        padding_mask: Tensor | None,
        foreground: Tensor,
        counts: Sequence[int],
        kept: Sequence[int],
        class_head: nn.Module,
        topk_sa: int,
    ) -> Tensor:
        """Encode `[B, N, C]` tokens; those that are never selected come out as they went in.

        Args:
            x, position, shapes, ratios, padding_mask: as in `DeformableEncoder`.
            foreground: `[B, N]` scores, at least float32, that select tokens.
            counts: how many tokens each layer computes.
            kept: of these only an image's own share, the best, is written back; one number for each image, or for all.
            class_head: `[B, K, C]` -> `[B, K, classes]`; its scores choose the tokens for self-attention.
            topk_sa: how many of them; fewer if the layer has fewer tokens (the official code fails there).
        """
        values, batch = x, x.shape[0]
        points = encoder_reference_points(shapes, ratios, x.device).expand(batch, -1, -1, -1)
        position = position.expand(batch, -1, -1)
        limit = upload(kept, x.device)[:, None]
        for layer, count in zip(self.layers, counts, strict=True):
            best = foreground.topk(count, 1).indices
            tokens = take(x, best)
            with torch.no_grad():  # the scores only choose
                # Category score times foreground score, both raw logits: with a negative category score, less
                # foreground ranks higher. Faithful.
                importance = at_least_float32(class_head(tokens)).amax(-1) * foreground.gather(1, best)
                chosen = importance.topk(min(topk_sa, count), 1).indices
            arguments = (tokens, take(position, best), take(points, best), shapes, padding_mask, values, chosen)
            if self.activation_checkpointing and self.training:
                encoded = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                encoded = layer(*arguments)
            own = torch.arange(count, device=x.device) < limit
            x = put(x, best, torch.where(own[..., None], encoded, tokens))
        return x


class FocusDETR(DINO):
    """Focus-DETR: DINO whose encoder computes only the tokens that look like foreground.

    Defaults are the authors' for 12 epochs: detrex's DINO, with unshared heads. Their ResNets for 24 and 36 epochs have
    `position_temperature=20` and `position_offset=0`.

    Per local batch, as in the authors' code, beside what `SetDetector` names: each encoder layer computes as many
    tokens as the image with the most needs (what others compute beyond their share is not written back, but its
    `topk_sa` is chosen among all of them); a level's mean in the foreground predictor includes padding; the selector's
    loss is the mean over the images that one process sees at once.

    Args:
        keep_ratio: share of an image's unpadded tokens that are foreground, in 0..1.
        cascade: share of those that each encoder layer computes, in 0..1.
        topk_sa: tokens that attend to each other in each encoder layer; fewer where a layer has fewer.
        alpha_range: see `ForegroundSelector`.
        select_weight, select_alpha, select_gamma: of the selector's focal loss.
        select_limits: for each level the greatest distance, in pixels, from a foreground token to the farthest side of
            its object; None: eight times the stride, infinite on the coarsest level (64, 128, 256 and infinite).
        position_temperature, position_offset, clip_boxes, mask_padding_in_eval: as in `DINO`.
        base: see `DINO`. The neck must say its `strides`. Denoising has the part's own defaults, which are detrex's.

    Raises:
        ConfigError: a combination that cannot be built.
    """

    sets_itself: ClassVar[Mapping[str, Any]] = {"shared_heads": False, "spare_label": False}
    default_denoising = Factory(ContrastiveDenoising)
    encoder_type = FocusEncoder
    encoder_layer_type = FocusEncoderLayer

    def __init__(
        self,
        backbone: Backbone | DenseBackbone,
        labels: LabelSpace,
        *,
        keep_ratio: float = 0.5,
        cascade: tuple[float, ...] = CASCADE,
        topk_sa: int = 300,
        alpha_range: float = 0.3,
        select_weight: float = 1.5,
        select_alpha: float = 0.25,
        select_gamma: float = 2.0,
        select_limits: tuple[float, ...] | None = None,
        position_temperature: float = 10000.0,
        position_offset: float = -0.5,
        clip_boxes: bool = True,
        mask_padding_in_eval: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(
            backbone,
            labels,
            position_temperature=position_temperature,
            position_offset=position_offset,
            clip_boxes=clip_boxes,
            mask_padding_in_eval=mask_padding_in_eval,
            **self.sets_itself,
            **base,
        )
        encoder_layers, (num_levels, embed_dim) = len(self.encoder.layers), self.level_embed.shape
        if len(cascade) != encoder_layers:
            remedy = f"one share for each of the {encoder_layers} encoder layers"
            raise ConfigError("model.cascade", f"{len(cascade)} shares", remedy)
        for name, share in (("keep_ratio", keep_ratio), *(("cascade", share) for share in cascade)):
            if not 0 < share <= 1:
                raise ConfigError(f"model.{name}", f"{share} is not a share", "above 0, at most 1")
        if topk_sa < 1:
            raise ConfigError("model.topk_sa", f"{topk_sa} tokens cannot attend", "at least 1")
        self.keep_ratio, self.cascade, self.topk_sa = keep_ratio, tuple(cascade), topk_sa
        refuse_negative(select_weight=select_weight)
        self.select_weight, self.select_alpha, self.select_gamma = select_weight, select_alpha, select_gamma
        limits = [8.0 * stride for stride in self.neck.strides[:-1]] + [float("inf")]
        self.select_limits = tuple(limits if select_limits is None else select_limits)
        if len(self.select_limits) != num_levels:
            remedy = f"one for each of the {num_levels} levels"
            raise ConfigError("model.select_limits", f"{len(self.select_limits)} limits", remedy)
        self.selector = ForegroundSelector(embed_dim, num_levels, alpha_range)

    @staticmethod
    def _names(maps: int, encoder_layers: int, decoder_layers: int, shared: bool) -> tuple[KeyMap, ...]:
        return (official_names(maps, encoder_layers, decoder_layers),)

    def token_counts(
        self, tokens: int, padding_mask: Tensor | None, valid: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """How many tokens each encoder layer computes, and how many of them belong to each image.

        Args:
            tokens: N.
            padding_mask: `[B, N]` bool, True on padding; None: all images are alike, and the second list has one entry.
            valid: how many tokens of each image are no padding; None: the mask says it, and the host waits for it.
        """
        if padding_mask is None:
            valid = [tokens]
        elif valid is None:
            valid = (~padding_mask).sum(1).tolist()
        # Truncated products of float32: faithful. The image with the most tokens decides for the whole batch.
        kept = [min(_cut_off(count, self.keep_ratio) + 1, tokens) for count in valid]
        return [max(_cut_off(max(kept), share), 1) for share in self.cascade], kept

    def encode(self, pyramid: Pyramid, unusable: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `DINO.encode`; adds `foreground_logits` `[B, N]`."""
        features = self.proposal_features(pyramid.tokens + pyramid.position, unusable)
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would tie most of the scores
            logits = self.selector(at_least_float32(features), pyramid.shapes)
        foreground, mask = logits.detach(), pyramid.padding_mask
        if mask is not None:
            foreground = foreground.masked_fill(mask, foreground.min())
        counts, kept = self.token_counts(logits.shape[1], mask, pyramid.valid_tokens())
        encoded = self.encoder(
            pyramid.tokens,
            pyramid.position,
            pyramid.shapes,
            pyramid.ratios,
            mask,
            foreground,
            counts,
            kept,
            self.proposal_heads[0],
            self.topk_sa,
        )
        return encoded, {"foreground_logits": logits}

    def further_losses(self, decoded: Decoded, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """`select_loss` of the foreground logits."""
        logits, strides = decoded.extras["foreground_logits"], self.neck.strides
        targets = []
        for target, size in zip(batch["target"], batch["size"], strict=True):
            extent = size.to(logits.device).flip(0).repeat(2).float()
            # There and back in float32: token centres lie on whole pixels, where rounding decides what is inside.
            boxes = xyxy_to_cxcywh(target["boxes"].to(logits.device, torch.float32) / extent)
            boxes = cxcywh_to_xyxy(boxes) * extent
            targets.append(foreground_targets(boxes, decoded.shapes, strides, self.select_limits))
        loss = foreground_loss(logits, torch.stack(targets), self.select_alpha, self.select_gamma)
        return {"select_loss": self.select_weight * loss}


def _cut_off(count: int, share: float) -> int:
    """Whole part of the float32 product of a count and a share in 0..1."""
    if not isinstance(count, torch.SymInt):
        return int(np.float32(count) * np.float32(share))
    # While sizes are unknown, in whole numbers: the share's 24 bits, and half a unit of the product's last, to round.
    significand, exponent = np.frexp(np.float32(share))
    product = count * int(significand * 2**24)
    return (product + product // 2**25) // 2 ** (24 - int(exponent))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of `[B, N, ...]` by `[B, K]` int64: `[B, K, ...]`."""
    rows = index[(..., *[None] * (x.dim() - 2))].expand(-1, -1, *x.shape[2:])
    return x.gather(1, rows)


def put(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """A copy of `[B, N, C]` in which the rows that `[B, K]` int64 names (each once) are `[B, K, C]`."""
    return x.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), rows.to(x.dtype))
