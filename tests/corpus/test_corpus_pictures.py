"""Corpus of picture files: each is read as documented, or refused in one line that names it; never anything else."""

from __future__ import annotations

import io
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from corpus.corpus_files import (
    encoded,
    jpeg_of,
    patched,
    picture,
    png_chunk,
    png_of,
    tiff_of,
    turned,
    zeros,
)
from PIL import Image

from vistrain.data.base.images import has_several, image_orientation, image_size, read_alpha, read_image
from vistrain.data.base.images import turned as turn
from vistrain.data.classification.sources import ImageFile
from vistrain.data.restoration.pixels import read_pixels
from vistrain.errors import DataError

JPEG, PNG, BMP, GIF = (encoded(kind) for kind in ("JPEG", "PNG", "BMP", "GIF"))
TIFF, WEBP, PPM = encoded("TIFF"), encoded("WEBP", lossless=True), encoded("PPM")
LZW, DEFLATE = encoded("TIFF", compression="tiff_lzw"), encoded("TIFF", compression="tiff_adobe_deflate")


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


REFUSED = {
    "empty.jpg": b"",
    "one_byte.jpg": b"\xff",
    "magic.jpg": b"\xff\xd8\xff",
    "marker.jpg": b"\xff\xd8\xff\xe0",
    "no_frame.jpg": JPEG[:2] + JPEG[JPEG.find(b"\xff\xda") :],
    "fill.jpg": b"\xff\xd8" + b"\xff" * 5000,
    "segments.jpg": b"\xff\xd8" + b"\xff\xe1\x00\x02" * 5000,
    "frame_alone.jpg": JPEG[: JPEG.find(b"\xff\xc0") + 12],
    "half.jpg": JPEG[: len(JPEG) // 2],
    "no_tables.jpg": replaced(JPEG, b"\xff\xdb", b"\xff\xec"),
    "zero_height.jpg": jpeg_of(24, 0),
    "zero_width.jpg": jpeg_of(0, 16),
    "giant.jpg": jpeg_of(65500, 65500),
    "giant_progressive.jpg": jpeg_of(65500, 65500, progressive=True),
    "wide.jpg": jpeg_of(65500, 4000),
    "two_components.jpg": patched(JPEG, JPEG.find(b"\xff\xc0") + 9, b"\x02"),
    "components.jpg": patched(JPEG, JPEG.find(b"\xff\xc0") + 9, b"\xff"),
    "lossless.jpg": replaced(JPEG, b"\xff\xc0", b"\xff\xc3"),
    "twelve_bits.jpg": patched(JPEG, JPEG.find(b"\xff\xc0") + 4, b"\x0c"),
    "scans.jpg": jpeg_of(16000, 12000, progressive=True) + b"\xff\xda" * 40,
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
    "postscript_binary.jpg": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIII", 32, 60, 0, 0) + bytes(12) + b"%!PS-Adobe-3.0\n",
    "pdf.png": b"%PDF-1.7\n1 0 obj\n",
    "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "text.jpg": b"no picture at all\n",
    "json.jpg": b'{"message": "Not Found"}',
    "lfs.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "zeros.jpg": bytes(4096),
    "zip.jpg": b"PK\x03\x04" + bytes(60),
    "gzip.png": b"\x1f\x8b\x08" + bytes(60),
    "icon.png": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(60),
    "wmf.png": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "psd.png": b"8BPS\0\1" + bytes(60),
    "fits.png": b"SIMPLE  =                    T" + bytes(60),
    "xpm.png": b"/* XPM */\nstatic char *a[] = {",
    "pcx.png": b"\x0a\x05\x01\x08" + bytes(124),
    "fli.png": bytes(4) + b"\x11\xaf" + bytes(122),
    "dds.png": b"DDS \x7c\0\0\0" + bytes(120),
    "heic.jpg": b"\0\0\0\x18ftypheic" + bytes(60),
    "avif.jpg": b"\0\0\0\x18ftypavif" + bytes(60),
    "jp2.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    "mpeg.jpg": b"\0\0\1\xb3" + bytes(60),
    "cut_early.png": PNG[:20],
    "cut.png": PNG[: len(PNG) * 2 // 3],
    "no_end_of_data.png": png_of(24, 16, b""),
    "short_data.png": png_of(24, 16, zeros(100)),
    "not_deflated.png": png_of(24, 16, b"garbage" * 20),
    "check_sum.png": patched(PNG, 29, b"\0\0\0\0"),
    "zero.png": png_of(0, 16, zeros(100)),
    "giant.png": png_of(65500, 65500, zeros(1000)),
    "negative.png": png_of(0xFFFFFFFF, 1, zeros(100)),
    "bits.png": png_of(24, 16, zeros(2000), bits=7),
    "colour.png": png_of(24, 16, zeros(2000), colour=9),
    "no_palette.png": png_of(24, 16, b"", colour=3),
    "text_bomb.png": png_of(24, 16, zeros(2000), chunks=png_chunk(b"zTXt", b"a\0\0" + zeros(70 * 2**20))),
    "giant.gif": patched(GIF, 6, struct.pack("<HH", 65500, 65500)),
    "cut.gif": GIF[:20],
    "giant.bmp": patched(BMP, 18, struct.pack("<ii", 65500, 65500)),
    "cut.bmp": BMP[:60],
    "bits.bmp": patched(BMP, 28, b"\x07\0"),
    "minimum.bmp": patched(BMP, 18, struct.pack("<i", -(2**31))),
    "offset.bmp": patched(BMP, 10, b"\xff\xff\xff\x7f"),
    "giant.ppm": b"P6 65500 65500 255\n",
    "short.ppm": b"P6 24 16 255\n" + bytes(10),
    "words.ppm": b"P6 many more 255\n",
    "plain_words.ppm": b"P3 4 4 255\n" + b"x " * 48,
    "above_maximum.ppm": b"P3 2 2 3\n" + b"9 " * 12,
    "maximum.ppm": b"P6 4 4 0\n" + bytes(48),
    "floats.ppm": b"Pf\n4 4\n-1.0\n" + bytes(64),
    "long_number.ppm": b"P6 " + b"9" * 5000,
    "cut.tif": TIFF[:30],
    "no_directory.tif": patched(TIFF, 4, b"\xff\xff\xff\x7f"),
    "empty_directory.tif": b"II*\0\x08\0\0\0" + bytes(6),
    "giant.tif": tiff_of(65500, 65500, bytes(10)),
    "floats.tif": tiff_of(24, 16, bytes(24 * 16 * 4), bits=32, kind=3),
    "compression.tif": tiff_of(24, 16, bytes(400), compression=9999),
    "bits.tif": tiff_of(24, 16, bytes(400), bits=13),
    "lzw_garbage.tif": tiff_of(24, 16, b"\xff\x13" * 20, compression=5),
    "deflate_garbage.tif": tiff_of(24, 16, b"\xff\x13" * 20, compression=8),
    "tile.tif": tiff_of(100, 100, zeros(1000), compression=8, more=((322, 65536), (323, 32000), (324, 8), (325, 20))),
    "tile_zero.tif": tiff_of(100, 100, zeros(1000), compression=8, more=((322, 0), (323, 0), (324, 8), (325, 20))),
    "cut_lzw.tif": LZW[: len(LZW) // 2],
    "riff.webp": b"RIFF\x10\0\0\0WEBP",
    "cut.webp": WEBP[:30],
    "kind.webp": replaced(WEBP, b"VP8L", b"VP8Q"),
    "giant.webp": WEBP[:12] + b"VP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\xff\xff" * 2 + WEBP[12:],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(REFUSED[name])
    for read in (read_image, read_pixels, lambda p: ImageFile(p).decode(8.0)):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


READ = {
    "plain.jpg": (JPEG, "JPEG"),
    "grey.jpg": (encoded("JPEG", "L"), "JPEG"),
    "cmyk.jpg": (encoded("JPEG", "CMYK"), "JPEG"),
    "progressive.jpg": (encoded("JPEG", progressive=True), "JPEG"),
    "renamed.png": (JPEG, "JPEG"),
    "renamed.jpg": (PNG, "PNG"),
    "behind_the_end.jpg": (JPEG + b"rest" * 100, "JPEG"),
    "fill_bytes.jpg": (JPEG[:2] + b"\xff\xff\xff" + JPEG[2:], "JPEG"),
    "exif_garbage.jpg": (encoded("JPEG", exif=b"Exif\0\0no TIFF at all"), "JPEG"),
    "exif_endless.jpg": (encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), "JPEG"),
    "exif_outside.jpg": (encoded("JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), "JPEG"),
    "plain.png": (PNG, "PNG"),
    "grey.png": (encoded("PNG", "L"), "PNG"),
    "palette.png": (encoded("PNG", "P"), "PNG"),
    "bits.png": (encoded("PNG", "1"), "PNG"),
    "alpha.png": (encoded("PNG", "RGBA"), "PNG"),
    "grey_alpha.png": (encoded("PNG", "LA"), "PNG"),
    "plain.gif": (GIF, "GIF"),
    "plain.bmp": (BMP, "BMP"),
    "plain.webp": (WEBP, "WEBP"),
    "plain.ppm": (PPM, "PPM"),
    "plain.tif": (TIFF, "TIFF"),
    "lzw.tif": (LZW, "TIFF"),
    "deflate.tif": (DEFLATE, "TIFF"),
    "no_suffix": (PNG, "PNG"),
    "spaces and ümläute.png": (PNG, "PNG"),
    "new\nline.png": (PNG, "PNG"),
    os.fsdecode(b"\xff\xfe.png"): (PNG, "PNG"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_pillow_does(tmp_path: Path, name: str) -> None:
    data, kind = READ[name]
    path = tmp_path / name
    path.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data), formats=(kind,)).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(np.broadcast_to(read_pixels(path), expected.shape), expected)
    assert ImageFile(path).size == expected.shape[:2] == image_size(path)
    assert not has_several(path)


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 255])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_reader_turns_alike(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / "turned"
    data = turned(orientation, kind)
    path.write_bytes(data)
    valid = orientation if 1 <= orientation <= 8 else 1
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    upright = turn(stored, valid)
    assert image_orientation(path) == valid
    np.testing.assert_array_equal(read_image(path), upright)
    np.testing.assert_array_equal(read_pixels(path), upright)
    np.testing.assert_array_equal(ImageFile(path).decode(), upright)
    assert image_size(path) == ImageFile(path).size == upright.shape[:2]


def test_xmp_turns_where_exif_is_silent(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", xmp=xmp))
    assert image_orientation(tmp_path / "a.jpg") == 6
    assert read_image(tmp_path / "a.jpg").shape == (24, 16, 3)


def test_tiff_is_turned_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(turned(6, "TIFF"))
    assert read_image(path).shape == read_image(path, apply_exif=False).shape == (24, 16, 3)
    assert image_size(path) == (24, 16)


def test_a_jpeg_decoded_smaller_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(400, 200).save(tmp_path / "a.jpg", exif=exif)
    file = ImageFile(tmp_path / "a.jpg")
    assert file.size == (400, 200)
    assert file.decode(4.0).shape == (100, 50, 3)


def test_opacity_is_read_by_the_same_reader(tmp_path: Path) -> None:
    faint = picture().convert("RGBA")
    faint.putalpha(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    faint.save(tmp_path / "a.png", exif=exif)
    alpha = read_alpha(tmp_path / "a.png")
    assert alpha is not None
    assert alpha.shape == (24, 16, 1)
    assert (alpha == 7).all()
    (tmp_path / "plain.jpg").write_bytes(JPEG)
    assert read_alpha(tmp_path / "plain.jpg") is None
    (tmp_path / "script.png").write_bytes(REFUSED["postscript.jpg"])
    with pytest.raises(DataError, match="not an image"):
        read_alpha(tmp_path / "script.png")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_pages_are_noticed(tmp_path: Path, kind: str) -> None:
    pages = [picture(), picture().transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    pages[0].save(
        tmp_path / "pages", kind, save_all=True, append_images=pages[1:], **{"lossless": True} if kind == "WEBP" else {}
    )
    assert has_several(tmp_path / "pages")
    assert read_image(tmp_path / "pages").shape == (16, 24, 3)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "zero", "random", "broken link", "loop", "nothing"])
def test_only_plain_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "a.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        server.bind("a.jpg")
        server.close()
    elif kind in ("zero", "random"):
        path.symlink_to(f"/dev/{'zero' if kind == 'zero' else 'urandom'}")
    elif kind != "nothing":
        path.symlink_to(path if kind == "loop" else tmp_path / "gone.jpg")
    for read in (read_image, read_pixels, ImageFile, image_size):
        with pytest.raises(DataError, match=r"a\.jpg: (cannot be read: |no such image file)"):
            read(path)


def test_a_file_of_holes_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "holes.jpg", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(DataError, match=r"holes\.jpg: cannot be read: it has 8\.0 GiB"):
        read_image(tmp_path / "holes.jpg")
