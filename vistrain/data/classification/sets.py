"""Small public sets, read from the files that their authors publish; nothing is downloaded."""

from __future__ import annotations

import gzip
import importlib.util
import io
import zlib
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from vistrain.checkpoints.numpy_pickle import ForbiddenName, loads
from vistrain.data.base.module import SplitName, data_root
from vistrain.data.base.storage import is_folder
from vistrain.data.classification.class_folders import ImageFolder, hold_out
from vistrain.data.classification.module import ClassificationData
from vistrain.data.classification.sources import Arrays, Split
from vistrain.errors import DataError
from vistrain.regular_files import read_regular
from vistrain.structures import LabelSpace

CIFAR_URL = "https://www.cs.toronto.edu/~kriz"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
EUROSAT_CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
    "River", "SeaLake",
)  # fmt: skip


class _InMemory(ClassificationData):
    """A set that is small enough to be held in memory; its test images are what it is validated on, as is usual."""

    names: tuple[str, ...] = tuple(str(i) for i in range(10))

    @property
    def labels(self) -> LabelSpace:
        """The classes; needs no file."""
        return LabelSpace(self.names, tuple(range(len(self.names))))

    def load(self, split: SplitName) -> Split:
        """The images of a split.

        Raises:
            DataError: a file is missing or damaged.
        """
        images, labels, path = self.arrays(split)
        if len(images) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(self.names)):
            raise DataError(
                str(path), f"{len(images)} images and {len(labels)} labels do not pair up", self.remedy(split)
            )
        return Split.single(Arrays(images, path), labels)

    @abstractmethod
    def arrays(self, split: SplitName) -> tuple[np.ndarray, np.ndarray, Path]:
        """Images uint8 `[N, H, W]` or `[N, H, W, 3]`, labels `[N]`, and the file that they come from."""


class CIFAR10(_InMemory):
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 (Krizhevsky 2009), in the python or binary version.

    Args:
        root: folder that holds `cifar-10-batches-py/` or `cifar-10-batches-bin/` (or is one of them).
        base: see `ClassificationData`.
    """

    names: tuple[str, ...] = CIFAR10_CLASSES
    archive, folders = "cifar-10-python.tar.gz", ("cifar-10-batches-py", "cifar-10-batches-bin")
    files: tuple[tuple[str, ...], tuple[str, ...]] = (tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",))
    key, label_bytes = "labels", 1

    def remedy(self, split: SplitName) -> str:
        """What to download, and where to put it."""
        return f"download {CIFAR_URL}/{self.archive} and unpack it in {self.root}/ (or set VISTRAIN_DATA or data.root)"

    def arrays(self, split: SplitName) -> tuple[np.ndarray, np.ndarray, Path]:
        """See the base.

        Raises:
            DataError: a file is missing or damaged, or a pickle asks for anything but arrays.
        """
        folder = next((p for n in self.folders for p in (self.root / n, self.root) if _has(p, self.files[1][0])), None)
        if folder is None:
            raise DataError(str(self.root / self.folders[0]), "no such folder", self.remedy(split))
        parts = [self._batch(folder, name, self.remedy(split)) for name in self.files[0 if split == "train" else 1]]
        pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        images = np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return images, labels, folder

    def _batch(self, folder: Path, name: str, remedy: str) -> tuple[np.ndarray, np.ndarray]:
        path = folder / f"{name}.bin"
        if path.is_file():
            data = np.frombuffer(_bytes(path, remedy), np.uint8)
            width = self.label_bytes + 3072
            if len(data) % width:
                raise DataError(str(path), "is cut short", remedy)
            rows = data.reshape(-1, width)
            return rows[:, self.label_bytes :], rows[:, self.label_bytes - 1].astype(np.int64)
        path = folder / name
        try:
            content = loads(_bytes(path, remedy))
            pixels = np.asarray(content["data"], np.uint8).reshape(-1, 3072)
            return pixels, np.array(content[self.key], np.int64)
        except ForbiddenName as error:
            raise DataError(str(path), f"asks to execute {error.args[0]}, which no CIFAR file does") from error
        except DataError:
            raise
        except Exception as error:  # damaged pickles raise anything
            raise DataError(str(path), f"is no CIFAR file ({error})", remedy) from error


class CIFAR100(CIFAR10):
    """CIFAR-100: as CIFAR-10, with 100 classes of 600 images; the fine labels.

    Args:
        root: folder that holds `cifar-100-python/` or `cifar-100-binary/` (or is one of them).
        base: see `ClassificationData`.
    """

    names = (
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
        "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
        "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
        "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
        "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
        "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
        "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
        "willow_tree", "wolf", "woman", "worm",
    )  # fmt: skip
    archive, folders = "cifar-100-python.tar.gz", ("cifar-100-python", "cifar-100-binary")
    files = (("train",), ("test",))
    key, label_bytes = "fine_labels", 2  # in the binary version the coarse label comes first


class MNIST(_InMemory):
    """MNIST: 60,000 training and 10,000 test digits of 28x28 (LeCun et al. 1998), in IDX files, compressed or not.

    Args:
        root: folder that holds `mnist/` with the four files (or is that folder).
        base: see `ClassificationData`.
    """

    folder, url = "mnist", "https://ossci-datasets.s3.amazonaws.com/mnist"

    def remedy(self, split: SplitName) -> str:
        """What to download, and where to put it."""
        files = "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two t10k files"
        return f"download {files} from {self.url}/ to {self.root / self.folder}/ (or set VISTRAIN_DATA or data.root)"

    def arrays(self, split: SplitName) -> tuple[np.ndarray, np.ndarray, Path]:
        """See the base.

        Raises:
            DataError: a file is missing or damaged.
        """
        stem = "train" if split == "train" else "t10k"
        places = (self.root / self.folder, self.root / self.folder / "raw", self.root)
        paths = []
        for kind in ("images-idx3", "labels-idx1"):
            spellings = [f"{stem}-{kind}-ubyte", f"{stem}-{kind}-ubyte.gz", f"{stem}-{kind.replace('-', '.')}-ubyte"]
            found = next((p / n for p in places for n in spellings if (p / n).is_file()), None)
            if found is None:
                raise DataError(str(places[0] / spellings[1]), "no such file", self.remedy(split))
            paths.append(found)
        images, labels = (_read_idx(path, self.remedy(split)) for path in paths)
        if images.ndim != 3 or labels.ndim != 1:
            raise DataError(str(paths[0]), f"holds no images with labels: axes {images.ndim} and {labels.ndim}")
        return images, labels.astype(np.int64), paths[0]


class FashionMNIST(MNIST):
    """Fashion-MNIST: clothes in MNIST's format (Xiao et al. 2017, arXiv 1708.07747).

    Args:
        root: folder that holds `fashion-mnist/` with the four files (or is that folder).
        base: see `ClassificationData`.
    """

    names = FASHION_CLASSES
    folder, url = "fashion-mnist", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


class Digits(_InMemory):
    """The 1,797 digits of 8x8 in 17 shades (Alpaydin and Kaynak 1998) that ship inside scikit-learn.

    Of each class a fifth is held out, the same images each time.

    Args:
        root: folder that holds `digits.csv.gz`; where it does not, the installed scikit-learn's file is read.
        base: see `ClassificationData`.
    """

    def remedy(self, split: SplitName) -> str:
        """Where the file comes from."""
        return f"`pip install 'vistrain[digits]'`: scikit-learn brings it; or put its digits.csv.gz into {self.root}"

    def arrays(self, split: SplitName) -> tuple[np.ndarray, np.ndarray, Path]:
        """See the base.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self.root / "digits.csv.gz"
        package = importlib.util.find_spec("sklearn")
        if not path.is_file() and package is not None and package.submodule_search_locations:
            path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
        text = _bytes(path, self.remedy(split)).decode("ascii", errors="replace")
        try:
            rows = np.array([line.split(",") for line in text.split()], dtype=float)
            pixels, labels = rows[:, :64].reshape(-1, 8, 8), rows[:, 64].astype(np.int64)
        except (ValueError, IndexError) as error:
            raise DataError(str(path), f"is not the digits' table ({error})", self.remedy(split)) from error
        chosen = hold_out(labels, 0.2, take=split != "train")
        return np.minimum(pixels[chosen] * 16, 255).astype(np.uint8), labels[chosen], path


