"""Colours of classes: the same in every run, and as far from one another as eyes can tell."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vistrain.structures import LabelSpace

RGB = tuple[int, int, int]

FIRST: RGB = (255, 38, 77)  # of the first class
COLOURS = 256  # that are told apart; later classes have them again
LEVELS = 17  # steps between the values of a channel that are looked at
LIGHTNESS, CHROMA = (40, 92), 40  # of colours that stand out on photographs and on white
WEIGHTS = (0.5, 1.0, 1.0)  # of lightness, which photographs and shades change, and of hue and chroma
SHADED = 0.25  # at most, of white or black in the shade of a colour

# sRGB to CIE XYZ under D65, divided by the white point (IEC 61966-2-1)
TO_XYZ = np.array([[0.433949, 0.376210, 0.189841], [0.212673, 0.715152, 0.072175], [0.017757, 0.109468, 0.872775]])


def lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB colours, where distances are about as large as they look (CIE 1976).

    Args:
        colours: `[..., 3]`, 0..255.

    Returns:
        float64 `[..., 3]`: L* 0..100, a* and b*.
    """
    values = np.asarray(colours, np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    parts = linear @ TO_XYZ.T
    edge = 6 / 29
    bent = np.where(parts > edge**3, np.cbrt(parts), parts / (3 * edge**2) + 4 / 29)
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@functools.cache
def _palette() -> tuple[RGB, ...]:
    """Each colour is the one that is farthest from all before it: the first few of any number are as different as they
    can be. Distances are whole numbers, so that every machine finds the same."""
    steps = np.arange(0, 256, LEVELS)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    found = lab(candidates)
    chroma = np.hypot(found[:, 1], found[:, 2])
    vivid = (chroma >= CHROMA) & (found[:, 0] >= LIGHTNESS[0]) & (found[:, 0] <= LIGHTNESS[1])
    candidates, places = candidates[vivid], np.rint(found[vivid] * WEIGHTS).astype(np.int64)
    chosen, latest = [FIRST], np.rint(lab(np.array(FIRST)) * WEIGHTS).astype(np.int64)
    distance = np.full(len(places), np.iinfo(np.int64).max)
    while len(chosen) < COLOURS:
        distance = np.minimum(distance, ((places - latest) ** 2).sum(1))
        farthest = int(distance.argmax())
        latest = places[farthest]
        red, green, blue = candidates[farthest].tolist()
        chosen.append((red, green, blue))
    return tuple(chosen)


def stable_colour(index: int) -> RGB:
    """The colour of the `index`-th class, 0..255; the same in every run."""
    return _palette()[index % COLOURS]


def class_colours(labels: LabelSpace) -> dict[int, RGB]:
    """Channel -> colour: the label space's palette, or stable colours by the class's position.

    By position, so that a class looks the same whether channels are contiguous or raw ids.
    """
    palette = labels.palette or tuple(stable_colour(i) for i in range(len(labels.names)))
    return {channel: palette[i] for i, channel in enumerate(labels.name_of)}


def shade(colour: RGB, number: int) -> RGB:
    """A lighter or darker neighbour of a colour, of the same hue, another for each number; of 0 the colour itself."""
    change = 2 * SHADED * ((number * 0.618 + 0.5) % 1 - 0.5)
    towards = 255 if change > 0 else 0
    red, green, blue = (round(value + (towards - value) * abs(change)) for value in colour)
    return red, green, blue
