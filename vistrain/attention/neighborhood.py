"""Neighbourhood attention: every token of a map attends to the K x K tokens around it.

Papers: Neighborhood Attention Transformer (2204.07143, section 3.1), Dilated Neighborhood Attention Transformer
(2209.15001, section 3), Generalized Neighborhood Attention (2504.16922, section 3). Authors' code: SHI-Labs/NATTEN,
MIT.

At a border the neighbourhood is shifted inwards and not padded: it has K tokens along each axis everywhere. With
dilation d, tokens whose coordinates are equal modulo d form a map of their own, and neighbourhoods are taken in it.

How it is computed: queries are cut into tiles of about K x K. All neighbours of a tile lie in one window of at most
(2K - 1) x (2K - 1) tokens, so keys and values are copied about 3.5 times and multiplied as matrices; a copy for each
query would be K * K (49) times as large. Which token is whose neighbour is separable, and kept in a table per axis.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.attention.base import AttentionOperator
from vistrain.devices import say_without_triton, triton_serves, upload
from vistrain.errors import ConfigError
from vistrain.layers.windows import at_once, attends_by_products

CORES = ("auto", "tiles", "triton")
Size = tuple[int, int]
T = TypeVar("T", int, bool)


class _Axis(NamedTuple):
    """One axis of L tokens, cut into T tiles of t queries whose windows have w tokens.

    Attributes:
        queries: `[T, t]` tokens; the last is repeated where a tile is not full.
        keys: `[T, w]` tokens; likewise.
        strangers: `[T, t, w]` bool, whether the key is outside of the query's neighbourhood.
        offsets: `[T, t, w]` steps from query to key, in steps of the dilation.
        tiles, places: `[L]`, in which tile and where in it each token is a query.
    """

    queries: np.ndarray
    keys: np.ndarray
    strangers: np.ndarray
    offsets: np.ndarray
    tiles: np.ndarray
    places: np.ndarray

    def between(self, first: int, last: int) -> _Axis:
        """Some of the tiles."""
        part = slice(first, last)
        queries, keys = self.queries[part], self.keys[part]
        return _Axis(queries, keys, self.strangers[part], self.offsets[part], self.tiles, self.places)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int | Size,
    dilation: int | Size = 1,
    stride: int | Size = 1,
    is_causal: bool | tuple[bool, bool] = False,
    rpb: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    tile: int | None = None,
    core: str = "auto",
) -> Tensor:
    """Softmax attention of each query over its neighbourhood. Pairs of arguments are for rows and columns.

    Args:
        q, k, v: `[B, H, W, heads, D]`; H and W are at least `kernel_size * dilation`.
        kernel_size: K, tokens in a neighbourhood along an axis.
        dilation: steps between two of them.
        stride: so many successive queries share the neighbourhood of the middle one (the last one if causal); a
            stride of `kernel_size` is attention in windows that do not overlap.
        is_causal: attend to no token that comes after the query along this axis.
        rpb: `[heads, 2 Kh - 1, 2 Kw - 1]` added to logits by relative position, rows first; its middle is the query.
        scale: of the logits; by default `D ** -0.5`.
        dropout: probability of dropping an attention weight.
        tile: queries along an axis that are computed together; None chooses. Results do not depend on it: 1 computes
            no product in vain, and is slow.
        core: one of `CORES`; `auto` is `tiles`. Where `triton` cannot run (without Triton, on a CPU, with dropout, or
            where gradients must be deterministic) it is `tiles`.

    Returns:
        `[B, H, W, heads, D]`.

    Raises:
        ValueError: the map is smaller than a neighbourhood.
    """
    size, kernel, steps = (q.shape[1], q.shape[2]), _pair(kernel_size), _pair(dilation)
    if any(side < a * b for side, a, b in zip(size, kernel, steps, strict=True)):
        raise ValueError(f"a map of {size[0]}x{size[1]} is smaller than neighbourhoods of {kernel} dilated by {steps}")
    pairs = list(zip(size, kernel, steps, _pair(stride), _pair(is_causal), strict=True))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if core == "triton" and not dropout and triton_serves(q.device):
        axes = (_reach(*arguments) for arguments in pairs)
        return _triton(q, k, v, rpb, *axes, [*kernel, *steps], scale)[0].to(v.dtype)
    rows, columns = (_axis(*arguments, tile) for arguments in pairs)
    queries = _cut(q * scale, rows.queries, columns.queries)
    keys, values = (_cut(x, rows.keys, columns.keys) for x in (k, v))
    # Rows of tiles, as many as are best done at once
    across = len(columns.queries)
    count = at_once(q, queries.shape[0] * queries.shape[1] * across * queries.shape[3] * keys.shape[3])
    done = []
    for first in range(0, len(rows.queries), count):
        part = rows.between(first, first + count)
        tiles = slice(first * across, first * across + len(part.queries) * across)
        bias = _bias(part, columns, rpb, q)
        some_q, some_k, some_v = (x[:, :, tiles] for x in (queries, keys, values))
        if attends_by_products(q):
            weights = (some_q @ some_k.mT + bias).softmax(-1).to(values.dtype)
            done.append((F.dropout(weights, dropout) if dropout else weights) @ some_v)
        else:  # fused kernels know no fifth axis
            heads = q.shape[3]
            bias = bias.expand(heads, -1, -1, -1).flatten(0, 1)[None].to(q.dtype)
            some_q, some_k, some_v = (x.flatten(1, 2) for x in (some_q, some_k, some_v))
            mixed = F.scaled_dot_product_attention(some_q, some_k, some_v, bias, dropout, scale=1.0)
            done.append(mixed.unflatten(1, (heads, -1)))
    return _join(done[0] if len(done) == 1 else torch.cat(done, 2), rows, columns)


def neighborhood_mask(
    size: Size,
    kernel_size: int | Size,
    dilation: int | Size = 1,
    stride: int | Size = 1,
    is_causal: bool | tuple[bool, bool] = False,
) -> Tensor:
    """Who attends to whom, in full; arguments as of `neighborhood_attention`.

    Args:
        size: (H, W) of the map.

    Returns:
        `[H * W, H * W]` bool, True where the query (row) attends to the key (column).
    """
    pairs = zip(size, *map(_pair, (kernel_size, dilation, stride, is_causal)), strict=True)
    rows, columns = (_dense(_axis(*arguments, None)) for arguments in pairs)
    mask = rows[:, None, :, None] & columns[None, :, None, :]
    return torch.from_numpy(mask.reshape(size[0] * size[1], -1))


class NeighborhoodAttention(AttentionOperator):
    """Multi-head neighbourhood attention with relative positional bias, as in NAT and DiNAT.

    Maps smaller than a neighbourhood are padded with zeros at the bottom and right before queries, keys and values are
    made; the padding takes part in attention and is cut off afterwards (natten's `NeighborhoodAttention2D`).

    Args:
        dim: C.
        num_heads: dividing C.
        kernel_size: tokens in a neighbourhood along an axis, odd.
        dilation: steps between two of them.
        qkv_bias: of the layer that makes queries, keys and values.
        qk_scale: of the logits; by default `(C / num_heads) ** -0.5`.
        attn_drop, proj_drop: dropout of attention weights and of the output.
        stride: so many successive queries share a neighbourhood (generalised neighbourhood attention): 1 is NAT's, a
            stride of `kernel_size` attention in blocks.
        rpb: whether there is a bias of relative positions; generalised neighbourhood attention is published without.
        core: auto, tiles or triton, which compute the same; auto is tiles, see `neighborhood_attention`.

    Raises:
        ConfigError: a stride beyond the kernel, or an unknown core.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d) + b_{j-i}) v_j, j in the K x K cells around i"
    cost = "4NC^2 + 2NK^2C"
    growth = "N"
    padding = "padded cells count like any other, and so do zeros around maps smaller than a neighbourhood"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        kernel_size: int = 7,
        dilation: int = 1,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        stride: int = 1,
        rpb: bool = True,
        core: str = "auto",
    ) -> None:
        super().__init__()
        if core not in CORES:
            raise ConfigError("core", f"no core {core!r}", f"one of {', '.join(CORES)}")
        if core == "triton":
            say_without_triton("neighbourhood attention is computed in tiles")
        self.core = core
        if not 1 <= stride <= kernel_size:
            raise ConfigError("stride", f"{stride} is not between 1 and the kernel size {kernel_size}")
        self.num_heads, self.kernel_size, self.dilation, self.stride = num_heads, kernel_size, dilation, stride
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.attn_drop = attn_drop
        self.tile: int | None = None  # see `neighborhood_attention`
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        side = 2 * kernel_size - 1
        self.rpb = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, side, side), std=0.02)) if rpb else None
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Attend within neighbourhoods.

        Args:
            x: `[B, H * W, C]`.
            size: (H, W).

        Returns:
            `[B, H * W, C]`.
        """
        (height, width), least = size, self.kernel_size * self.dilation
        x = F.pad(x.unflatten(1, size), (0, 0, 0, max(least - width, 0), 0, max(least - height, 0)))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
        drop = self.attn_drop if self.training else 0.0
        shape = (self.kernel_size, self.dilation, self.stride)
        given: dict[str, Any] = {"rpb": self.rpb, "scale": self.scale, "dropout": drop}
        x = neighborhood_attention(q, k, v, *shape, **given, tile=self.tile, core=self.core)
        x = x[:, :height, :width].flatten(3).flatten(1, 2)
        return self.proj_drop(self.proj(x))

    def path(self, device: torch.device) -> str:
        """Queries in tiles, whose keys are one window; or one neighbour after the other, in Triton."""
        return "triton" if self.core == "triton" and triton_serves(device) else "tiles"

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        shape = f"kernel_size={self.kernel_size}, dilation={self.dilation}, stride={self.stride}"
        return f"num_heads={self.num_heads}, {shape}"


class DilatedNeighborhoodAttention(NeighborhoodAttention):
    """Neighbourhood attention that is dilated in every second block, so that it spans the map (DiNAT, 2209.15001).

    Args:
        dim, num_heads, kernel_size: see `NeighborhoodAttention`.
        dilation: in blocks of odd number; None is the largest for which a neighbourhood fits into the grid.
        grid: (H, W) of the map that the network is built for.
        layer: of the block.
        base: see `NeighborhoodAttention`.
    """

    formula = "y_i = softmax_j(q_i k_j / sqrt(d) + b_{j-i}) v_j, j in the K x K cells around i in steps of r"

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        kernel_size: int = 7,
        dilation: int | None = None,
        grid: tuple[int, ...] = (14, 14),
        layer: int = 1,
        **base: Any,
    ) -> None:
        largest = max(min(grid) // kernel_size, 1) if dilation is None else dilation
        super().__init__(dim, num_heads, kernel_size, dilation=largest if layer % 2 else 1, **base)


@contextlib.contextmanager
def by_definition(model: nn.Module) -> Iterator[None]:
    """Within it every neighbourhood attention of a model multiplies neighbours alone, token by token.

    For counting: tiles multiply more, for speed, than the operator is defined by and papers count.
    """
    layers = [module for module in model.modules() if isinstance(module, NeighborhoodAttention)]
    before = [layer.tile for layer in layers]
    for layer in layers:
        layer.tile = 1
    try:
        yield
    finally:
        for layer, tile in zip(layers, before, strict=True):
            layer.tile = tile


# Operators of their own: `torch.compile` takes them as they are, and Triton is imported where they first run.
_FORM = "int[] rows, int[] columns, int[] form, float scale"


@torch.library.custom_op(
    "vistrain::neighborhood",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor? rpb, {_FORM}) -> (Tensor, Tensor)",
)
def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    rows: list[int],
    columns: list[int],
    form: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    from vistrain.layers import neighborhood_triton

    return neighborhood_triton.forward(q, k, v, rpb, rows, columns, form, scale)


@torch.library.custom_op(
    "vistrain::neighborhood_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor[] given, Tensor out, Tensor total, {_FORM}) -> Tensor[]",
)
def _triton_backward(
    gradient: Tensor,
    given: list[Tensor],
    out: Tensor,
    total: Tensor,
    rows: list[int],
    columns: list[int],
    form: list[int],
    scale: float,
) -> list[Tensor]:
    from vistrain.layers import neighborhood_triton

    return neighborhood_triton.backward(gradient, given, out, total, rows, columns, form, scale)


@_triton.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    rows: list[int],
    columns: list[int],
    form: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(v.dtype, torch.float32)
    return torch.empty_like(v, dtype=exact), v.new_empty(v.shape[:-1], dtype=exact)


@_triton_backward.register_fake
def _(gradient: Tensor, given: list[Tensor], out: Tensor, total: Tensor, *form: Any) -> list[Tensor]:
    return [torch.empty_like(x) for x in given]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, rows, columns, form, scale = inputs
    ctx.form = (rows, columns, form, scale)
    ctx.save_for_backward(*output, *(x for x in given if x is not None))


def _gradients(ctx: Any, gradient: Tensor, of_total: Tensor) -> tuple[Tensor | None, ...]:
    out, total, *given = ctx.saved_tensors
    found = _triton_backward(gradient, given, out, total, *ctx.form)
    return (*found, *(None,) * (8 - len(found)))


_triton.register_autograd(_gradients, setup_context=_keep)


@functools.lru_cache(maxsize=512)
def _reach(length: int, kernel: int, dilation: int, stride: int, causal: bool) -> list[int]:
    """Of each token of an axis the first neighbour and how many it has, in turn."""
    found = np.zeros((length, 2), dtype=np.int64)
    for group in range(dilation):
        first, last = _neighbourhoods(len(range(group, length, dilation)), kernel, stride, causal)
        found[group::dilation] = np.stack((first * dilation + group, last - first), 1)
    return [int(number) for number in found.flatten()]


@functools.lru_cache(maxsize=512)
def _axis(length: int, kernel: int, dilation: int, stride: int, causal: bool, tile: int | None) -> _Axis:
    """Cuts an axis into tiles, group by group of tokens that are equal modulo the dilation."""
    longest = -(-length // dilation)
    tile = tile or -(-longest // max(1, round(longest / kernel)))  # about as long as a neighbourhood, and even
    cut = []  # of each tile: its queries within their group, the first and last + 1 of their neighbours, the group
    for group in range(dilation):
        members = len(range(group, length, dilation))
        first, last = _neighbourhoods(members, kernel, stride, causal)
        for start in range(0, members, tile):
            query = np.minimum(np.arange(start, start + tile), members - 1)
            cut.append((query, first[query], last[query], group, members))
    window = np.arange(max(last.max() - first.min() for _, first, last, _, _ in cut))
    queries, keys, strangers, offsets = [], [], [], []
    for query, first, last, group, members in cut:
        key = first.min() + window
        strangers.append((key < first[:, None]) | (key >= last[:, None]))
        offsets.append(key - query[:, None])
        queries.append(query * dilation + group)
        keys.append(np.minimum(key, members - 1) * dilation + group)
    slots = np.unique(queries, return_index=True)[1]
    where = (slots // tile, slots % tile)
    return _Axis(np.stack(queries), np.stack(keys), np.stack(strangers), np.stack(offsets), *where)


def _neighbourhoods(length: int, kernel: int, stride: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """First and last + 1 of the neighbours of each of `length` tokens, `[length]` each."""
    token = np.arange(length)
    if causal:
        leader = np.minimum(token // stride * stride + stride - 1, length - 1)
        return np.maximum(leader - kernel + 1, 0), token + 1
    leader = np.minimum(token // stride * stride + stride // 2, length - 1)
    before, after = kernel // 2, kernel - kernel // 2
    first = np.clip(leader, before, length - after) - before
    return first, first + kernel


def _cut(x: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """`[B, H, W, heads, D]` -> `[B, heads, Ty * Tx, a * b, D]`, for tiles of rows `[Ty, a]` and columns `[Tx, b]`."""
    tokens = rows[:, None, :, None] * x.shape[2] + columns[None, :, None, :]
    x = x.flatten(1, 2).index_select(1, upload(tokens.flatten(), x.device))
    return x.unflatten(1, (len(rows) * len(columns), -1)).permute(0, 3, 1, 2, 4)


def _join(x: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """`[B, heads, Ty * Tx, a * b, D]` -> `[B, H, W, heads, D]`."""
    (tiles_x, b), size = columns.queries.shape, (len(rows.tiles), len(columns.tiles))
    tile = rows.tiles[:, None] * tiles_x + columns.tiles
    place = rows.places[:, None] * b + columns.places
    slots = upload((tile * x.shape[3] + place).flatten(), x.device)
    return x.flatten(2, 3).index_select(2, slots).transpose(1, 2).unflatten(1, size)


def _bias(rows: _Axis, columns: _Axis, rpb: Tensor | None, like: Tensor) -> Tensor:
    """`[heads or 1, tiles, queries, keys]`: minus infinity where a key is a stranger, elsewhere the bias."""
    axes = (rows, columns)
    strangers = [upload(axis.strangers, like.device).flatten() for axis in axes]
    if rpb is None:
        bias = like.new_zeros(1, len(strangers[0]), len(strangers[1]))
    else:
        # Picked by products with ones and zeros: their gradient is a product too, instead of a slow scatter.
        picks = [_picks(axis, count, rpb) for axis, count in zip(axes, rpb.shape[1:], strict=True)]
        bias = picks[0] @ rpb @ picks[1].T
    bias = bias.masked_fill(strangers[0][:, None] | strangers[1], float("-inf"))
    bias = bias.unflatten(2, columns.strangers.shape).unflatten(1, rows.strangers.shape)
    return bias.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _picks(axis: _Axis, count: int, like: Tensor) -> Tensor:
    """`[T * t * w, 2K - 1]`: a one at the relative position of each pair of query and key, if it has one."""
    position = upload(axis.offsets + count // 2, like.device).flatten()
    return (position[:, None] == torch.arange(count, device=like.device)).to(like.dtype)


def _dense(axis: _Axis) -> np.ndarray:
    """`[L, L]` bool, which key is a neighbour of which query along one axis."""
    mask = np.zeros((len(axis.tiles), len(axis.tiles)), dtype=bool)
    tile, query, key = np.nonzero(~axis.strangers)
    mask[axis.queries[tile, query], axis.keys[tile, key]] = True
    return mask


def _pair(value: T | tuple[T, T]) -> tuple[T, T]:
    return value if isinstance(value, tuple) else (value, value)
