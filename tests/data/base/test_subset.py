"""Training on a part of a set: a share that the seed draws, or what a file lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_tools import TinyData, Watch, fit, make_task

from vistrain.callbacks import Checkpoints
from vistrain.data import GeneratedPatterns, ImageFolder
from vistrain.data.base.dataset import SampleSet
from vistrain.data.base.subset import Part, part_of
from vistrain.errors import ConfigError, DataError
from vistrain.writing import whole_file


class Files(SampleSet):
    """Samples that are their own names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int, seed: int = 0) -> Any:
        if self.names[index] == "/set/broken.png":
            raise DataError(self.names[index], "is broken")
        return self.names[index], seed

    def where(self, index: int) -> str:
        return self.names[index]


FILES = Files("/set/a/one.png", "/set/a/two.png", "/set/b/one.png", "/set/b/four.jpg", "/set/broken.png")


def listed(tmp_path: Path, text: str) -> Part:
    with whole_file(tmp_path / "list.txt") as file:
        file.write_text(text)
    return part_of(FILES, str(tmp_path / "list.txt"), 0, Path("/set"))


def test_a_share_is_the_seeds_and_a_larger_one_holds_it() -> None:
    images = Files(*map(str, range(100)))
    small, large, other = (part_of(images, share, seed, Path()) for share, seed in ((0.1, 3), (0.5, 3), (0.1, 4)))
    assert (len(small), len(large)) == (10, 50)
    assert set(small.chosen) < set(large.chosen)
    assert small.chosen == tuple(sorted(small.chosen))
    assert set(small.chosen) != set(other.chosen)
    assert len(part_of(images, 0.001, 0, Path())) == 1
    assert len(part_of(images, 1.0, 0, Path())) == 100


def test_a_list_names_samples_in_any_of_four_ways(tmp_path: Path) -> None:
    part = listed(tmp_path, "b/one.png\n\nfour\n/set/a/one.png\n  two.png\nfour.jpg\n")
    assert part.chosen == (0, 1, 2, 3)
    assert part[(3, 17)] == ("/set/b/four.jpg", 17)
    assert part.where(2) == "/set/b/one.png"
    assert isinstance(listed(tmp_path, "broken")[0], DataError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ten.png\neleven.png\n", r"list.txt: 2 lines are no training samples: ten.png, eleven.png"),
        ("one\n", r"list.txt: 'one' stands for 2 samples - write more of their paths"),
        ("\n", r"list.txt: lists no sample"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        listed(tmp_path, text)


def test_shares_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for share in (0.0, -0.5, 1.5):
        with pytest.raises(ConfigError, match=r"train_on: .* is no share"):
            TinyData(train_on=share)
    with pytest.raises(DataError, match=r"nowhere.txt: no such file here or in"):
        TinyData(train_on="nowhere.txt", root=str(tmp_path)).training_samples()


def test_only_the_training_split_is_cut(tmp_path: Path) -> None:
    data = GeneratedPatterns(
        root=str(tmp_path), train_images=3, val_images=2, image_size=32, train_on=0.5, batch_size=5
    )
    data.prepare_data()
    assert len(data.training_samples()) == len(data.dataset("train")) // 2 == 15
    assert len(data.val_dataloader().dataset) == 20


def test_a_part_is_dealt_exactly_and_resumes_where_it_was(tmp_path: Path) -> None:
    def data() -> TinyData:
        return TinyData(count=24, batch_size=4, train_on=0.5, seed=5)

    whole, first, rest = Watch(), Watch(stop_after=4), Watch()
    fit(tmp_path / "a", make_task(), data(), [whole], max_epochs=3)
    chosen = set(data().training_samples().chosen)
    assert len(chosen) == 12
    for epoch in range(3):
        batches = whole.ids[3 * epoch : 3 * epoch + 3]
        assert sorted(i for batch in batches for i in batch) == sorted(chosen)
    with pytest.raises(InterruptedError):
        fit(tmp_path / "b", make_task(), data(), [first, Checkpoints(every_n_steps=2)], max_epochs=3)
    fit(tmp_path / "b", make_task(), data(), [rest], max_epochs=3, resume=tmp_path / "b" / "last.ckpt")
    assert [*first.ids, *rest.ids] == whole.ids


def test_weights_of_samples_follow_the_part() -> None:
    class Weighted(TinyData):
        def training_sampler(self, length: int) -> Any:
            sampler = super().training_sampler(length)
            sampler.weights = [float(i) for i in range(self.count)]
            return sampler

    data = Weighted(count=10, batch_size=2, train_on=0.4)
    loader = data.train_dataloader()
    assert loader.sampler.weights == [float(i) for i in data.training_samples().chosen]


def test_folders_take_a_list(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                cv2.imwrite(str(tmp_path / split / name / f"{i}.png"), np.full((8, 8, 3), i, np.uint8))
    (tmp_path / "few.txt").write_text("train/cat/0.png\ntrain/dog/2.png\n")
    data = ImageFolder(root=str(tmp_path), train_on="few.txt")
    assert [data.training_samples().where(i)[-9:] for i in range(2)] == ["cat/0.png", "dog/2.png"]
