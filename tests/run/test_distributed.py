"""The same mathematics at any number of processes: gradients equal to the twelfth digit, and nobody waits in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_cases import (
    command,
    ddp_and_sharded,
    evaluate,
    long_evaluation,
    low_rank_run,
    model,
    statistics_when_evaluated,
    train_gradients,
    uneven_gradients,
)
from distributed_tools import free_port, patience, run_all, run_ranks, torchrun
from test_run import SMALL_DATA, SMALL_MODEL

from vistrain.checkpoints import load_file
from vistrain.layers.low_rank import merged_low_rank

pytestmark = pytest.mark.slow

DETECTORS = ["deformable", "two-stage", "dino", "focus"]
CASES = [*DETECTORS, "classifier", "restoration"]


def largest_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """Of all gradients of all steps, in parts of the largest gradient."""
    assert len(ours) == len(theirs) > 0
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        scale = max(float(x.abs().max()) for x in b.values())
        assert scale > 0
        worst = max(worst, *(float((a[name] - b[name]).abs().max()) / scale for name in a))
    return worst


def test_gradients_are_equal_at_any_number_of_processes_and_micro_batches(tmp_path: Path) -> None:
    """One process with the whole batch, one that accumulates, two processes, two that accumulate."""
    counts = [2] * 8  # what is per batch in the models coincides: objects of the fullest image, and image sizes
    (whole,) = run_ranks(train_gradients, 1, tmp_path, CASES, 1, None, counts)
    (accumulated,) = run_ranks(train_gradients, 1, tmp_path, CASES, 1, 1, counts)
    both = run_ranks(train_gradients, 2, tmp_path, CASES, 2, None, counts)
    both_accumulated = run_ranks(train_gradients, 2, tmp_path, CASES, 2, 1, counts)
    for case in CASES:
        assert len(whole[case]) == 2
        for name, other in (
            ("accumulated", accumulated), ("rank 0 of 2", both[0]), ("rank 1 of 2", both[1]),
            ("rank 0, accumulated", both_accumulated[0]), ("rank 1, accumulated", both_accumulated[1]),
        ):  # fmt: skip
            assert largest_difference(other[case], whole[case]) < 1e-12, (case, name)


def test_a_process_without_boxes_changes_nothing(tmp_path: Path) -> None:
    """Rank 1 gets images without objects; then nobody has any; then there is one object for two processes."""
    counts = [2, 0, 2, 0] + [0] * 4 + [0, 0, 1, 0]
    exact = ["deformable", "no denoising", "focus, no denoising"]
    (alone,) = run_ranks(train_gradients, 1, tmp_path, exact, 1, None, counts, True)
    ranks = run_ranks(train_gradients, 2, tmp_path, [*exact, "two-stage", "dino", "focus"], 2, 1, counts, True)
    for case in exact:
        assert len(alone[case]) == 3
        for found in ranks:
            assert largest_difference(found[case], alone[case]) < 1e-12, case
    for case, steps in ranks[0].items():  # denoising makes queries for the local batch; all parameters learn anyway
        assert largest_difference(steps, ranks[1][case]) == 0, case
        assert all(grad.isfinite().all() for step in steps for grad in step.values()), case


def test_a_process_with_one_image_fewer_changes_nothing() -> None:
    for case in ("deformable", "no denoising"):
        (alone,) = run_ranks(uneven_gradients, 1, case, [[0, 1, 2]])
        for found in run_ranks(uneven_gradients, 2, case, [[0, 2], [1]]):
            assert largest_difference([found], [alone]) < 1e-12, case


def test_every_number_is_the_same_at_any_number_of_processes(tmp_path: Path) -> None:
    """7 samples in blocks of 2, on 1, 2, 3 processes and on two machines; and 3 samples on 3 processes."""
    for count, worlds in ((7, (2, 3)), (3, (3,))):
        (alone,) = run_ranks(evaluate, 1, tmp_path / f"{count} alone", 1, 1, count)
        assert alone["near samples"] == alone["deformable samples"] == {"coco_box": list(range(count))}
        assert 0.1 < float(alone["near test/coco/AP"]) < 0.9
        assert float(alone["classifier test/cls/ece"]) > 0
        assert alone["analysis"]
        for world in worlds:
            found = run_ranks(evaluate, world, tmp_path / f"{count} on {world}", world, 1, count)
            assert found[0] == alone
            for other in found[1:]:
                assert all(other[name] == alone[name] for name in alone if " test/" in name)


def test_two_machines_evaluate_to_the_same_numbers(tmp_path: Path) -> None:
    (alone,) = run_ranks(evaluate, 1, tmp_path / "alone", 1, 1, 7)
    port, arguments = free_port(), ["distributed_cases", str(tmp_path), "2", "7"]
    run_all([torchrun(arguments, processes=1, nodes=2, port=port) for _ in range(2)], limit=120)
    found = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    whole = next(content for content in found if "near samples" in content)
    assert whole == json.loads(json.dumps(alone))
    for content in found:
        assert all(content[name] == alone[name] for name in alone if " test/" in name)


def test_rank_0_may_compute_for_longer_than_collectives_wait(tmp_path: Path) -> None:
    timeout = 8.0 * patience()
    found = run_ranks(long_evaluation, 2, tmp_path, timeout + 3, timeout=timeout)
    assert found == [{"val/samples": 9.0}] * 2


def test_all_processes_evaluate_with_the_statistics_that_are_saved(tmp_path: Path) -> None:
    for evaluated, saved in run_ranks(statistics_when_evaluated, 2, tmp_path):
        assert torch.equal(evaluated, saved)
        assert not torch.equal(saved, torch.zeros_like(saved))


def test_low_rank_products_train_on_two_processes_as_on_one_and_are_merged(tmp_path: Path) -> None:
    """Weights after four steps of AdamW: as with sharded training, only the order of sums differs."""
    (alone,) = run_ranks(low_rank_run, 1, tmp_path / "alone", 1)
    found = run_ranks(low_rank_run, 2, tmp_path / "both", 2)
    start = model("classifier").double()
    thin = [name for name in alone if name.endswith(("lora_A", "lora_B"))]
    assert len(thin) == 2 * 2 * 2
    assert all(alone[name].abs().max() > 1e-3 for name in thin)
    for state in found:
        assert state.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-10, msg=name)
    trained = merged_low_rank(load_file(tmp_path / "both" / "last.ckpt")["state_dict"])  # as all readers of it do
    merged = {name.removeprefix("model."): value for name, value in trained.items()}
    products = {name.replace(".parametrizations.weight.0.lora_A", ".weight") for name in thin if "lora_A" in name}
    moved = {name for name, value in start.state_dict().items() if not torch.equal(merged[name], value)}
    assert moved == products
    start.load_state_dict(merged)


def test_sharded_training_equals_replicated_training_and_continues_it(tmp_path: Path) -> None:
    """Weights after four steps of AdamW, clipped; checkpoints of each kind continue as the other kind.

    Only the order of sums differs (gradients, the norm for clipping): 1e-10 in float64 leaves AdamW's division by the
    root of a tiny second moment room to enlarge 1e-16.
    """
    found, _ = run_ranks(ddp_and_sharded, 2, tmp_path, ["dino", "classifier", "restoration"], limit=120)
    for case, runs in found.items():
        assert runs["ddp"]["sharded"] == 0
        assert runs["fsdp2"]["sharded"] > 10
        assert runs["fsdp2"]["blocks"] > 2, case
        for name, run in runs.items():
            assert run["state"].keys() == runs["ddp"]["state"].keys()
            for key, value in runs["ddp"]["state"].items():
                torch.testing.assert_close(run["state"][key], value, rtol=0, atol=1e-10, msg=f"{case}, {name}: {key}")


def test_the_command_line_trains_sharded_and_the_file_is_any_other(tmp_path: Path) -> None:
    """Two processes, sharded, with all callbacks but the average; then one process continues, and another one tests."""
    folder = tmp_path / "run"
    small = [*SMALL_DATA, *SMALL_MODEL, f"run.folder={folder}", f"data.root={tmp_path / 'data'}", "callbacks.ema=null"]
    short = ["trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    fit = ["fit", "--config", "vistrain:demo/detection_long", *small, *short]
    more = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.gradient_clip_val=0.1"]
    assert run_ranks(command, 1, ["fit", *fit[1:], "trainer.fast_dev_run=true"]) == [0]  # makes the data
    assert run_ranks(command, 2, [*fit, *more, "trainer.strategy=fsdp2"]) == [0, 0]
    resumed = ["fit", "--resume", str(folder), "trainer.max_epochs=2", "trainer.devices=1", "trainer.strategy=auto"]
    assert run_ranks(command, 1, resumed) == [0]
    assert run_ranks(command, 1, ["test", "--ckpt", str(folder / "last.ckpt")]) == [0]
    assert load_file(folder / "last.ckpt")["global_step"] == 4
    refused = [*fit, *more, "trainer.strategy=fsdp2", "callbacks.ema.decay=0.9", f"run.folder={tmp_path / 'other'}"]
    assert run_ranks(command, 1, [x for x in refused if x != "callbacks.ema=null"]) == [2]
