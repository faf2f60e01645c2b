"""Images of any channels: multi-band TIFFs as other programs write them, `.npy` arrays, and files that are neither."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import timm
import torch

from vistrain.backbones import Backbone
from vistrain.data import Bands, EvalBands, MaskAugment
from vistrain.data.base import tiff_bands
from vistrain.data.base.bands import BandStatistics
from vistrain.errors import ConfigError, DataError
from vistrain.layers.padding import Normalize
from vistrain.structures import Preprocessing


def image(dtype: str = "u2", size: tuple[int, int] = (21, 34), bands: int = 6) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 200, (*size, bands))
    return (values * (1.25 if dtype[0] == "f" else 1)).astype(dtype)


def differences(values: np.ndarray, predictor: int) -> bytes:
    """The bytes of a strip `[rows, columns, bands]` as TIFF's predictors have them."""
    if predictor == 1:
        return values.tobytes()
    if predictor == 2:
        bits = values.view(values.dtype.str.replace(values.dtype.kind, "u"))
        return np.diff(bits, axis=1, prepend=np.zeros_like(bits[:, :1])).astype(bits.dtype).tobytes()
    rows, columns, bands = values.shape
    planes = values.astype(">f4").reshape(rows, -1).view(np.uint8).reshape(rows, columns * bands, 4).swapaxes(1, 2)
    flat = np.ascontiguousarray(planes).reshape(rows, columns * 4, bands)
    return np.diff(flat, axis=1, prepend=np.zeros_like(flat[:, :1])).tobytes()


def tiff(
    values: np.ndarray, order: str = "<", packed: int = 1, predictor: int = 1, planar: bool = False, rows: int = 8,
    tile: int = 0, changes: dict[int, tuple[int, ...]] | None = None,
) -> bytes:  # fmt: skip
    """A classic TIFF, written from the specification (TIFF 6.0)."""
    height, width, bands = values.shape
    stored = values.astype(values.dtype.newbyteorder(order))
    planes = [stored[..., i : i + 1] for i in range(bands)] if planar else [stored]
    parts = []
    for plane in planes:
        if tile:
            extra = [(0, -side % tile) for side in (height, width)]
            plane = np.pad(plane, [*extra, (0, 0)])
            blocks = [
                plane[y : y + tile, x : x + tile]
                for y in range(0, plane.shape[0], tile)
                for x in range(0, plane.shape[1], tile)
            ]
        else:
            blocks = [plane[y : y + rows] for y in range(0, height, rows)]
        raw = [differences(np.ascontiguousarray(block), predictor) for block in blocks]
        parts += [zlib.compress(x) if packed == 8 else x for x in raw]
    places = np.cumsum([8, *map(len, parts)]).tolist()
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    where = (324, 325) if tile else (273, 279)
    tags = {256: (width,), 257: (height,), 258: (values.itemsize * 8,) * bands, 259: (packed,), 262: (1,)}
    tags |= {277: (bands,), 284: (1 + planar,), 317: (predictor,), 339: (kind,) * bands}
    tags |= {322: (tile,), 323: (tile,)} if tile else {278: (rows,)}
    tags |= {where[0]: tuple(places[:-1]), where[1]: tuple(map(len, parts)), **(changes or {})}
    start, entries, extra_bytes = places[-1], b"", b""
    beyond = start + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers))
        entries += data if len(numbers) == 1 else struct.pack(f"{order}I", beyond + len(extra_bytes))
        extra_bytes += data if len(numbers) > 1 else b""
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    count = struct.pack(f"{order}H", len(tags))
    return head + b"".join(parts) + count + entries + bytes(4) + extra_bytes


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(
    ("dtype", "packed", "predictor", "tile"),
    [("u1", 1, 1, 0), ("u2", 8, 2, 0), ("u2", 8, 2, 16), ("i2", 8, 1, 16), ("f4", 8, 3, 16), ("f4", 8, 3, 0),
     ("f4", 1, 1, 16), ("u4", 8, 1, 0)],
)  # fmt: skip
def test_tiffs_of_all_layouts_give_their_values(tmp_path, order, planar, dtype, packed, predictor, tile, monkeypatch):
    monkeypatch.setattr(tiff_bands, "AT_ONCE", 3000)  # several rows of tiles are unpacked at a time
    values = image(dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(values, order, packed, predictor, planar, tile=tile))
    for channels in ((0, 1, 2, 3, 4, 5), (5, 0, 2)):
        read = Bands(channels).read(path)
        np.testing.assert_array_equal(read, values[..., list(channels)])
        assert read.dtype == np.dtype({"u4": "f4"}.get(dtype, dtype))
    assert Bands((0,)).size(path) == (21, 34)


def test_arrays_have_their_axes_stated(tmp_path):
    values = image()
    np.save(tmp_path / "hwc.npy", values)
    np.save(tmp_path / "chw.npy", np.asfortranarray(values.transpose(2, 0, 1)))
    for order in ("hwc", "chw"):
        bands = Bands((4, 1), order=order)
        np.testing.assert_array_equal(bands.read(tmp_path / f"{order}.npy"), values[..., [4, 1]])
        assert bands.size(tmp_path / f"{order}.npy") == (21, 34)
    with pytest.raises(DataError, match=r"chw\.npy: has 34 channels.*asks for number 40.*data\.bands\.order"):
        Bands((40,)).read(tmp_path / "chw.npy")


