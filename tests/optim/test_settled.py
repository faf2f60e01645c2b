"""An optimizer that goes on: its memory follows its parameters, its numbers are those that are asked for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vistrain.optim.settled import asked_of, names_of, rearranged, regroup, settle


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def optimizer(model: nn.Module, *groups: tuple[str, ...], **numbers: Any) -> torch.optim.Optimizer:
    parameters = dict(model.named_parameters())
    return torch.optim.AdamW([{"params": [parameters[n] for n in names]} for names in groups], **{"lr": 0.1, **numbers})


def step(model: nn.Module, adam: torch.optim.Optimizer) -> None:
    adam.zero_grad()
    model(torch.arange(15.0).reshape(5, 3)).square().mean().backward()
    adam.step()


ONE = (("0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"),)
TWO = (("2.weight", "0.weight", "1.bias"), ("0.bias", "2.bias", "1.weight"))


def test_the_memory_of_other_groups_continues_to_the_bit() -> None:
    model = network()
    first = optimizer(model, *ONE)
    for _ in range(3):
        step(model, first)
    other = copy.deepcopy(model)
    second = optimizer(other, *TWO)
    was, now = names_of(model, first.param_groups), names_of(other, second.param_groups)
    assert (was, now) == ([list(n) for n in ONE], [list(n) for n in TWO])
    second.load_state_dict(rearranged(copy.deepcopy(first.state_dict()), was, now))
    for _ in range(2):
        step(model, first)
        step(other, second)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_is_regrouped_only_where_it_names_the_same_parameters() -> None:
    model = network()
    adam = optimizer(model, *ONE)
    step(model, adam)
    for facts in ({}, {"optimized": [list(n) for n in TWO]}, {"optimized": [["x"]]}):
        content = {"vistrain": facts, "optimizer_states": [adam.state_dict()]}
        before = content["optimizer_states"]
        regroup(content, [list(n) for n in TWO])
        assert content["optimizer_states"] is before
    content = {"vistrain": {"optimized": [list(n) for n in ONE]}, "optimizer_states": [adam.state_dict()]}
    regroup(content, [list(n) for n in TWO])
    assert [group["params"] for group in content["optimizer_states"][0]["param_groups"]] == [[0, 1, 2], [3, 4, 5]]


def test_numbers_that_are_asked_for_act_and_others_stay_to_the_bit() -> None:
    model = network()

    def made(**numbers: Any) -> tuple[torch.optim.Optimizer, LambdaLR, list[dict[str, Any]]]:
        adam = optimizer(model, *TWO, **numbers)
        schedule = LambdaLR(adam, lambda step: 0.7**step)
        return adam, schedule, asked_of(adam)

    adam, schedule, _ = made(weight_decay=0.3)
    for _ in range(4):
        step(model, adam)
        schedule.step()
    saved = copy.deepcopy((adam.state_dict(), schedule.state_dict()))
    for numbers in ({"weight_decay": 0.3}, {"weight_decay": 0.0, "lr": 5.0, "betas": (0.5, 0.6), "eps": 1e-3}):
        again, follows, asked = made(**numbers)
        again.load_state_dict(saved[0])
        follows.load_state_dict(saved[1])
        settle(again, follows, asked)
        for group in again.param_groups:
            assert {key: group[key] for key in numbers if key != "lr"} == {
                k: v for k, v in numbers.items() if k != "lr"
            }
            assert group["lr"] == numbers.get("lr", 0.1) * 0.7**4
    adam2, schedule2, asked = made(weight_decay=0.3)
    adam2.load_state_dict(saved[0])
    schedule2.load_state_dict(saved[1])
    settle(adam2, schedule2, asked)
    assert [g["lr"] for g in adam2.param_groups] == [g["lr"] for g in adam.param_groups]
