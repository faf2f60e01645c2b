"""Generated scenes: eight shapes in any colour on textured ground, which overlap and hide each other, crowded as COCO.

Objects of 4 to 60 % of the image's short side, heaps of small shapes, images without objects, several image sizes, grey
files and files whose EXIF block turns them. What is annotated of them, and how, is each set's own.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from vistrain.errors import ConfigError

CATEGORIES = {17: "circle", 3: "square", 44: "triangle", 8: "star", 62: "ring", 1: "cross", 29: "heart", 90: "crescent"}
HUES = dict(zip(CATEGORIES, np.linspace(0, 1, len(CATEGORIES), endpoint=False), strict=True))
SIZES = ((128, 128), (128, 160), (160, 120), (112, 144), (144, 112), (96, 144), (152, 104))  # height, width
SMALLEST, GREATEST = 0.04, 0.60  # box side as a share of the image's short side
SUPERSAMPLE = 4  # masks are drawn this much larger and averaged
MOST_OBJECTS = 16


@dataclass(frozen=True)
class Scenes:
    """What the generated images show; the defaults make the set that is as crowded as COCO, and not easy.

    Args:
        classes: names of the shapes to draw, some of `circle`, `square`, `triangle`, `star`, `ring`, `cross`, `heart`
            and `crescent`, in any order.
        more_objects: objects beyond the first of an image, on average (Poisson; at most 16 in all; those that find no
            place are left out).
        sides: least and greatest side of an object's box, as shares of the image's short side.
        visible: the least share of an object that later ones leave in view.
        crowds: whether every 16th image has a heap of small shapes of one class, annotated as a crowd.

    Raises:
        ConfigError: a value that cannot be drawn.
    """

    classes: tuple[str, ...] = tuple(CATEGORIES.values())
    more_objects: float = 6.3
    sides: tuple[float, float] = (SMALLEST, GREATEST)
    visible: float = 0.25
    crowds: bool = True

    def __post_init__(self) -> None:
        """Check."""
        known, named = tuple(CATEGORIES.values()), set(self.classes)
        if not named or len(named) < len(self.classes) or named - set(known):
            remedy = f"name some of {', '.join(known)}, each once"
            raise ConfigError("data.scenes.classes", f"{list(self.classes)}", remedy)
        least, greatest = self.sides
        # Sides are drawn up from 1.15 times the least.
        if not 0 < 1.15 * least < greatest <= 1:
            raise ConfigError("data.scenes.sides", f"{list(self.sides)}", "two shares in 0..1, such as [0.04, 0.6]")
        for name, value, most in (("more_objects", self.more_objects, MOST_OBJECTS), ("visible", self.visible, 1)):
            if not 0 <= value <= most:
                raise ConfigError(f"data.scenes.{name}", f"{value} is not in 0..{most}")

    @property
    def categories(self) -> dict[int, str]:
        """id -> name of the classes that are drawn, in the set's own order."""
        return {i: name for i, name in CATEGORIES.items() if name in self.classes}

    @property
    def mark(self) -> str:
        """What a folder's name ends with; empty for the default."""
        changed = {name: value for name, value in vars(self).items() if value != getattr(Scenes, name)}
        if not changed:
            return ""
        text = json.dumps({**changed, "classes": list(self.categories.values())}, sort_keys=True)
        return "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def save_scene(path: Path, pixels: np.ndarray, index: int) -> None:
    """Writes an image `[H, W, 3]` as JPEG.

    Of forty files one is grey, and one is stored lying on its side with the EXIF block that raises it.
    """
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    if index % 40 == 7:
        image = image.convert("L")
    elif index % 40 == 11:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[ExifTags.Base.Orientation] = 6
    image.save(path, quality=92, exif=exif)


@dataclass
class Drawing:
    """An image with what is on it.

    Attributes:
        pixels: uint8 `[H, W, 3]`.
        masks: bool `[H, W]` of each object, what is seen of it.
        categories: of the objects, keys of `CATEGORIES`.
        crowds: `(mask, category)` of heaps of small shapes.
    """

    pixels: np.ndarray
    masks: list[np.ndarray]
    categories: list[int]
    crowds: list[tuple[np.ndarray, int]]


