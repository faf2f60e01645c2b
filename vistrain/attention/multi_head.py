"""What operators of queries, keys and values of several heads share: the projections."""

from __future__ import annotations

from torch import Tensor, nn

from vistrain.attention.base import AttentionOperator
from vistrain.attention.heads import check_heads


class MultiHeadAttention(AttentionOperator):
    """Base of operators that mix values of several heads between two linear layers.

    Args:
        dim: channels C.
        num_heads: dividing C.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        qk_scale: factor of the logits; None is `(C / num_heads) ** -0.5`.
        attn_drop, proj_drop: dropout of attention weights, and of the output.

    Raises:
        ConfigError: the heads do not divide the channels.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens `[..., N, C]` -> queries, keys and values `[..., heads, N, C / heads]`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).transpose(-4, -2).unbind(-3)
        return q, k, v

    def output(self, mixed: Tensor) -> Tensor:
        """What the heads give, `[..., heads, N, C / heads]` -> tokens `[..., N, C]`."""
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(-3, -2).flatten(-2)))
        return out

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"num_heads={self.num_heads}"


def attendable(mask: Tensor) -> Tensor:
    """A mask `[B, N]` in which maps without any real token have all: their softmax is of something, and no NaN."""
    return mask | ~mask.any(-1, keepdim=True)
