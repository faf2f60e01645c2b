"""Networks that teach and do not learn: averages of a student, and trained ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vistrain.checkpoints import KeyMap
from vistrain.errors import ConfigError
from vistrain.layers.averaged import Teacher
from vistrain.layers.padding import Normalize
from vistrain.pretraining.patch_encoder import PatchEncoder


class TeacherNames(KeyMap):
    """A naming in which the file has the student alone: its averaged teacher starts with the same weights.

    Args:
        names: of the student.
        own: names of the teacher's tensors, as ours has them within it.
    """

    own: tuple[str, ...]

    def __init__(self, names: KeyMap, own: tuple[str, ...]) -> None:
        super().__init__(names.name, names.marker, rules=names.rules, drop=names.drop)
        object.__setattr__(self, "own", own)  # the base is frozen

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `KeyMap`."""
        found = super().apply(state_dict)
        taught = {f"teacher.network.{name}": found[name] for name in self.own if name in found}
        return found | taught | {"teacher.steps": torch.zeros((), dtype=torch.int64)}


class FrozenViT(Teacher):
    """A trained ViT of timm's that teaches.

    Args:
        name, pretrained, args: see `PatchEncoder`; without weights it teaches noise.
    """

    network: PatchEncoder

    def __init__(self, name: str, pretrained: bool | str = True, args: dict[str, Any] | None = None) -> None:
        super().__init__(PatchEncoder(name, pretrained, args=args))
        self.normalize = Normalize(self.network.preprocessing)

    @property
    def dim(self) -> int:
        """D of its tokens."""
        return self.network.dim

    @property
    def depth(self) -> int:
        """Its blocks."""
        return len(self.network.body.blocks)

    @torch.no_grad()
    def prepared(self, batch: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        """A batch's images, normalised for it and of the size at which it has as many patches.

        Args:
            batch: `image` and `size`.
            grid: rows and columns of the student's patches.
        """
        images: Tensor = self.normalize(batch["image"], batch["size"])[0]
        size = (grid[0] * self.network.patch[0], grid[1] * self.network.patch[1])
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size=size, mode="bicubic", antialias=True)

    @torch.no_grad()
    def hidden(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The tokens after each block `[B, P + N, D]`, and the last block's attention `[B, heads, P + N, P + N]`."""
        layers = self.network.layers(images)
        return layers, attention_of(self.network.body.blocks[-1], layers[-2])


def attention_parts(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[B, heads, n, d]` of a block of timm's ViT that reads `[B, n, D]`."""
    attention = block.attn
    rows = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.q_norm(rows[0]), attention.k_norm(rows[1]), rows[2]


def attention_of(block: Any, x: Tensor) -> Tensor:
    """The attention `[B, heads, n, n]` of a block of timm's ViT that reads `[B, n, D]`."""
    q, k, _ = attention_parts(block, x)
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def refuse_other_width(teacher: int, student: int) -> None:
    """Refuse to compare tokens of different widths.

    Raises:
        ConfigError: they differ.
    """
    if teacher != student:
        problem = f"its tokens have {teacher} channels, the student's {student}"
        raise ConfigError("model.teacher", problem, "take a teacher of the same width")


def refuse_other_grid(teacher: PatchEncoder, student: PatchEncoder) -> None:
    """Refuse a teacher that does not have as many tokens before its patches.

    Raises:
        ConfigError: it has not.
    """
    if teacher.prefix != student.prefix:
        problem = f"{teacher.name} has {teacher.prefix} tokens before its patches, {student.name} has {student.prefix}"
        raise ConfigError("model.teacher", problem, "take a teacher with as many")