def draw(rng: np.random.Generator, index: int, scale: float, scenes: Scenes) -> Drawing:
    """Draws one image.

    Args:
        rng: decides everything but
        index: every 25th image has no object, every 16th a crowd; every 40th (the EXIF-turned one) is not square.
        scale: of the image size.
        scenes: what to draw.
    """
    sizes = SIZES[1:] if index % 40 == 11 else SIZES
    height, width = (round(side * scale) for side in sizes[rng.integers(len(sizes))])
    canvas = _background(rng, height, width)
    if index % 25 == 4:
        return Drawing(_finish(rng, canvas), [], [], [])
    masks: list[np.ndarray] = []
    categories: list[int] = []
    crowds = [_draw_crowd(rng, canvas, scenes)] if index % 16 == 2 and scenes.crowds else []
    for _ in range(min(1 + rng.poisson(scenes.more_objects), MOST_OBJECTS)):
        category = int(rng.choice(list(scenes.categories)))
        alpha = _place(rng, category, height, width, masks, scenes)
        if alpha is None:
            continue
        _paint(rng, canvas, alpha, category)
        masks = [mask & (alpha < 0.5) for mask in masks] + [alpha >= 0.5]
        crowds = [(mask & (alpha < 0.5), c) for mask, c in crowds]
        categories.append(category)
    return Drawing(_finish(rng, canvas), masks, categories, [(mask, c) for mask, c in crowds if mask.any()])


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float `[H, W, 3]` in 0..255: two colours mixed by noise of several grains, sometimes with stripes."""
    mix = np.zeros((height, width), np.float32)
    for grain, weight in ((3, 0.5), (6, 0.3), (20, 0.2)):
        noise = rng.random((grain, grain), np.float32)
        mix += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, math.pi), rng.uniform(6, 30)
        y, x = np.mgrid[:height, :width]
        wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
        mix += 0.25 * (wave > 0)
    first, second = rng.uniform(30, 225, 3), rng.uniform(30, 225, 3)
    return first + (second - first) * np.clip(mix, 0, 1)[..., None] * 0.6


def _place(
    rng: np.random.Generator, category: int, height: int, width: int, masks: list[np.ndarray], scenes: Scenes
) -> np.ndarray | None:
    """Coverage `[H, W]` in 0..1 of a shape somewhere that leaves enough of every earlier one in view.

    None after a few tries. A tenth of the shapes may stick out of the image.
    """
    short = min(height, width)
    smallest, greatest = scenes.sides
    for _ in range(10):
        # Log-uniform but for a slight pull to larger ones, which find a place less often.
        side = short * smallest * 1.15 * (greatest / smallest / 1.15) ** (rng.random() ** 0.7)
        margin = 0.2 * side if rng.random() < 0.1 else 0.5 * side
        centre = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        alpha = _coverage(_outlines(rng, category), centre, side, height, width)
        mask = alpha >= 0.5
        if not _in_range(mask, short, scenes):
            continue
        left = [earlier & ~mask for earlier in masks]
        if all(
            rest.sum() > scenes.visible * before.sum() and _in_range(rest, short, scenes)
            for rest, before in zip(left, masks, strict=True)
            if rest.sum() < before.sum()
        ):
            return alpha
    return None


def _in_range(mask: np.ndarray, short: int, scenes: Scenes) -> bool:
    smallest, greatest = scenes.sides
    w, h = cv2.boundingRect(mask.view(np.uint8))[2:]
    return min(w, h) >= smallest * short and max(w, h) <= greatest * short


def _outlines(rng: np.random.Generator, category: int) -> list[np.ndarray]:
    """Closed outlines `[P, 2]` of a shape, turned at random, their box centred on 0 with a longer side of 1."""
    name = CATEGORIES[category]
    turn = rng.uniform(0, 2 * math.pi)
    if name in (
        "heart",
        "crescent",
        "cross",
        "square",
    ):  # up to 25 degrees: a heart on its head is hard even for people
        turn = rng.uniform(-0.44, 0.44)
    stretch = rng.uniform(0.75, 1.0)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) * [1.0, stretch]
    outlines = [points @ matrix.T for points in _SHAPES[name]]
    low, high = outlines[0].min(0), outlines[0].max(0)
    return [(points - (low + high) / 2) / (high - low).max() for points in outlines]


def _circle(radius: float = 1.0, start: float = 0.0, stop: float = 2 * math.pi) -> np.ndarray:
    angles = np.linspace(start, stop, 48)
    return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 64)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], 1) / 17


def _star() -> np.ndarray:
    angles = np.arange(10) * math.pi / 5
    return np.where(np.arange(10) % 2, 0.42, 1.0)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)


def _crescent() -> np.ndarray:
    outer = _circle(1.0, 0.25 * math.pi, 1.75 * math.pi)
    inner = np.array([0.55, 0]) + _circle(0.72, 1.72 * math.pi, 0.28 * math.pi)
    return np.concatenate([outer, inner])


def _cross(arm: float = 0.34) -> np.ndarray:
    corner = [(arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1)]
    return np.array(corner + [(-x, -y) for x, y in corner], np.float64)


_SHAPES: dict[str, list[np.ndarray]] = {
    "circle": [_circle()],
    "square": [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)],
    "triangle": [np.array([(0, -1), (0.92, 0.8), (-0.92, 0.8)], np.float64)],
    "star": [_star()],
    "ring": [_circle(), _circle(0.58)],  # the second outline is a hole
    "cross": [_cross()],
    "heart": [_heart()],
    "crescent": [_crescent()],
}


def _coverage(
    outlines: list[np.ndarray], centre: tuple[float, float], side: float, height: int, width: int
) -> np.ndarray:
    """Share of each pixel `[H, W]` that lies inside the outlines (even-odd rule), float32 in 0..1."""
    points = [np.round((o * side + centre) * SUPERSAMPLE * 16).astype(np.int32) for o in outlines]
    large = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    cv2.fillPoly(large, points, 240, shift=4)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 240


def _paint(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray, category: int) -> None:
    """Blends a shape into the canvas: a hue near its class's (any for a quarter), shaded, unlike what lies below."""
    covered = alpha >= 0.5
    below = canvas[covered].mean(0)
    color = below
    for _ in range(20):
        hue = rng.uniform() if rng.random() < 0.25 else HUES[category] + rng.normal(0, 0.12)
        color = 255 * np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.35, 1), rng.uniform(0.3, 1)))
        if np.abs(color - below).max() > 60:
            break
    x, y, w, h = cv2.boundingRect(covered.view(np.uint8))
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
    across = ((columns - x - w / 2) * math.cos(angle) + (rows - y - h / 2) * math.sin(angle)) / max(w, h)
    shade = 1 + rng.uniform(0, 0.5) * np.clip(across, -0.5, 0.5)
    canvas += alpha[..., None] * (np.clip(color * shade[..., None], 0, 255) - canvas)


def _draw_crowd(rng: np.random.Generator, canvas: np.ndarray, scenes: Scenes) -> tuple[np.ndarray, int]:
    """Paints a heap of small shapes of one class; their union is one region."""
    height, width = canvas.shape[:2]
    short = min(height, width)
    category = int(rng.choice(list(scenes.categories)))
    region = np.zeros((height, width), bool)
    reach = 0.2 * short
    centre = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
    for _ in range(rng.integers(8, 15)):
        side = short * rng.uniform(0.06, 0.12)
        spot = centre[0] + rng.uniform(-reach, reach) * 0.8, centre[1] + rng.uniform(-reach, reach) * 0.6
        alpha = _coverage(_outlines(rng, category), spot, side, height, width)
        if (alpha >= 0.5).any():
            _paint(rng, canvas, alpha, category)
            region |= alpha >= 0.5
    return region, category


def _finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    noise = rng.normal(0, rng.uniform(1, 8), canvas.shape[:2])[..., None]
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)
