"""Which samples a rank sees, in which order: exact to resume, exact to evaluate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from vistrain.errors import ConfigError, DataError


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of one sample's augmentation: 63 bits that depend on the run's seed, the epoch and the sample alone."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class ResumableSampler(Sampler[tuple[int, int]]):
    """Shuffled training order that can start in the middle of an epoch.

    Each epoch is one permutation that depends on (seed, epoch) alone, dealt to the ranks sample by sample; the rest
    that does not fill a global batch is left out (a different one each epoch), so every accumulation group is complete.
    Yields `(index, sample seed)`: augmentation depends on neither workers nor ranks.

    Attributes:
        resume: `(epoch, consumed)`: in this epoch the first `consumed` samples, counted over all ranks, are skipped.
            Keyed by epoch, not used up, as Lightning may start the same epoch's iterator more than once. The length
            stays that of the whole epoch, as Lightning's own progress counts the skipped batches.

    Args:
        length: number of samples.
        batch_size: global batch: samples per optimizer step over all ranks.
        seed: of the run, not negative.
        rank, world: this process and how many there are.
        resume: see above.
        repeats: repeated augmentation (Hoffer et al. 2020, arXiv 1901.09335): an epoch, as long as ever, holds so many
            versions each of so many fewer samples, side by side.
        weights: of the samples, by which an epoch is drawn with repetition, instead of a permutation.

    Raises:
        ConfigError: the global batch cannot be dealt evenly.
        DataError: there are fewer samples than one global batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        resume: tuple[int, int] = (0, 0),
        repeats: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        if batch_size % world:
            raise ConfigError("data.batch_size", f"{batch_size} samples cannot be dealt evenly to {world} processes")
        if length < batch_size:
            raise DataError(
                "data.train",
                f"{length} images to train on are fewer than the global batch of {batch_size}",
                "lower data.batch_size",
            )
        self.used = length // batch_size * batch_size
        self.length, self.seed, self.rank, self.world, self.resume = length, seed, rank, world, resume
        self.repeats, self.weights = repeats, weights
        self.epoch = resume[0]  # Lightning starts the loader's workers before it first calls `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation; Lightning calls it at the start of every epoch."""
        self.epoch = epoch

    @property
    def start(self) -> int:
        """Samples of the current epoch, over all ranks, that are skipped."""
        return self.resume[1] if self.epoch == self.resume[0] else 0

    def __len__(self) -> int:
        return self.used // self.world

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, self.epoch, 0))
        if self.weights is None:
            order = torch.randperm(self.length, generator=generator)
        else:
            shares = torch.tensor(self.weights, dtype=torch.float64)
            order = torch.multinomial(shares, self.length, replacement=True, generator=generator)
        order = order.repeat_interleave(self.repeats)[: self.used]
        places = range(self.start + self.rank, self.used, self.world)
        for place, index in zip(places, order[places.start :: self.world].tolist(), strict=True):
            version = place % self.repeats if self.weights is None else place  # an image may come up several times
            yield index, sample_seed(self.seed, self.epoch, index + version * self.length)


class BlockSampler(Sampler[list[int]]):
    """Batches for evaluation: fixed blocks of neighbouring indices, dealt whole to the ranks.

    Nothing is padded or dropped, and a sample meets the same neighbours at any number of processes, so its prediction
    cannot depend on them. Where there are fewer blocks than processes, the idle ones repeat the others' blocks: a
    process without data would skip the evaluation's end, where the others wait for it. What is repeated counts once,
    as records are merged by sample id.

    Args:
        length: number of samples.
        block: samples per batch; the last block may be smaller.
        rank, world: this process and how many there are.

    Raises:
        DataError: there is no sample.
    """

    def __init__(self, length: int, block: int, rank: int = 0, world: int = 1) -> None:
        if length < 1:
            raise DataError("data", "there is no image to evaluate on", "check the evaluation split")
        self.length, self.block = length, block
        blocks = -(-length // block)
        self.mine = range(rank, blocks, world) if rank < blocks else range(rank % blocks, rank % blocks + 1)

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.mine:
            yield list(range(number * self.block, min((number + 1) * self.block, self.length)))
