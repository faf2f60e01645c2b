"""Order and coverage: exact to resume, the same at any number of processes."""

from itertools import chain

import pytest

from vistrain.data.base.samplers import BlockSampler, ResumableSampler, sample_seed
from vistrain.errors import ConfigError, DataError


def epoch(sampler: ResumableSampler, number: int) -> list[tuple[int, int]]:
    sampler.set_epoch(number)
    return list(sampler)


def test_an_epoch_is_one_permutation_of_whole_batches() -> None:
    sampler = ResumableSampler(43, 8, seed=3)
    first = epoch(sampler, 0)
    assert len(first) == len(sampler) == 40
    assert len({index for index, _ in first}) == 40
    assert all(0 <= index < 43 for index, _ in first)
    assert epoch(sampler, 0) == first
    assert epoch(sampler, 1) != first
    assert epoch(ResumableSampler(43, 8, seed=4), 0) != first
    left_out = [set(range(43)) - {i for i, _ in epoch(sampler, e)} for e in range(8)]
    assert len(set(map(frozenset, left_out))) > 1  # not always the same three


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_order_of_one_process(world: int) -> None:
    whole = epoch(ResumableSampler(43, 8, seed=3), 2)
    parts = [epoch(ResumableSampler(43, 8, seed=3, rank=r, world=world), 2) for r in range(world)]
    assert list(chain.from_iterable(zip(*parts, strict=True))) == whole


@pytest.mark.parametrize("world", [1, 2])
def test_resuming_continues_the_epoch_and_only_that(world: int) -> None:
    for rank in range(world):
        plain = ResumableSampler(43, 8, seed=3, rank=rank, world=world)
        resumed = ResumableSampler(43, 8, seed=3, rank=rank, world=world, resume=(1, 16))
        assert epoch(resumed, 1) == epoch(plain, 1)[16 // world :]
        assert epoch(resumed, 1) == epoch(plain, 1)[16 // world :]  # iterated twice, as Lightning may
        assert epoch(resumed, 2) == epoch(plain, 2)
        assert len(resumed) == len(plain)


def test_sample_seeds_depend_on_seed_epoch_and_sample_alone() -> None:
    seeds = {sample_seed(s, e, i) for s in range(3) for e in range(3) for i in range(100)}
    assert len(seeds) == 900
    assert all(0 <= s < 2**63 for s in seeds)
    by_index = dict(epoch(ResumableSampler(43, 8, seed=3, rank=1, world=2), 5))
    assert all(seed == sample_seed(3, 5, index) for index, seed in by_index.items())


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be dealt evenly to 3 processes"):
        ResumableSampler(43, 8, world=3)
    with pytest.raises(DataError, match="5 images to train on are fewer than the global batch of 8"):
        ResumableSampler(5, 8)
    with pytest.raises(DataError, match="no image to evaluate on"):
        BlockSampler(0, 4, world=2)


@pytest.mark.parametrize(("length", "block"), [(63, 1), (63, 8), (64, 8), (65, 4), (3, 8)])
def test_evaluation_blocks_are_the_same_at_any_world_size(length: int, block: int) -> None:
    alone = list(BlockSampler(length, block))
    assert list(chain.from_iterable(alone)) == list(range(length))
    for world in (1, 2, 3):
        dealt = [list(BlockSampler(length, block, rank, world)) for rank in range(world)]
        assert all(dealt)  # a process without data would leave the others waiting
        busy = dealt[: len(alone)]
        assert sorted(chain.from_iterable(busy)) == alone
        assert all(block in alone for blocks in dealt for block in blocks)
        assert [len(BlockSampler(length, block, r, world)) for r in range(world)] == [len(d) for d in dealt]
