"""What the head of a JPEG says, before anything is decoded: its size, its colours, and how EXIF turns it.

ITU-T T.81, annex B (markers and segments); EXIF 2.32, section 4.6.4 (the tag `Orientation`).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

MAGIC = b"\xff\xd8\xff"
ORIENTATION = 0x0112  # the EXIF tag
APP1, START_OF_SCAN, END_OF_IMAGE = 0xE1, 0xDA, 0xD9
STANDALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a segment
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame; these three are tables and an extension
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
SHORT, LONG = 3, 4  # types of EXIF values
MOST_TAGS = 512  # of a directory that are looked at


@dataclass(frozen=True)
class JpegHead:
    """What stands before the first scan.

    Attributes:
        height, width: pixels, as stored.
        components: 1 is grey, 3 colours, 4 CMYK.
        is_progressive: whether each scan refines the whole image.
        orientation: 1 to 8, see `orientation_of`.
    """

    height: int
    width: int
    components: int
    is_progressive: bool
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as one looks at it."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


def jpeg_head(data: bytes) -> JpegHead | None:
    """The head of a JPEG; None if it has none that makes sense."""
    at, frame = 2, None
    exif = xmp = b""
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in STANDALONE:  # a fill byte, or nothing follows
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = at + 4
        if marker in FRAMES and segment + 6 <= len(data):
            height, width = struct.unpack_from(">HH", data, segment + 1)
            frame = height, width, data[segment + 5], marker in PROGRESSIVE
        elif marker == APP1:
            content = data[segment : at + 2 + length]
            if content.startswith(EXIF):
                exif = exif or content
            elif content.startswith(XMP):
                xmp = xmp or content
        at += 2 + length
    return None if frame is None else JpegHead(*frame, orientation_of(exif, xmp))


def orientation_of(exif: bytes = b"", xmp: bytes = b"") -> int:
    """How an image is turned and mirrored for looking at it, 1 (not at all) to 8.

    Args:
        exif: the EXIF block, with or without its name before it; what cannot be read says nothing.
        xmp: the XMP block, which counts where EXIF is silent.
    """
    found = _tag(exif.removeprefix(EXIF))
    if found is None and (match := XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _tag(tiff: bytes) -> int | None:
    """The orientation's value in the first directory of a TIFF block; None if it is not there."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for place in range(first + 2, first + 2 + 12 * min(count, MOST_TAGS), 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, place)
            if tag == ORIENTATION and kind in (SHORT, LONG):
                value: int = struct.unpack_from(order + ("H" if kind == SHORT else "I"), tiff, place + 8)[0]
                return value
    except struct.error:  # the block ends before its directory does
        pass
    return None
