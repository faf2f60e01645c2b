"""Lightning callbacks, and the list of them that every run gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from vistrain.callbacks.checkpoints import Checkpoints
from vistrain.callbacks.ema import EMA
from vistrain.callbacks.guards import NaNGuard, Unreadable
from vistrain.callbacks.loggers import TensorBoard, WandB, check_loggers, make_loggers, quiet
from vistrain.callbacks.preemption import Preemption
from vistrain.callbacks.progress import Progress
from vistrain.callbacks.run_folder import RunFolder

__all__ = [
    "EMA",
    "Checkpoints",
    "NaNGuard",
    "Preemption",
    "Progress",
    "RunFolder",
    "TensorBoard",
    "Unreadable",
    "WandB",
    "check_loggers",
    "default_callbacks",
    "make_loggers",
]


def default_callbacks(
    run_folder: str | Path, given: Sequence[Callback] = (), *, evaluate_only: bool = False
) -> list[Callback]:
    """The callbacks of a run, in the order that they need.

    The NaN guard before EMA, so that no average sees a broken step; progress after both, so that their time counts as
    work; then checkpoints, so that they hold what all others did; last what stops a run once it is saved.

    Args:
        run_folder: where the run leaves its files; those of ours that were given without a folder get this one.
        given: the user's. One of a class that the defaults have, or of a subclass, replaces it; the rest come before
            the checkpoints.
        evaluate_only: leave out what only training needs.

    Returns:
        Callbacks for a Trainer with `enable_progress_bar=False` and `enable_checkpointing=False`, which would add
        Lightning's own.
    """
    quiet()
    training_only: list[type[Callback]] = [] if evaluate_only else [NaNGuard, EMA, Unreadable]
    always: list[type[Callback]] = [Progress, RunFolder]
    at_the_end: list[type[Callback]] = [Preemption] if evaluate_only else [Checkpoints, Preemption]
    ours = (NaNGuard, EMA, Unreadable, Progress, RunFolder, Checkpoints, Preemption)
    rest = [c for c in given if not isinstance(c, ours)]

    def pick(kinds: Sequence[type[Callback]]) -> list[Callback]:
        chosen: list[Callback] = []
        for kind in kinds:
            mine = [c for c in given if isinstance(c, kind)]
            chosen += mine or ([] if kind is EMA else [kind()])  # averaging is part of a recipe, never a default
        return chosen

    callbacks = [*pick(training_only), *rest, *pick([*always, *at_the_end])]
    for callback in callbacks:
        if isinstance(callback, NaNGuard | RunFolder | Checkpoints | Unreadable) and callback.folder is None:
            callback.folder = Path(run_folder)
    return callbacks
