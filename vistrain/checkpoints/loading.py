"""Strict loading of weights into a network."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vistrain.checkpoints.fetching import locate
from vistrain.checkpoints.finding import find_state_dict, labels_in, strip_prefixes
from vistrain.checkpoints.keymap import KeyMap
from vistrain.checkpoints.likeness import looks_like
from vistrain.checkpoints.reading import load_file
from vistrain.errors import WeightsError
from vistrain.internals.pages import FileMemory
from vistrain.structures import LabelSpace

log = logging.getLogger(__name__)

_SHOWN = 4  # names listed per kind of disagreement before a count follows
_TABLE = re.compile(r"(^|\.)relative_position_bias_table$")  # Swin's, and of whatever has its windows


@dataclass(frozen=True)
class LeftOut:
    """A weight that was not loaded since its shape depends on the number of classes, or on the scale of enlargement.

    Attributes:
        name: our parameter name.
        file_shape, model_shape: the shapes that disagreed; None where there is no such weight. The same where
            the file's classes are others.
    """

    name: str
    file_shape: tuple[int, ...] | None
    model_shape: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.file_shape == self.model_shape:
            return f"{self.name}: of other classes, or of the same in another order"
        shapes = [None if shape is None else list(shape) for shape in (self.file_shape, self.model_shape)]
        return f"{self.name}: {shapes[0] or 'not'} in the file, {shapes[1] or 'not'} here"


@dataclass(frozen=True)
class Adapted:
    """A first layer's weight that was loaded for another number of image channels, see `with_channels`.

    Attributes:
        name: our parameter name.
        file_channels, model_channels: of the images.
    """

    name: str
    file_channels: int
    model_channels: int

    def __str__(self) -> str:
        how = "repeated" if self.model_channels > self.file_channels else "summed"
        return f"{self.name}: {self.file_channels} channels of the file {how} to {self.model_channels}"


@dataclass(frozen=True)
class Resized:
    """A table of relative positions that was loaded for windows of another size, see `with_window`.

    Attributes:
        name: our parameter name.
        file_window, model_window: sides of the windows, tokens.
    """

    name: str
    file_window: int
    model_window: int

    def __str__(self) -> str:
        return f"{self.name}: windows of {self.file_window} in the file resized to {self.model_window}"


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        source: the file, or `state dict`.
        picked: dotted place of the state dict within the file; empty if it was the whole.
        key_map: name of the key map that was recognised; None if the names were ours already.
        loaded: number of tensors loaded.
        left_out: class and scale layers that kept their initial values, or are in the file alone.
        adapted: first layers that were changed to the model's number of image channels, tables to its windows.
    """

    source: str
    picked: str
    key_map: str | None
    loaded: int
    left_out: tuple[LeftOut, ...] = ()
    adapted: tuple[Adapted | Resized, ...] = ()

    def __str__(self) -> str:
        text = f"{self.source}: {self.loaded} tensors"
        text += f" of '{self.picked}'" if self.picked else ""
        text += f", {self.key_map} names" if self.key_map else ""
        for item in self.left_out:
            text += f"\n  left out {item}"
        for change in self.adapted:
            text += f"\n  adapted {change}"
        return text


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    key_maps: Sequence[KeyMap] = (),
    class_layers: Sequence[str] = (),
    scale_layers: Sequence[str] = (),
    input_layers: Sequence[str] = (),
    resize_tables: bool = False,
    labels: LabelSpace | None = None,
    where: str = "",
) -> LoadReport:
    """Loads weights strictly: every tensor of the model comes from the file, every tensor of the file is used.

    Four things are excused. Parameters that match `class_layers` and whose shape differs keep their initial values,
    since a network for other classes is still a good start, and all of them where the file names other classes than
    `labels`, or the same in another order; so do those that match `scale_layers`, which may even be
    missing on either side, since enlarging four times takes more layers than twice. `num_batches_tracked` may be absent
    on either side: frozen and older batch norms do not count batches. Weights of `input_layers` for images of another
    number of channels are adapted, see `with_channels`; tables of relative positions may be resized, see `with_window`.

    Args:
        model: receives the weights in place.
        source: a file (see `load_file`), or a dictionary, wrapped or not.
        key_maps: namings to recognise; the first that matches is used, unless the names are the model's own.
        class_layers: regular expressions (`re.search`) of parameters whose shape depends on the number of classes.
        scale_layers: the same of layers whose shape or number depends on the scale of enlargement; the file must have
            some of them.
        input_layers: the same of the layers that see the image itself, whose second axis is its channels.
        resize_tables: whether Swin's tables of positions may be of windows of another size.
        labels: the classes that the model is for; None: they are not compared with those of the file.
        where: what messages call the source; default its path, or `state dict`.

    Returns:
        What was loaded and what was left out.

    Raises:
        WeightsError: the file cannot be read, or names or shapes disagree; the first few are listed.
    """
    where = where or ("state dict" if isinstance(source, Mapping) else str(source))
    path = None if isinstance(source, Mapping) else locate(source).path
    content = source if path is None else load_file(path, mapped=True)
    assert isinstance(content, Mapping)
    foreign, picked = find_state_dict(content, where)
    theirs = None if labels is None else labels_in(content)
    del content
    own = model.state_dict()
    foreign = strip_prefixes(foreign, own)
    weights, recognised = renamed(foreign, own, key_maps, where)
    weights, adapted = _with_our_channels(weights, own, input_layers)
    weights, resized = _with_our_windows(weights, own) if resize_tables else (weights, ())
    left_out, problems = disagreements(weights, own, class_layers, scale_layers)
    if labels is not None and theirs is not None and theirs.name_of != labels.name_of:
        left_out = (*left_out, *_of_classes(weights, own, class_layers, left_out))
    if problems:
        naming = f"{recognised.name} names" if recognised else "names of vistrain"
        alike = looks_like(foreign)
        tried = "" if recognised or not key_maps else f" (not the names of {', '.join(m.name for m in key_maps)})"
        raise WeightsError(
            where,
            f"does not fit {type(model).__name__}, read with {naming}{tried}: {'; '.join(problems)}",
            f"is the config the one that these weights were trained with? {alike}".rstrip(),
        )
    skipped = {item.name for item in left_out}
    memory = FileMemory(path, [tensor.data_ptr() for tensor in foreign.values()])
    if wrong := of_another_kind(weights, own, {name for name, _ in model.named_parameters()}, skipped, memory):
        remedy = "was the training that saved it broken, or its file converted? take another checkpoint"
        raise WeightsError(where, "; ".join(wrong), remedy)
    complete = {name: weights[name] if name in weights and name not in skipped else own[name] for name in own}
    _fill(model, complete, memory)
    name = recognised.name if recognised else None
    report = LoadReport(where, picked, name, len(own.keys() - skipped), left_out, (*adapted, *resized))
    log.info("%s", report)
    return report


