"""Text in pictures, in any script: in a font that is always there, in one of the system, else spelled."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

from vistrain.errors import ConfigError

log = logging.getLogger(__name__)

VARIABLE = "VISTRAIN_FONT"
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
# Beginnings of the names of fonts with many scripts, the ones to look into first; any other font follows.
KNOWN = (
    "notosanscjk", "sourcehansans", "notosanssc", "notosansjp", "notosanskr", "wqy", "droidsansfallback", "unifont",
    "arialuni", "arial unicode", "pingfang", "hiragino", "applesdgothic", "msyh", "yugoth", "malgun", "simsun",
    "nirmala", "notosans", "freesans", "notoserifcjk",
)  # fmt: skip
MOST_FONTS = 300  # that are looked into, for a character that none may have
SPELLED = ("LETTER", "SYLLABLE", "CHARACTER", "SIGN")  # words in the names of characters, before their sound


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans (Latin, Greek, Cyrillic and more) at `size` pixels, from matplotlib's files: needs no system font."""
    return _face(_own(), size)


def readable(text: str) -> str:
    """The text on one line, with what no font here has spelled: by its sound, by its code where it has none.

    Fonts are that of `VISTRAIN_FONT` (a file, or the name of an installed font), DejaVu Sans, and those of the system.
    The first time that something has to be spelled, a warning says so.

    Raises:
        ConfigError: `VISTRAIN_FONT` names no font.
    """
    line = " ".join(text.split())  # Pillow cannot measure line breaks
    if line.isascii() and line.isprintable():
        return line
    chosen = os.environ.get(VARIABLE, "")
    return "".join(c if _fits(c) or _font_of(c, chosen) else _spelled(c) for c in line)


def shorten(text: str, width: float, size: int) -> str:
    """The readable text, or its beginning and an ellipsis, at most `width` pixels wide; empty if nothing fits."""
    text = readable(text)
    if text_width(text, size) <= width:
        return text
    for end in range(len(text) - 1, 0, -1):
        candidate = text[:end].rstrip() + "…"
        if text_width(candidate, size) <= width:
            return candidate
    return ""


def text_width(text: str, size: int) -> float:
    """Pixels of a readable text."""
    return sum(_face(path, size).getlength(run) for path, run in _runs(text))


def write_text(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill: Any) -> None:
    """Draws a readable text, its top left corner at a place, each part in a font that has it."""
    left, base = place[0], place[1] + font(size).getmetrics()[0]
    for path, run in _runs(text):
        pen.text((left, base), run, fill=fill, font=_face(path, size), anchor="ls")
        left += _face(path, size).getlength(run)


def line_height(size: int) -> int:
    """Pixels from the top of one line to the top of the next."""
    ascent, descent = font(size).getmetrics()
    return ascent + descent


def families(texts: Iterable[str]) -> list[str]:
    """Names of the fonts that readable texts need, for matplotlib, which they are made known to."""
    from matplotlib import font_manager

    found = []
    for path in dict.fromkeys([*(path for text in texts for path, _ in _runs(text)), _own()]):
        font_manager.fontManager.addfont(path)
        found.append(font_manager.FontProperties(fname=path).get_name())
    return found


def _runs(text: str) -> Iterator[tuple[str, str]]:
    """The longest parts of a text that one font has, with its file."""
    chosen = os.environ.get(VARIABLE, "")
    if not chosen and text.isascii():
        yield from [(_own(), text)] * bool(text)
        return
    files: list[str] = []
    for character in text:  # marks that join others are drawn in the font of what they join
        files.append(files[-1] if files and _fits(character) else _font_of(character, chosen) or _own())
    for path, group in itertools.groupby(zip(files, text, strict=True), key=lambda pair: pair[0]):
        yield path, "".join(character for _, character in group)


def _fits(character: str) -> bool:
    """Whether a character is drawn with its neighbours, or not at all: joiners, accents that combine, blanks."""
    return unicodedata.category(character) in ("Mn", "Me", "Cf", "Zs")


@functools.cache
def _own() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.cache
def _face(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=8192)
def _font_of(character: str, chosen: str) -> str | None:
    """The first font that has a character; None if none has."""
    places = itertools.chain([_named(chosen)] if chosen else [], [_own()], _installed()[:MOST_FONTS])
    return next((path for path in places if ord(character) in _characters(path)), None)


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Codes of the characters that a font has; none for a file that is no font."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 10)  # what draws it must take it, too
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.cache
def _named(chosen: str) -> str:
    """The file of `VISTRAIN_FONT`."""
    given = Path(chosen).expanduser()
    folded = chosen.lower().replace(" ", "")
    fitting = [p for p in _installed() if Path(p).stem.lower().replace(" ", "").startswith(folded)]
    path = str(given) if given.is_file() else min(fitting, key=len, default="")
    if not path or not _characters(path):
        problem = f"{chosen!r} is neither a font's file nor the name of an installed one"
        raise ConfigError(VARIABLE, problem, "give the path of a .ttf, .ttc or .otf file")
    return path


@functools.cache
def _installed() -> list[str]:
    """Files of the system's fonts, those that have many scripts first."""
    home, places = Path.home(), []
    if sys.platform == "win32":
        places = [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
        places.append(Path(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts"))
    elif sys.platform == "darwin":
        places = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    else:
        data = Path(os.environ.get("XDG_DATA_HOME", home / ".local" / "share"))
        places = [data / "fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]
    found = [
        os.path.join(parent, name)
        for place in places
        for parent, _, names in os.walk(place)
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    return sorted(found, key=_rank)


def _rank(path: str) -> tuple[int, bool, str]:
    name = os.path.basename(path).lower()
    known = next((i for i, beginning in enumerate(KNOWN) if name.startswith(beginning)), len(KNOWN))
    return known, "regular" not in name, name


@functools.lru_cache(maxsize=8192)
def _spelled(character: str) -> str:
    """A character in letters that DejaVu Sans has."""
    _warn()
    if "\ud800" <= character <= "\udfff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(character) & 0xFF:02x}"
    plain = [c for c in unicodedata.normalize("NFKD", character) if ord(c) in _characters(_own()) and not _fits(c)]
    if plain:
        return "".join(plain)
    words = unicodedata.name(character, "").split()
    sound = next((words[i + 1 :] for i, word in enumerate(words) if word in SPELLED), [])
    return (sound[0] if "CHARACTER" in words else sound[-1]).lower() if sound else f"U+{ord(character):04X}"


@functools.cache  # once
def _warn() -> None:
    log.warning(
        "some names hold characters that no font here has, and are spelled in pictures: install a font that has them "
        "(Noto Sans CJK, for example), or name one: %s=FILE", VARIABLE,
    )  # fmt: skip
