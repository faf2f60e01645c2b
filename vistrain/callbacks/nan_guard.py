"""Stops a run whose loss is no longer a number, and keeps what is needed to find out why."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vistrain.checkpoints import save_durably
from vistrain.errors import VistrainError, WeightsError

log = logging.getLogger(__name__)


class NaNGuard(Callback):
    """Stops at the first loss that is NaN or infinite, before the weights are updated with it.

    The answer is asked for after the forward pass and read after the backward pass has been queued, so an accelerator
    always has work while the processor waits. The state (weights from before the update, the batch, the losses) is
    saved as `nan_step_00001234_rank0.pt` in the run folder.

    Args:
        folder: where; the trainer's `default_root_dir` if None.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder: Path | None = Path(folder) if folder else None
        self._batch: dict[str, Any] = {}
        self._finite: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Ask."""
        finite = loss.detach().isfinite()
        if finite.is_cuda:
            # A blocking copy would wait here; this one is waited for once the backward pass is queued.
            self._finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._finite = finite

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the answer.

        Raises:
            VistrainError: the loss is NaN or infinite; it names the images and the saved state.
        """
        if self._finite is None:
            return
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        if not self._finite.item():
            self._stop(trainer, pl_module)
        self._finite = None

    def _stop(self, trainer: Trainer, pl_module: LightningModule) -> None:
        losses = {name: value.item() for name, value in getattr(pl_module, "losses", {}).items()}
        bad = [name for name, value in losses.items() if not torch.tensor(value).isfinite()] or ["loss"]
        step, ids = trainer.global_step, self._batch.get("id", [])
        folder = self.folder or Path(trainer.default_root_dir)
        path = folder / f"nan_step_{step:08d}_rank{trainer.global_rank}.pt"
        state = {
            "step": step,
            "epoch": trainer.current_epoch,
            "losses": losses,
            "batch": self._batch,
            "state_dict": pl_module.state_dict(),
        }
        try:
            save_durably(state, path)
            saved = f"weights and batch are in {path}"
        except WeightsError as error:
            saved = f"the state could not be saved: {error}"
        raise VistrainError(
            f"training step {step}", f"{', '.join(bad)} is not finite for the images {list(ids)}", saved
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the last batch."""
        self._batch = {}