class EuroSAT(ImageFolder):
    """EuroSAT, RGB: 27,000 Sentinel-2 images of 64x64, 10 classes (Helber et al. 2019, arXiv 1709.00029).

    The authors publish no split; a fifth of each class is held out, the same images each time (the paper's 80/20).

    Args:
        root: folder that holds `EuroSAT_RGB/`, `2750/` or `EuroSAT/2750/` with the ten class folders (or is one).
        holdout: share of each class that is held out.
        base: see `ClassificationData`.
    """

    sets_itself = ("train", "val", "test", "classes")

    def __init__(self, root: str | None = None, holdout: float = 0.2, **base: Any) -> None:
        parent = data_root(root)
        places = [parent, *(parent / n for n in ("EuroSAT_RGB", "2750", "EuroSAT/2750", "eurosat/2750", "eurosat"))]
        folder = next((p for p in places if is_folder(p / EUROSAT_CLASSES[0])), parent / "EuroSAT_RGB")
        super().__init__(root=str(folder), train=".", val=None, holdout=holdout, **base)

    @property
    def labels(self) -> LabelSpace:
        """The ten classes; needs no file."""
        return LabelSpace(EUROSAT_CLASSES, tuple(range(len(EUROSAT_CLASSES))))

    def remedy(self, split: SplitName) -> str:
        """What to download, and where to put it."""
        return f"download EuroSAT_RGB.zip from https://zenodo.org/records/7711810 and unpack it to {self.root}"


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.bin").is_file()


MOST = 2**29  # bytes of a file, packed or not; the largest has 184 million


def _bytes(path: Path, remedy: str) -> bytes:
    try:
        data = read_regular(path, MOST)
        if path.suffix != ".gz":
            return data
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(MOST + 1)
        if len(unpacked) > MOST:
            raise DataError(str(path), f"unpacks to more than {MOST / 2**30:g} GiB, which no such set does", remedy)
        return unpacked
    except FileNotFoundError as error:
        raise DataError(str(path), "no such file", remedy) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(path), f"cannot be read ({error})", remedy) from error


def _read_idx(path: Path, remedy: str) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, number of axes, their lengths as big-endian 32-bit numbers, the data."""
    data = _bytes(path, remedy)
    axes = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or not axes or len(data) < 4 + 4 * axes:
        raise DataError(str(path), f"is no IDX file of bytes (starts with {data[:4]!r})", remedy)
    shape = tuple(np.frombuffer(data, ">u4", axes, 4).tolist())
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape):
        raise DataError(str(path), f"holds {values.size} of {int(np.prod(shape))} bytes", remedy)
    return values.reshape(shape)
