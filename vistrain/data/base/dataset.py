"""What every data set is: samples by index, and by the seed that its sampler draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch.utils.data import Dataset

from vistrain.errors import VistrainError

Key = int | tuple[int, ...]  # an index, or an index, a seed, and whatever else a sampler draws


class SampleSet(Dataset[Any], ABC):
    """Base of the data sets of all tasks: samples read on demand."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, seed: int = 0) -> Any:
        """One sample, as the data module's `collate` takes it.

        Args:
            index: which.
            seed: decides all that is random about it; a sampler may draw more numbers, which follow it.

        Raises:
            VistrainError: its file cannot be read.
        """

    def __getitem__(self, key: Key) -> Any:
        """The sample of `index` or `(index, seed, ...)`; what is wrong with its file is returned, not raised: an error
        raised in a worker reaches the user as two processes' tracebacks."""
        index, *drawn = key if isinstance(key, tuple) else (key,)
        try:
            return self.sample(index, *drawn)
        except VistrainError as error:
            return error

    def where(self, index: int) -> str:
        """The file of a sample, without opening it; its number unless the data set knows better."""
        return f"sample {index}"
