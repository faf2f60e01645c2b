"""Names of weights in somebody else's files, as a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vistrain.checkpoints.inverse import NoInverse, original
from vistrain.errors import WeightsError

HEAD = 32  # channels of a head, of layouts that have heads as an axis


def _flax_kernel(kernel: Tensor) -> Tensor:
    """`[*spatial, in, out]` -> `[out, in, *spatial]`; no spatial axes for linear layers."""
    return kernel.movedim((-1, -2), (0, 1)).contiguous()


def _flax_conv_transpose(kernel: Tensor) -> Tensor:
    """`[h, w, in, out]` -> `[in, out, h, w]`, turned by 180 degrees, since flax does not mirror it."""
    return kernel.movedim((-2, -1), (0, 1)).flip(2, 3).contiguous()


def _tf_depthwise(kernel: Tensor) -> Tensor:
    """`[h, w, channels, 1]` -> `[channels, 1, h, w]`."""
    return kernel.movedim((-2, -1), (0, 1)).contiguous()


def _tf_heads_in(kernel: Tensor) -> Tensor:
    """`[in, heads, d]` -> `[heads * d, in]`, of a linear layer."""
    return kernel.flatten(1).t().contiguous()


def _tf_heads_out(kernel: Tensor) -> Tensor:
    """`[heads, d, out]` -> `[out, heads * d]`, of a linear layer."""
    return kernel.flatten(0, 1).t().contiguous()


def _pointwise(kernel: Tensor) -> Tensor:
    """`[out, in, 1, 1]` of a convolution -> `[out, in]` of a linear layer; what is that already stays."""
    return kernel[:, :, 0, 0] if kernel.shape[2:] == (1, 1) else kernel


class Layout(NamedTuple):
    """How a tensor of another framework becomes torch's, and back, bit for bit."""

    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]


# A key map names them, so that it stays plain data.
LAYOUTS = {
    "flax_kernel": Layout(_flax_kernel, lambda x: x.movedim((0, 1), (-1, -2)).contiguous()),
    "flax_conv_transpose": Layout(_flax_conv_transpose, lambda x: x.flip(2, 3).movedim((0, 1), (-2, -1)).contiguous()),
    "tf_depthwise": Layout(_tf_depthwise, lambda x: x.movedim((0, 1), (-2, -1)).contiguous()),
    "tf_heads_in": Layout(_tf_heads_in, lambda x: x.t().unflatten(1, (-1, HEAD)).contiguous()),
    "tf_heads_out": Layout(_tf_heads_out, lambda x: x.t().unflatten(0, (-1, HEAD)).contiguous()),
    "tf_flat": Layout(Tensor.flatten, lambda x: x.unflatten(0, (-1, HEAD))),
    "pointwise": Layout(_pointwise, lambda x: x[:, :, None, None] if x.ndim == 2 else x),
}


