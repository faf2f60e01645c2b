"""Image files: the pixels of Pillow, the orientation of the annotations, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from vistrain.data.base import images
from vistrain.data.base.images import read_image, read_listed_image
from vistrain.data.base.jpeg import ORIENTATION
from vistrain.errors import DataError


def picture(height: int = 37, width: int = 52, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(params=["simplejpeg", "torchvision"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torchvision":
        monkeypatch.setattr(images, "simplejpeg", None)
    elif images.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return request.param


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 2}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
def test_jpeg_has_the_pixels_of_pillow(tmp_path: Path, decoder: str, mode: str, options: dict) -> None:
    path = tmp_path / "a.jpg"
    picture().convert(mode).save(path, **options)
    expected = np.asarray(Image.open(path).convert("RGB"))
    found = read_image(path)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("CMYK", "a.jpg"),
        ("P", "a.png"),
        ("RGBA", "a.png"),
        ("LA", "a.png"),
        ("1", "a.png"),
        ("L", "a.bmp"),
        ("P", "a.gif"),
    ],
)
def test_other_modes_are_converted_as_pillow_does(tmp_path: Path, decoder: str, mode: str, name: str) -> None:
    path = tmp_path / name
    picture().convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path, name: str) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / name)
    found = read_image(tmp_path / name)
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], 3, axis=2))
    assert found.min() == 0
    assert found.max() == 255


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_truncated_jpeg_is_refused_by_name(tmp_path: Path, decoder: str, kept: float) -> None:
    path = tmp_path / "cut.jpg"
    picture(300, 400).save(path, quality=95)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"cut\.jpg: (empty|damaged|not an image)") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match="not an image"):
        read_image(tmp_path / "page.jpg")
    with pytest.raises(DataError, match="no such image file"):
        read_image(tmp_path / "absent.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_image(tmp_path / "f.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match="32-bit"):
        read_image(tmp_path / "i.tif")
    picture().save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:400])
    with pytest.raises(DataError, match="damaged"):
        read_image(tmp_path / "b.png")


def save_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture().save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, decoder: str, orientation: int) -> None:
    path = tmp_path / "a.jpg"
    save_turned(path, orientation)
    stored = np.asarray(Image.open(path))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    np.testing.assert_array_equal(read_image(path, apply_exif=False), stored)
    np.testing.assert_array_equal(read_image(path), turned)


def test_orientation_follows_the_listed_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    save_turned(path, 6)
    stored, turned = read_image(path, apply_exif=False), read_image(path)
    np.testing.assert_array_equal(read_listed_image(path, 37, 52), stored)
    np.testing.assert_array_equal(read_listed_image(path, 52, 37), turned)
    np.testing.assert_array_equal(read_listed_image(path, 52, 37, "apply"), turned)
    np.testing.assert_array_equal(read_listed_image(path, 37, 52, "ignore"), stored)
    for exif, height, width in (("auto", 30, 52), ("apply", 37, 52), ("ignore", 52, 37)):
        with pytest.raises(DataError, match="its annotations are for"):
            read_listed_image(path, height, width, exif)


def test_size_that_fits_only_when_turned_without_exif_is_refused(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="52x37 pixels, its annotations are for 37x52"):
        read_listed_image(tmp_path / "a.jpg", 52, 37)


def test_broken_exif_block_means_no_turn(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00garbage that is no TIFF header")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", apply_exif=False))
