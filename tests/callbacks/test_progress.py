"""Which numbers of an evaluation a line has room for."""

from __future__ import annotations

from training_tools import make_task

from vistrain.callbacks.progress import main_numbers


def test_the_line_of_an_evaluation_has_a_number_of_each_protocol_and_what_is_waited_for() -> None:
    task = make_task()
    task.numbers = {f"val/{family}/{name}": 0.5 for family in ("coco", "coco_mask") for name in ("AP", "AP50", "AP75")}
    assert main_numbers(task) == ["val/coco/AP", "val/coco_mask/AP", "val/coco/AP50"]
    task.monitored = {"callbacks.checkpoints.monitor": "val/coco_mask/AP75", "callbacks.stop.monitor": "train/loss"}
    assert main_numbers(task) == ["val/coco_mask/AP75", "val/coco/AP", "val/coco_mask/AP"]
    task.numbers = {f"val/{family}/x": 0.5 for family in "abcd"}
    assert main_numbers(task) == [f"val/{family}/x" for family in "abcd"]  # none of them is left out
