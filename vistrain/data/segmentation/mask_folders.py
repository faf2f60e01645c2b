"""Any folders of images and masks, with the classes from a list or a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vistrain.data.base.bands import SUFFIXES as BAND_SUFFIXES
from vistrain.data.base.bands import Bands
from vistrain.data.base.images import SUFFIXES
from vistrain.data.base.module import SplitName
from vistrain.data.segmentation.label_files import RGB, ClassList, Ignore, LabelRule, read_classes
from vistrain.data.segmentation.mask_pairs import MaskSplit, Pairing, find_pairs
from vistrain.data.segmentation.module import SegmentationData
from vistrain.errors import ConfigError


class MaskFolders(SegmentationData):
    """Folders of images and of masks with the same names.

    A mask is a grey or palette image whose values say the classes (8 or 16 bits), or with `colors` one whose colours
    do.

    Args:
        train, val: where the files are.
        test: what `vistrain test` evaluates; `val` if None.
        classes: names in the order of their values; or a class file, relative to the root, see
            `label_files.read_classes`.
        first_value: of the first class, where a list or file has no values.
        values: of all classes, where they do not follow one another (`[0, 255]`).
        ignore: stored values that carry no supervision, or `others`: all that no class has.
        palette: a colour for each class: for pictures, and for masks with `colors`; that of the class file if empty.
        colors: whether masks hold colours instead of values.
        bands: images are multi-band TIFFs or `.npy` arrays, of which these channels count; None: photographs. Colours
            of bands are not distorted while training, as SSD's distortion is of red, green and blue in 8 bits.
        base: see `SegmentationData`.

    Raises:
        ConfigError: no classes, or two of one name, or (of `rule`) one colour.
    """

    def __init__(
        self,
        train: MaskSplit,
        val: MaskSplit,
        classes: tuple[str, ...] | str,
        test: MaskSplit | None = None,
        first_value: int = 0,
        values: tuple[int, ...] = (),
        ignore: Ignore = (255,),
        palette: tuple[RGB, ...] = (),
        colors: bool = False,
        bands: Bands | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if bands is not None:
            self.bands, self.channels, self.itemsize = bands, len(bands.channels), 4
            self.augment = replace(self.augment, color=False)
        if not isinstance(classes, str) and len(set(classes)) < max(len(classes), 1):
            raise ConfigError("data.classes", f"{list(classes)}", "name each class once")
        self.splits: dict[SplitName, MaskSplit] = {"train": train, "val": val, "test": test or val}
        self.classes, self.first_value, self.ignore = classes, first_value, ignore
        self.palette, self.colors, self.values = palette, colors, values
        self._found: dict[MaskSplit, Pairing] = {}
        self._rule: LabelRule | None = None

    @property
    def rule(self) -> LabelRule:
        """See `SegmentationData`."""
        if self._rule is None:
            if isinstance(self.classes, str):
                listed = read_classes(self.root / self.classes, self.first_value)
            else:
                listed = ClassList(self.classes, tuple(range(self.first_value, self.first_value + len(self.classes))))
            if self.palette:
                twice = next((c for i, c in enumerate(self.palette) if c in self.palette[:i]), None)
                if twice is not None:
                    raise ConfigError("data.palette", f"{list(twice)} stands there twice", "give each class its own")
                listed = replace(listed, palette=self.palette)
            if self.values:
                if len(set(self.values)) != len(listed.names) or len(self.values) != len(listed.names):
                    problem = f"{list(self.values)} for {len(listed.names)} classes"
                    raise ConfigError("data.values", problem, "give each class one of its own")
                listed = replace(listed, values=self.values)
            self._rule = LabelRule(listed, self.ignore, self.colors)
        return self._rule

    def pairing(self, split: SplitName) -> Pairing:
        """What a split's folders hold, read the first time.

        Raises:
            DataError: see `find_pairs`.
        """
        where = self.splits[split]
        if where not in self._found:
            suffixes = SUFFIXES if self.bands is None else BAND_SUFFIXES
            self._found[where] = find_pairs(self.root, where, suffixes)
        return self._found[where]
