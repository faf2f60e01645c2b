"""A callback for runs that a test interrupts: they wait at a step until the test has done so."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

VARIABLE = "VISTRAIN_TEST_PAUSE"  # the file that is waited for; without it, nothing is


class Pause(Callback):
    """Waits after an optimizer step; without it a run could have ended before a busy machine lets the test look.

    Args:
        step: the optimizer step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        place = os.environ.get(VARIABLE)
        while place and trainer.global_step == self.step and not Path(place).exists():
            time.sleep(0.01)
