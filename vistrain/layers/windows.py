"""Windows of maps: cutting, joining, the masks of shifted windows, relative positions, attention inside windows.

Maps are channels-last, `[B, H, W, C]`; windows are rectangles (h, w) that divide (H, W); a window's tokens and a map's
windows are counted row by row.

Swin Transformer (arXiv 2103.14030). Authors' code: github.com/microsoft/Swin-Transformer, MIT (models/
swin_transformer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.errors import DataError

Size = tuple[int, int]


def check_divides(window: Size, size: Size) -> None:
    """Refuses a map that windows do not tile.

    Args:
        window: (h, w) of a window.
        size: (H, W) of the map.

    Raises:
        DataError: `size` is empty or no multiple of `window`.
    """
    if not all(side >= step and side % step == 0 for side, step in zip(size, window, strict=True)):
        raise DataError(
            "image", f"{size[0]}x{size[1]} is not cut evenly by windows of {window[0]}x{window[1]}", "pad it first"
        )


def window_partition(x: Tensor, window: Size) -> Tensor:
    """Cuts a map into windows.

    Args:
        x: `[B, H, W, C]`.
        window: (h, w), dividing (H, W).

    Returns:
        `[B * N, h * w, C]`, the N = H/h * W/w windows of the first image first.
    """
    batch, height, width, channels = x.shape
    h, w = window
    x = x.view(batch, height // h, h, width // w, w, channels)
    return x.transpose(2, 3).reshape(-1, h * w, channels)


def window_merge(windows: Tensor, window: Size, size: Size) -> Tensor:
    """Joins windows to a map again, the inverse of `window_partition`.

    Args:
        windows: `[B * N, h * w, C]`.
        window: (h, w), dividing (H, W).
        size: (H, W) of the map.

    Returns:
        `[B, H, W, C]`.
    """
    (height, width), (h, w), channels = size, window, windows.shape[-1]
    x = windows.view(-1, height // h, width // w, h, w, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shifted_window_mask(
    size: Size,
    window: Size,
    shift: Size,
    value: float = -100.0,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What attention within the windows of a rolled map adds to its logits (Swin, 2103.14030, section 3.2).

    A map rolled by `-shift` brings its first rows and columns into its last windows; tokens that were not neighbours
    must not attend to each other there.

    Args:
        size: (H, W) of the map.
        window: (h, w), dividing (H, W).
        shift: (rows, columns) that the map was rolled by, up and to the left; 0 leaves an axis alone.
        value: stands where a pair of tokens is kept apart, in Swin's code -100; elsewhere the mask is 0.
        device, dtype: of the mask.

    Returns:
        `[N, h * w, h * w]`, N = H/h * W/w.
    """
    rows, columns = (_regions(side, step, moved, device) for side, step, moved in zip(size, window, shift, strict=True))
    regions = window_partition((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, value)


def _regions(side: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    """`[side]`: 0 before the last window, in it 1 for what stood there before the roll and 2 for what came around."""
    steps = torch.arange(side, device=device)
    return (steps >= side - window).long() + (steps >= side - shift).long() if shift else torch.zeros_like(steps)


def relative_position_index(window: Size) -> Tensor:
    """Rows of a table of `(2h - 1) * (2w - 1)` relative positions, for all pairs of tokens of a window.

    Args:
        window: (h, w).

    Returns:
        `[h * w, h * w]` int64: entry (i, j) belongs to the offset (y_i - y_j, x_i - x_j), counted from (1 - h, 1 - w)
        row by row (Swin's `relative_position_index`).
    """
    (h, w), positions = window, torch.cartesian_prod(torch.arange(window[0]), torch.arange(window[1]))
    offsets = positions[:, None] - positions[None, :]
    return (offsets[..., 0] + h - 1) * (2 * w - 1) + offsets[..., 1] + w - 1


def relative_position_bias(table: Tensor, index: Tensor) -> Tensor:
    """Looks the bias of every pair of tokens up.

    Args:
        table: `[P, heads]`, a bias for each relative position.
        index: `[Nq, Nk]` rows of the table.

    Returns:
        `[heads, Nq, Nk]`, contiguous.
    """
    # A row for each head first: several times as fast as indexing the table as it is
    return table.t().contiguous().index_select(1, index.flatten()).view(-1, *index.shape)


@dataclass(frozen=True, eq=False)
class WindowOrder:
    """A map's tokens in the order of its (shifted) windows, and the few masks that shifted windows need.

    Rolling a map and cutting it into windows is one permutation of its tokens. Windows that need the same mask are made
    neighbours: those inside the map need none, those at the right edge, at the bottom edge and in the corner need one
    each, however large the map is. One order serves all blocks of a network. Made by `window_order`.

    Attributes:
        index: `[B * H * W]` int64, the token of the flattened batch that stands at each place of the windows.
        inverse: `[B * H * W]` int64, the place in the windows of each token.
        groups: numbers of consecutive windows with their mask, `[L, L]` or None, L = h * w.
        tokens: L.
    """

    index: Tensor
    inverse: Tensor
    groups: tuple[tuple[int, Tensor | None], ...]
    tokens: int

    def cut(self, x: Tensor) -> Tensor:
        """Map `[B, H, W, C]` or `[B, H * W, C]` -> windows `[B * N, L, C]`."""
        channels = x.shape[-1]
        return x.reshape(-1, channels).index_select(0, self.index).view(-1, self.tokens, channels)

    def join(self, windows: Tensor, batch: int) -> Tensor:
        """Windows `[B * N, L, C]` -> `[B, H * W, C]`; the inverse of `cut`."""
        channels = windows.shape[-1]
        return windows.reshape(-1, channels).index_select(0, self.inverse).view(batch, -1, channels)


def window_order(
    batch: int,
    size: Size,
    window: Size,
    shift: Size = (0, 0),
    value: float = -100.0,
    device: torch.device | None = None,
) -> WindowOrder:
    """The windows of a map that is rolled by `-shift`.

    Args:
        batch: B.
        size: (H, W) of the map.
        window: (h, w), dividing (H, W).
        shift: (rows, columns), less than the window.
        value: see `shifted_window_mask`.
        device: of the tensors.
    """
    rows, columns = size[0] // window[0], size[1] // window[1]
    tokens = torch.arange(batch * size[0] * size[1], device=device).view(batch, *size, 1)
    places = window_partition(tokens.roll((-shift[0], -shift[1]), (1, 2)), window)[..., 0]
    groups: tuple[tuple[int, Tensor | None], ...] = ((places.shape[0], None),)
    if any(shift):
        last_row = torch.arange(rows, device=device) == rows - 1
        last_column = torch.arange(columns, device=device) == columns - 1
        kind = (2 * last_row[:, None] + last_column).flatten().repeat(batch)
        # In the order of kinds, and within each in their own: a stable sort, which ONNX lacks
        places = places[(kind * kind.shape[0] + torch.arange(kind.shape[0], device=device)).argsort()]
        # The smallest map with windows of all four kinds
        masks = shifted_window_mask((2 * window[0], 2 * window[1]), window, shift, value, device)
        counts = ((rows - 1) * (columns - 1), rows - 1, columns - 1, 1)
        groups = tuple((batch * n, masks[i] if i else None) for i, n in enumerate(counts) if n)
    index = places.flatten()
    return WindowOrder(index, index.argsort(), groups, window[0] * window[1])


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    groups: Sequence[tuple[int, Tensor | None]],
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention inside windows, `softmax(scale * q k^T + bias + mask) v`.

    Args:
        q, k, v: `[n, heads, L, d]`; keys and values may have another number of tokens than queries.
        bias: `[heads, Lq, Lk]`, the same for all windows.
        groups: as in `WindowOrder`; their numbers sum to n.
        scale: default `d ** -0.5`.
        dropout: probability that an attention weight is dropped.

    Returns:
        `[n, Lq, heads * d]`.
    """
    sizes = [count for count, _ in groups]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), groups, strict=True)
    done = []
    for part_q, part_k, part_v, (_, mask) in parts:
        logits = (bias if mask is None else bias + mask)[None].to(q.dtype)
        out = attend_few(part_q, part_k, part_v, logits, scale, dropout)
        done.append(out.transpose(1, 2).flatten(2))
    return done[0] if len(done) == 1 else torch.cat(done)


def attend_few(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None = None, dropout: float = 0.0
) -> Tensor:
    """Softmax attention of few tokens: whichever form is faster.

    On a CPU that trains, matrix products and a softmax take 0.80 to 0.89 of the time of torch's fused kernel, forward
    and backward, at 49 to 256 keys; in evaluation they take 1.1 to 1.5 times as long. Both compute the same.

    Args:
        q, k, v: `[n, heads, L, d]`; keys and values may have another number of tokens than queries.
        bias: broadcastable to `[n, heads, Lq, Lk]`; no row is minus infinity throughout. None for none.
        scale: default `d ** -0.5`.
        dropout: probability that an attention weight is dropped.

    Returns:
        `[n, heads, Lq, d]`.
    """
    if attends_by_products(q):
        logits = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.mT
        weights = (logits if bias is None else logits + bias).softmax(-1).to(v.dtype)
        return (F.dropout(weights, dropout) if dropout else weights) @ v
    return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)


AT_ONCE = 2**22  # logits; 16 MB of float32, which an allocator still gives again without asking the system for it


def at_once(q: Tensor, logits: int) -> int:
    """How many windows, or tiles, to attend in at a time.

    On a processor large logits leave the caches, and memory of more than 32 MB is fetched from the system and given
    back each time: time grew faster than the number of windows. Elsewhere, and where a graph is traced, all at once.

    Args:
        q: a tensor of the device.
        logits: of one window, of all heads and images that are computed with it.
    """
    one = q.device.type == "cpu" and not torch.compiler.is_compiling()
    return max(1, AT_ONCE // logits) if one else 2**31


def attends_by_products(q: Tensor) -> bool:
    """Whether `attend_few` takes products and a softmax, and not the fused kernel, which no exported file has."""
    if torch.compiler.is_exporting():
        return True
    return q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
