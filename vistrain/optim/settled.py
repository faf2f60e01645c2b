"""An optimizer that goes on from a checkpoint: its memory is the file's, its numbers are those that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Group = Mapping[str, Any]


def names_of(model: nn.Module, groups: Sequence[Group]) -> list[list[str]]:
    """The names of the parameters of each group, in the group's order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def rearranged(saved: Mapping[str, Any], was: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The state of an optimizer for other groups of the same parameters.

    torch gives each parameter the state that has its number, in the order of the groups; a group more or less would
    give it another one's.

    Args:
        saved: `Optimizer.state_dict()`.
        was: names of the parameters of each group then.
        now: the same names in the groups of now.

    Returns:
        A state dict whose groups are those of now, with numbers (`lr` and so on) of the first group then; see `settle`.
    """
    numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
    number_of = dict(zip(chain.from_iterable(was), numbers, strict=True))
    order = [number_of[name] for name in chain.from_iterable(now)]
    state = {new: saved["state"][old] for new, old in enumerate(order) if old in saved["state"]}
    first = saved["param_groups"][0]
    groups: list[dict[str, Any]] = []
    for names in now:
        start = sum(len(group["params"]) for group in groups)
        groups.append({**first, "params": list(range(start, start + len(names)))})
    return {**saved, "state": state, "param_groups": groups}


def regroup(checkpoint: dict[str, Any], now: Sequence[Sequence[str]]) -> None:
    """Sort the optimizer's memory in a checkpoint by the groups of now, if they hold the same parameters as those then.

    Args:
        checkpoint: of a run; changed in place. One that does not name the parameters stays as it is.
        now: their names, by groups.
    """
    was, states = checkpoint["vistrain"].get("optimized"), checkpoint.get("optimizer_states")
    if was and states and was != now and sorted(chain.from_iterable(was)) == sorted(chain.from_iterable(now)):
        checkpoint["optimizer_states"] = [rearranged(states[0], was, now)]


def asked_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The numbers of each group as the config gives them: all but the parameters and the rate of the moment."""
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]


def settle(optimizer: Optimizer, scheduler: LambdaLR, asked: Sequence[Group]) -> None:
    """Let the numbers that are asked for act, where a checkpoint has brought its own.

    The rate becomes what the schedule makes of the base rate at this step. Where nothing was changed, all stays as it
    was, to the bit.

    Args:
        optimizer: with the state of the checkpoint.
        scheduler: likewise.
        asked: see `asked_of`, taken before the checkpoint was read; `initial_lr` is the base rate.
    """
    scheduler.base_lrs = [group["initial_lr"] for group in asked]
    factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
    for group, numbers, factor in zip(optimizer.param_groups, asked, factors, strict=True):
        group.update(numbers)
        group["lr"] = numbers["initial_lr"] * factor
