"""Files of exports: text in the encodings that editors leave behind, XML without traps, pictures by name."""

from __future__ import annotations

import codecs
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from vistrain.data.base import storage
from vistrain.data.base.images import SUFFIXES
from vistrain.errors import DataError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
DECLARED = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
SPELLINGS = 4  # that are tried of a name: as it stands, without what an upload puts before it, as addresses code it


def read_words(path: Path) -> str:
    """A text file: UTF-8, or UTF-16 with the mark that editors put at its beginning.

    Raises:
        DataError: it cannot be read, or is not such text.
    """
    return _decoded(path, _content(path), "utf-8")


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file; declared encodings are obeyed, document types (and so entities) refused.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    data = _content(path)
    declared = DECLARED.search(data[:200])
    try:
        encoding = codecs.lookup(declared[1].decode() if declared else "utf-8").name
    except LookupError as error:
        raise DataError(str(path), f"not readable XML ({error})") from error
    text = _decoded(path, data, encoding).lstrip()
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # an entity of a few bytes can grow into gigabytes
        raise DataError(str(path), "declares a document type, which no annotation needs", "delete it")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(str(path), f"not valid XML ({error})", "cut off while copying?") from error


def _content(path: Path) -> bytes:
    try:
        return storage.read_bytes(path)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from error


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), encoding)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"not a text file (byte {error.start} is not {encoding})") from error
    except (LookupError, ValueError) as error:  # a codec that makes no text, or one that refuses everything
        raise DataError(str(path), f"not readable as {encoding}, which it says it is", "save it as UTF-8") from error


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted, hidden ones not at all; see `storage.walk`."""
    for parent, folders, names in storage.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def is_picture(path: Path) -> bool:
    """Whether a file's name ends as a picture's does."""
    return path.suffix.lower() in SUFFIXES


def parts_of(name: str) -> list[str]:
    """A path that some tool wrote, of whatever system or address, as its parts, without `.` and `..`."""
    return [part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..")]


class Pictures:
    """The pictures of an export, found by what annotations call them.

    Args:
        folder: that holds them, at any depth.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(str(folder), "no such folder")
        self.folder = folder
        self.files = [Path(os.path.abspath(path)) for path in walk(folder) if is_picture(path)]
        if not self.files:
            remedy = "export them with the annotations, or say where they are: --images FOLDER"
            raise DataError(str(folder), "holds no pictures", remedy)
        self._named: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            self._named[path.name.lower()].append(path)
            self._named[path.stem.lower()].append(path)

    def find(self, name: str, near: Path | None = None) -> Path:
        """The picture of a name.

        Of several that are called alike it is the one whose folders agree with the most of the name, and that lies
        nearest to the annotation. The suffix may differ where no picture has the whole name, as it is often stale;
        so may what an upload puts before it.

        Args:
            name: a path on whatever computer, an address, a bare name with or without suffix.
            near: folder of the annotation.

        Raises:
            DataError: there is none, or there are several that fit equally well.
        """
        spelled = name
        for _ in range(SPELLINGS):
            parts = parts_of(spelled) or [""]
            base = parts[-1].lower()
            stem = Path(base).stem if Path(base).suffix in SUFFIXES else base
            found = self._named.get(base) or self._named.get(stem) or []
            simpler = UPLOADED.sub("", base) if UPLOADED.match(base) else unquote(spelled)
            if found or simpler == spelled:
                break
            spelled = simpler
        found = list(dict.fromkeys(found))
        if len(found) > 1:
            fits = {path: (_agreement(path, parts), _shared(path, near)) for path in found}
            found = [path for path in found if fits[path] == max(fits.values())]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(name, f"several pictures below {self.folder} are called so (see --images)")
        raise DataError(name, f"no such picture below {self.folder} (see --images)")


def _agreement(path: Path, parts: list[str]) -> int:
    """How many of a name's last folders are those of a path."""
    count = 0
    for mine, other in zip(reversed(path.parts[:-1]), reversed(parts[:-1]), strict=False):
        if mine.lower() != other.lower():
            break
        count += 1
    return count


def _shared(path: Path, near: Path | None) -> int:
    """How many of the first folders a path shares with an annotation's folder."""
    return 0 if near is None else len(os.path.commonpath([path.parent, os.path.abspath(near)]))