@dataclass(frozen=True)
class KeyMap:
    """How one naming of a network's weights turns into ours. Plain data: a paper's file writes it as a literal.

    Attributes:
        name: of the naming, for messages (`official`, `detrex`).
        marker: regular expression; a file has this naming if some key contains a match.
        rules: `(pattern, replacement)`, applied with `re.sub` one after the other to each foreign key.
        drop: patterns of foreign keys that carry nothing for us.
        aliases: `(pattern, replacement)`, applied after the rules: a key that changes is a second spelling of the key
            it changes to. Both hold one tensor; a difference is an error.
        exports: `(pattern, replacements)`, applied one after the other to each of our keys; several replacements give
            several names. Needed where `rules` read backwards do not say what the authors write (see `original`): they
            forget something, or a name stands in files twice.
        layouts: `(pattern, name of LAYOUTS)`; the first pattern that a foreign key contains says how its tensor's axes
            are turned into torch's order.
        stacked: `(patterns, replacement)`: keys that differ, after the rules, in which of the patterns they contain are
            parts of one tensor, one below the other in the order of the patterns; or nothing.
        parts: `(prefix, ours, key map)`: keys with this prefix are renamed by that map alone, without it, and get
            `ours` instead. A file without the parts' namings does not have this one.
    """

    name: str
    marker: str
    rules: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    exports: tuple[tuple[str, tuple[str, ...]], ...] = ()
    layouts: tuple[tuple[str, str], ...] = ()
    stacked: tuple[tuple[str, ...], str] = ((), "")
    parts: tuple[tuple[str, str, KeyMap], ...] = ()

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether these keys (a state dict will do) have this naming."""
        marker, keys = re.compile(self.marker), list(keys)
        inside = ([k.removeprefix(prefix) for k in keys if k.startswith(prefix)] for prefix, *_ in self.parts)
        known = all(part.matches(found) for found, (*_, part) in zip(inside, self.parts, strict=True))
        return known and any(marker.search(key) for key in keys)

    def rename(self, key: str) -> str | None:
        """Our name of a foreign key before aliases; None if it carries nothing."""
        for prefix, ours, part in self.parts:
            if key.startswith(prefix):
                inner = part.rename(key.removeprefix(prefix))
                return None if inner is None else ours + inner
        if any(re.search(pattern, key) for pattern in self.drop):
            return None
        return _substitute(key, self.rules)

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under our names.

        Raises:
            WeightsError: two foreign keys become one of ours, or two spellings of one key hold different tensors.
        """
        ours: dict[str, Tensor] = {}
        origin: dict[str, str] = {}
        second: dict[str, str] = {}
        for key in state_dict:
            renamed = self.rename(key)
            if renamed is None:
                continue
            if (target := _substitute(renamed, self.aliases)) != renamed:
                second[key] = target
                continue
            if renamed in ours:
                raise WeightsError(self.name, f"'{origin[renamed]}' and '{key}' both become '{renamed}'")
            ours[renamed], origin[renamed] = self._turned(key, state_dict[key]), key
        for key, target in second.items():
            # A file that has only the second spelling is as good as one that has only the first.
            value, first = state_dict[key], ours.setdefault(target, state_dict[key])
            if value.shape != first.shape or not torch.equal(value, first):
                raise WeightsError(self.name, f"'{key}' should equal '{origin.get(target, target)}', but differs")
        for patterns, replacement in (self.stacked, *(part.stacked for *_, part in self.parts)):
            ours = _stacked(ours, patterns, replacement)
        return ours

    def _turned(self, key: str, value: Tensor) -> Tensor:
        """A foreign tensor with its axes in torch's order."""
        for prefix, _, part in self.parts:
            if key.startswith(prefix):
                return part._turned(key.removeprefix(prefix), value)
        layout = self._layout(key)
        return value if layout is None else layout.ours(value)

    def _layout(self, key: str) -> Layout | None:
        name = next((name for pattern, name in self.layouts if re.search(pattern, key)), None)
        return None if name is None else LAYOUTS[name]

    def export(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors under the foreign names, second spellings included: what `apply` takes back, bit for bit.

        Left out is what `apply` would drop.

        Raises:
            WeightsError: a foreign name cannot be told, is no name of ours after `apply`, or stands for two tensors.
        """
        foreign: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            for name, tensor in self._foreign(key, value):
                if name in foreign:
                    raise WeightsError(self.name, f"two weights become '{name}'", "mend `exports`")
                foreign[name] = tensor
        return foreign

    def _foreign(self, key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Foreign names of one of our keys, each with its tensor."""
        part = next(((theirs, ours, part) for theirs, ours, part in self.parts if key.startswith(ours)), None)
        if part is not None:
            theirs, ours, names = part
            yield from ((theirs + name, tensor) for name, tensor in names._foreign(key.removeprefix(ours), value))
            return
        patterns, replacement = self.stacked
        wholes = [key]
        if patterns and replacement in key:
            wholes = [original(key, ((pattern, replacement),)) for pattern in patterns]
        for part_key, tensor in zip(wholes, value.chunk(len(wholes)) if len(wholes) > 1 else (value,), strict=True):
            for name in self._names(part_key):
                renamed = self.rename(name)
                if renamed is None:
                    continue
                if _substitute(renamed, self.aliases) != part_key:
                    problem = f"'{key}' would be written as '{name}', which is read as '{renamed}'"
                    raise WeightsError(self.name, problem, "mend `exports`")
                layout = self._layout(name)
                yield name, tensor if layout is None else layout.theirs(tensor)

    def _names(self, key: str) -> list[str]:
        """Foreign names of one of our keys, second spellings included."""
        try:
            if not self.exports:
                spellings = [key, *(original(key, (alias,)) for alias in self.aliases)]
                return list(dict.fromkeys(original(name, self.rules) for name in spellings))
        except NoInverse as error:
            raise WeightsError(self.name, f"cannot write the foreign names: {error}", "give it `exports`") from error
        names = [key]
        for pattern, replacements in self.exports:
            names = [re.sub(pattern, new, name) for name in names for new in replacements]
        return list(dict.fromkeys(names))  # a pattern that does not match yields the same name several times


def _stacked(tensors: dict[str, Tensor], patterns: tuple[str, ...], replacement: str) -> dict[str, Tensor]:
    """Tensors of which those that are parts of one are put together, see `KeyMap`; a part that is missing leaves the
    others under their names."""
    found: dict[str, Tensor] = {}
    groups: dict[str, dict[int, str]] = {}
    for key in tensors:
        place = next((i for i, pattern in enumerate(patterns) if re.search(pattern, key)), None)
        if place is None:
            found[key] = tensors[key]
        else:
            groups.setdefault(re.sub(patterns[place], replacement, key), {})[place] = key
    for whole, keys in groups.items():
        if len(keys) == len(patterns):
            found[whole] = torch.cat([tensors[keys[i]] for i in range(len(patterns))])
        else:
            found |= {key: tensors[key] for key in keys.values()}
    return found


def _substitute(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