def renamed(
    foreign: Mapping[str, Tensor], own: Mapping[str, Tensor], key_maps: Sequence[KeyMap], where: str
) -> tuple[dict[str, Tensor], KeyMap | None]:
    """Weights under our names, and the key map that knew theirs; None if they were ours already, or nobody's.

    Args:
        foreign: of a file, without what wrappers put before names.
        own: the model's.
        key_maps: the first that matches is used.
        where: what messages call the file.

    Raises:
        WeightsError: see `KeyMap.apply`.
    """
    recognised: KeyMap | None = None
    if _counted(foreign).keys() != _counted(own).keys():
        recognised = next((key_map for key_map in key_maps if key_map.matches(foreign)), None)
    try:
        return (recognised.apply(foreign) if recognised else dict(foreign)), recognised
    except WeightsError as error:
        raise WeightsError(where, f"{error.where} names: {error.problem}", error.remedy) from error


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """A first layer's weight for images of another number of channels.

    Channel i of the new ones takes the weights of channel i modulo the old number, in equal shares where several take
    the same; fewer new channels take sums: old channel i goes to i modulo the new number. Either way an image whose
    channels are all equal gives what it gave. Backbones' own weights keep timm's rule (`backbones/create.py`), which is
    another one but for one channel and multiples of three, and knows weights of three channels alone.

    Args:
        weight: `[out, in, *kernel]`, of any number of axes.
        channels: wanted.

    Returns:
        `[out, channels, *kernel]`.
    """
    old = weight.shape[1]
    if channels > old:
        source = torch.arange(channels, device=weight.device) % old
        shares = torch.bincount(source, minlength=old).to(weight.dtype)[source]
        return weight[:, source] / shares.view(1, -1, *[1] * (weight.ndim - 2))
    target = torch.arange(old, device=weight.device) % channels
    new = weight.new_zeros((weight.shape[0], channels, *weight.shape[2:]))
    return new.index_add_(1, target, weight)


