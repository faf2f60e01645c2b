"""What crosses floors: the label space, the preprocessing and unbuilt parts. Runs without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, NewType, TypeVar

from vistrain.errors import ConfigError

T = TypeVar("T")

# Image channels of the data set; a constructor that annotates a parameter with it receives the number.
Channels = NewType("Channels", int)


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set and how a network numbers them. The data set owns it; networks receive it.

    Attributes:
        names: class names, in the order of `ids`.
        ids: the data set's own category ids, any integers.
        name: `contiguous` (channel i is the i-th class) or `coco_ids` (channel i is category id i, some channels
            unused, as in models trained with COCO's 91 raw ids).
        ignore_index: label value that carries no supervision, or None.
        things: positions in `names` of countable classes (panoptic), or None when the distinction does not apply.
        regions: named unions of classes (BraTS: WT, TC, ET) as `(name, positions)`, or None.
        palette: one RGB colour in 0..255 per class; empty means pictures choose stable colours of their own.

    Raises:
        ConfigError: names and ids differ in length, ids repeat, or the name of the space is unknown.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    name: str = "contiguous"
    ignore_index: int | None = None
    things: tuple[int, ...] | None = None
    regions: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    palette: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in ("contiguous", "coco_ids"):
            raise ConfigError("data.labels", f"unknown label space {self.name!r}", "use 'contiguous' or 'coco_ids'")
        if len(self.names) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise ConfigError(
                "data.labels", f"{len(self.names)} names and {len(set(self.ids))} distinct ids do not pair up"
            )
        if self.name == "coco_ids" and min(self.ids, default=0) < 0:
            raise ConfigError("data.labels", "negative category ids cannot number channels", "use 'contiguous'")

    @property
    def num_classes(self) -> int:
        """Number of class channels of a network (91 for COCO's raw ids, 80 for the contiguous ones)."""
        return len(self.names) if self.name == "contiguous" else max(self.ids) + 1

    @property
    def channel_of(self) -> dict[int, int]:
        """Category id -> channel."""
        return {c: (i if self.name == "contiguous" else c) for i, c in enumerate(self.ids)}

    @property
    def category_of(self) -> dict[int, int]:
        """Channel -> category id; channels that no class uses are absent."""
        return {channel: category for category, channel in self.channel_of.items()}

    @property
    def name_of(self) -> dict[int, str]:
        """Channel -> class name; channels that no class uses are absent."""
        return {self.channel_of[c]: n for c, n in zip(self.ids, self.names, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as stored in checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelSpace:
        """The inverse of `to_dict`; lists (JSON, YAML) are accepted for tuples."""
        frozen = {k: _tuples(v) for k, v in data.items()}
        return cls(**frozen)


def left_out(classes: int, without: str = "objects") -> list[str]:
    """The line under a printed table about the classes that it leaves out, of which there is nothing to print."""
    few = "class without {} is left out" if classes == 1 else "classes without {} are left out"
    return [f"{classes} {few.format(without)}"] if classes else []


def distinct_names(names: Sequence[str], ids: Sequence[int], counts: Sequence[int] | None = None) -> tuple[str, ...]:
    """Class names of which no two are the same: classes are known by their ids, and a name alone may mean several.

    Of classes of one name the one that occurs most keeps it (the first of equals); the others are `name (id 3)`.

    Args:
        names: K class names.
        ids: their category ids.
        counts: how often each occurs; equally often if None.
    """
    order = sorted(range(len(names)), key=lambda k: -(counts[k] if counts is not None else 0))
    keeps: dict[str, int] = {}
    for k in order:
        keeps.setdefault(names[k], k)
    return tuple(n if keeps[n] == k else f"{n} (id {ids[k]})" for k, n in enumerate(names))


@dataclass(frozen=True)
class Preprocessing:
    """How images must reach a network; it comes from the weights and is stored with them.

    Attributes:
        mean, std: per channel, in units where the brightest pixel is 1.
        channel_order: `rgb` or `bgr`.
        interpolation: of the evaluation resize (`bilinear`, `bicubic`).
        crop_pct: share of the resized image that a centre crop keeps.
        crop_mode: of that crop: `center`, `squash` (the whole image, its proportions given up) or `border` (the whole
            image with borders).
        size_divisor: padded height and width are multiples of this many pixels.
        input_size: `(height, width)` that the weights were trained at, for networks that care; None if any.
        test_size, test_crop_pct: the same two where the published accuracy is for another size; None if it is not.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channel_order: str = "rgb"
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    size_divisor: int = 1
    input_size: tuple[int, int] | None = None
    crop_mode: str = "center"
    test_size: tuple[int, int] | None = None
    test_crop_pct: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, as stored in checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; lists are accepted for tuples."""
        return cls(**{k: _tuples(v) for k, v in data.items()})


@dataclass(frozen=True)
class Exported:
    """What the file of an exported network gives, and how another program reads it.

    Attributes:
        outputs: of each output, in order, what it is: shape, unit and range.
        reading: lines of Python that print or write what one picture's outputs mean, with NumPy and Pillow alone; none
            where that takes more than a few. They have `found`, arrays by the outputs' names without the batch's axis;
            `facts`, what is written beside the file; `image`, the PIL picture; `pixels` `[h, w, C]`, what it was
            resized to; and `sys.argv[2]`, where a picture that they make goes.
        of_one: it takes one image at a time and, beside it, `size` and `original_size`, see `Network`: int64 `[1, 2]`.
            Its outputs, a row for each object, have no axis of a batch.
    """

    outputs: dict[str, str]
    reading: tuple[str, ...] = ()
    of_one: bool = False


class Factory(Generic[T]):
    """An unbuilt part of a config: its owner calls it with the facts that only the owner knows.

    `neck: Factory[nn.Module]` in a constructor receives one of these from the config and calls
    `neck(channels=(512, 1024, 2048), strides=(8, 16, 32))`.

    Args:
        target: the class to build.
        arguments: what the config gave; the owner's arguments are added to them.
    """

    def __init__(self, target: Callable[..., T], **arguments: Any) -> None:
        self.target, self.arguments = target, arguments

    def __call__(self, *args: Any, **facts: Any) -> T:
        return self.target(*args, **{**self.arguments, **facts})

    def __repr__(self) -> str:
        return f"Factory({getattr(self.target, '__name__', self.target)}, {self.arguments})"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
