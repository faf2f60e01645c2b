"""Folds by patient: what is dealt to which, always in the same order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vistrain.errors import ConfigError, DataError


def dealt(patients: Iterable[str], folds: int) -> dict[str, int]:
    """The fold of each patient: in a fixed random order, dealt one by one.

    Args:
        patients: by name, which alone decides the order.
        folds: how many.

    Raises:
        DataError: there are fewer patients than folds.
    """
    names = sorted(set(patients))
    if len(names) < folds:
        raise DataError("data.folds", f"{folds} folds of {len(names)} patients", f"at most {len(names)}")
    order = np.random.default_rng(12345).permutation(len(names))
    return {names[p]: place % folds for place, p in enumerate(order.tolist())}


def refuse_fold(fold: int | None, folds: int) -> None:
    """Refuse a fold to evaluate that is none.

    Raises:
        ConfigError: saying which there are.
    """
    if fold is not None and not 0 <= fold < folds:
        raise ConfigError("data.fold", f"{fold} of {folds} folds", f"0 to {folds - 1}")