def with_window(table: Tensor, side: int) -> Tensor:
    """A table of relative positions for windows of another size: bicubic between its offsets, as the authors' dense
    codes of Swin read weights of other windows (their mmcv_custom/checkpoint.py; see `backbones.swin_keys`).

    Args:
        table: `[(2M - 1)^2, heads]`, offsets row by row.
        side: W of the windows wanted, tokens.

    Returns:
        `[(2W - 1)^2, heads]`.
    """
    before, after = math.isqrt(len(table)), 2 * side - 1
    maps = table.t().unflatten(1, (before, before))[None]
    resized = F.interpolate(maps.float(), size=(after, after), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).t().to(table.dtype).contiguous()


def under(prefix: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """Regular expressions of a module's names (`^head\\.`) for what holds it under a prefix (`network.`)."""
    return tuple(rf"^{re.escape(prefix)}{pattern.removeprefix('^')}" for pattern in patterns)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, under the file's names without what training wrappers put before them.

    Raises:
        WeightsError: the file cannot be read, or holds no state dict.
    """
    return state_dict_in(load_file(locate(path).path), str(path))


def state_dict_in(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """As `read_state_dict`, of what a file holds.

    Raises:
        WeightsError: there is no state dict in it.
    """
    return strip_prefixes(find_state_dict(content, where)[0], {})


def merged(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """The tensors of several files together, as `read_state_dict` reads each.

    Raises:
        WeightsError: see `read_state_dict`.
    """
    return {name: value for path in paths for name, value in read_state_dict(path).items()}


def _counted(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the batch counters, which no inference and no training with a fixed momentum reads."""
    return {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def _with_our_channels(
    weights: dict[str, Tensor], own: Mapping[str, Tensor], input_layers: Sequence[str]
) -> tuple[dict[str, Tensor], tuple[Adapted, ...]]:
    """Weights with `input_layers` changed to the model's channels where that is all in which they differ."""
    adapted, changed = [], dict(weights)
    for name, value in weights.items():
        here = own.get(name)
        if here is None or not value.is_floating_point() or value.ndim < 2 or here.ndim != value.ndim:
            continue
        theirs, ours = (list(x.shape) for x in (value, here))
        if theirs[1] in (0, ours[1]) or theirs[:1] + theirs[2:] != ours[:1] + ours[2:]:
            continue
        if any(re.search(pattern, name) for pattern in input_layers):
            changed[name] = with_channels(value, ours[1])
            adapted.append(Adapted(name, theirs[1], ours[1]))
    return changed, tuple(adapted)


def _with_our_windows(
    weights: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[Resized, ...]]:
    """Weights with tables of relative positions resized to the model's windows."""
    resized, changed = [], dict(weights)
    for name, value in weights.items():
        here = own.get(name)
        if here is None or not _TABLE.search(name) or value.shape == here.shape or not value.is_floating_point():
            continue
        there, wanted = (_window_of(table) for table in (value, here))
        if there and wanted and value.shape[1] == here.shape[1]:
            changed[name] = with_window(value, wanted)
            resized.append(Resized(name, there, wanted))
    return changed, tuple(resized)


def _window_of(table: Tensor) -> int:
    """M of a table `[(2M - 1)^2, heads]`; 0 if it is none."""
    offsets = math.isqrt(len(table)) if table.ndim == 2 else 0
    return (offsets + 1) // 2 if offsets % 2 and offsets**2 == len(table) else 0


def disagreements(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], class_layers: Sequence[str], scale_layers: Sequence[str]
) -> tuple[tuple[LeftOut, ...], list[str]]:
    """What may be left out of some weights for a model, and what is wrong with the rest, in words.

    Args:
        weights: under our names.
        own: the model's.
        class_layers, scale_layers: as in `load_weights`.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(re.search(pattern, name) for pattern in patterns)

    has_scale = any(matches(name, scale_layers) for name in weights)
    left_out, misshaped, missing, unexpected = [], [], [], []
    for name in dict.fromkeys([*_counted(own), *_counted(weights)]):
        there, here = (tuple(x[name].shape) if name in x else None for x in (weights, own))
        if there == here:
            continue
        both = there is not None and here is not None
        if (has_scale and matches(name, scale_layers)) or (both and matches(name, class_layers)):
            left_out.append(LeftOut(name, there, here))
        elif there is None:
            missing.append(name)
        elif here is None:
            unexpected.append(name)
        else:
            misshaped.append(f"{name} {list(there)} for {list(here)}")
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    return tuple(left_out), [f"{len(names)} {kind}: {_few(names)}" for kind, names in kinds if names]


def _of_classes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], class_layers: Sequence[str], known: Sequence[LeftOut]
) -> tuple[LeftOut, ...]:
    """The class layers that are not left out for their shapes."""
    names = [n for n in own if n in weights and any(re.search(pattern, n) for pattern in class_layers)]
    done = {item.name for item in known}
    return tuple(LeftOut(n, tuple(weights[n].shape), tuple(own[n].shape)) for n in names if n not in done)


def _fill(model: nn.Module, weights: dict[str, Tensor], memory: FileMemory) -> None:
    """`model.load_state_dict`, which copies one module after the other; of what lies in a file nothing stays in memory
    for longer than its module."""
    modules = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]

    def let_go(_module: nn.Module, _keys: object) -> None:
        memory.give_back()

    hooks = [module.register_load_state_dict_post_hook(let_go) for module in modules]
    try:
        model.load_state_dict(weights)
    finally:
        for hook in hooks:
            hook.remove()


def of_another_kind(
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    parameters: set[str],
    skipped: set[str],
    memory: FileMemory,
) -> list[str]:
    """What cannot be the weights of this network, though its shapes are: loading would round or spread it silently."""
    integers, broken = [], []
    for name, tensor in weights.items():
        if name in skipped or name not in own or tensor.numel() == 0:
            continue
        if tensor.is_floating_point() != own[name].is_floating_point():
            integers.append(f"{name} ({str(tensor.dtype).removeprefix('torch.')})")
        elif tensor.is_floating_point():
            if bool(tensor.sum(dtype=torch.float32).isfinite()):
                memory.give_back()
                continue  # then each is; and nothing of the tensor's size was made to find out
            # Masks of attention hold infinities, which are no weights
            bad = tensor.isnan().any() if name not in parameters else ~tensor.isfinite().all()
            if bad:
                broken.append(name)
        memory.give_back()
    kinds = (("of another kind of number", integers), ("not finite (NaN or infinite)", broken))
    return [f"{len(names)} weights are {kind}: {_few(names)}" for kind, names in kinds if names]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