def test_files_of_strangers_are_refused_before_they_fill_the_memory(tmp_path):
    values = image()

    def refused(name: str, content: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=match) as error:
            Bands((0, 1)).read(tmp_path / name)
        assert name in str(error.value)

    good = tiff(values, packed=8)
    refused("a.png", good, "bands are read of TIFF and .npy")
    refused("empty.tif", b"", "empty file")
    refused("few.tif", tiff(values[..., :1]), r"has 1 channels, counted from 0; .* asks for number 1")
    refused("cut.tif", good[: len(good) // 2], "damaged TIFF")
    refused("text.tif", b"not a tiff at all", "is no TIFF")
    refused("big.tif", tiff(values, changes={256: (60_000,), 257: (60_000,)}), "are read at the most")
    refused("fat.tif", tiff(values, changes={256: (14_000,), 257: (14_000,)}), "more than 2 GiB")
    refused("tile.tif", tiff(values, tile=16, changes={322: (2**20,), 323: (2**20,)}), "far larger than itself")
    refused("jpeg.tif", tiff(values, changes={259: (7,)}), "compression .*7.* is not read")
    refused("beyond.tif", tiff(values, changes={273: (8, 10**9, 9)}), "parts of it are missing")
    noise = bytearray(good)
    noise[40:60] = bytes(20)
    refused("noise.tif", bytes(noise), "damaged TIFF")
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    refused("object.npy", pickled.getvalue(), "holds object, not numbers")
    plain = io.BytesIO()
    np.save(plain, values)
    refused("cut.npy", plain.getvalue()[:-1], "truncated")
    huge = io.BytesIO()
    head = {"descr": "<u2", "fortran_order": False, "shape": (90_000, 90_000, 4)}
    np.lib.format.write_array_header_1_0(huge, head)
    refused("huge.npy", huge.getvalue(), "too many")
    refused("none.npy", b"\x93NUMPY", "damaged .npy")


def test_networks_compute_with_standardised_values():
    values = image("f4")
    values[0, 0, 1] = np.nan
    mean, std = BandStatistics.of(values[..., [1, 5]]).mean_and_std()
    np.testing.assert_allclose(mean, np.nanmean(values[..., [1, 5]], (0, 1)), rtol=1e-5)
    np.testing.assert_allclose(std, np.nanstd(values[..., [1, 5]], (0, 1)), rtol=1e-4)
    bands = Bands((1, 5), tuple(mean), tuple(std))
    for order in ("rgb", "bgr"):
        weights = Preprocessing((0.4, 0.5), (0.2, 0.3), order)
        prepared = EvalBands(bands=bands.matched(weights))(values[..., [1, 5]])
        batch, _ = Normalize(weights)(torch.from_numpy(prepared).permute(2, 0, 1)[None], torch.tensor([[21, 34]]))
        found = batch[0].flip(0) if order == "bgr" else batch[0]
        wanted = (values[..., [1, 5]] - mean) / std
        wanted[0, 0, 0] = 0  # what is no number is the mean
        np.testing.assert_allclose(found.permute(1, 2, 0), wanted, atol=1e-5)
    with pytest.raises(ConfigError, match="2 channels, and a network that takes 3"):
        bands.matched(Preprocessing())
    with pytest.raises(ConfigError, match=r"data\.bands\.mean: .*vistrain check"):
        Bands((1, 5)).matched(weights)


def test_pictures_show_the_channels_asked_for():
    values = np.zeros((2, 2, 4), np.uint16)
    values[..., 3] = 3000
    bands = Bands((7, 5, 2, 0), (100.0,) * 4, (1450.0,) * 4, shown=(0, 7, 5))
    assert bands.picture(values)[0, 0].tolist() == [255, 123, 123]
    assert Bands((3,), (0.0,), (1.0,)).picture(values[..., :1]).shape == (2, 2, 3)
    for wrong in ({"channels": ()}, {"channels": (0,), "shown": (1,)}, {"channels": (0, 1), "mean": (1.0,)},
                  {"channels": (0,), "mean": (1.0,), "std": (0.0,)}):  # fmt: skip
        with pytest.raises(ConfigError, match=r"data\.bands"):
            Bands(**wrong)


def test_augmentation_turns_all_channels_alike():
    values = image("i2", (40, 50), 12)
    label_map = values[..., 7].astype(np.int16)
    augment = MaskAugment((24, 24), scale=None, ratio=(1.0, 1.0), category_ratio=1.0, vertical_flip=0.5, color=False)
    for seed in range(4):
        cut, labels = augment(values, label_map, 255, seed)
        np.testing.assert_array_equal(cut[..., 7], labels)
    cut, _ = MaskAugment((24, 24), scale=None, ratio=(1.5, 1.5), color=False)(values, label_map, 255, 0)
    assert cut.shape == (24, 24, 12)


def test_weights_of_colour_images_are_spread_over_all_channels(tmp_path):
    body = timm.create_model("resnet10t", stem_width=8)
    torch.save(body.state_dict(), tmp_path / "rgb.pth")
    first = body.conv1[0].weight
    for channels in (1, 5):
        wide = Backbone("resnet10t", str(tmp_path / "rgb.pth"), args={"stem_width": 8}, image_channels=channels)
        found = wide.body.conv1[0].weight
        wanted = first.sum(1, keepdim=True) if channels == 1 else first[:, [0, 1, 2, 0, 1]] * 3 / 5
        torch.testing.assert_close(found, wanted)
