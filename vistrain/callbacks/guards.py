"""What ends a run that is no longer sound: a loss that is no number, training images that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from vistrain.callbacks.nonfinite import where_it_arose
from vistrain.checkpoints import save_durably
from vistrain.errors import ConfigError, DataError, VistrainError, WeightsError
from vistrain.internals.lightning import in_precision
from vistrain.tasks.base.task import Task, as_task

log = logging.getLogger(__name__)

LISTING = "unreadable.txt"


class NaNGuard(Callback):
    """Stops at the first loss that is NaN or infinite, before the weights are updated with it.

    The answer is asked for after the forward pass and read after the backward pass has been queued, so an accelerator
    always has work while the processor waits. The state (weights from before the update, the batch, the losses) is
    saved as `nan_step_00001234_rank0.pt` in the run folder, and the batch goes through the network once more to say in
    which layer the first number was none.

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
            VistrainError: the loss is NaN or infinite; it names the images, the layer and the saved state.
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
        losses = {name: value.item() for name, value in as_task(pl_module).losses.items()}
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
        problem = f"{', '.join(bad)} is not finite for the images {list(ids)}"
        layer, remedy = self._layer(trainer, as_task(pl_module))
        problem += f"; {layer}" if layer else ""
        raise VistrainError(f"training step {step}", problem, f"{saved}{remedy}")

    def _layer(self, trainer: Trainer, task: Task) -> tuple[str, str]:
        """Where it arose, as a sentence, and in half precision what may help; empty where this cannot be found out."""
        if trainer.world_size > 1 and (task.sync_batchnorm or not isinstance(trainer.strategy, DDPStrategy)):
            return "", ""  # a pass of one process alone would wait for the others

        def losses() -> dict[str, Tensor]:
            return task.model.losses(self._batch)

        def half() -> dict[str, Tensor]:
            with in_precision(trainer):
                return losses()

        layer = where_it_arose(task.model, half)
        if not layer or not str(trainer.precision).endswith("16-mixed"):
            return layer, ""
        exact = where_it_arose(task.model, losses)
        remedy = "; in 32 bits it is finite: set trainer.precision=32-true, or lower optimizer.lr"
        if exact:
            remedy = "; in 32 bits it is not finite either: lower optimizer.lr, or look at the images"
        return f"in {trainer.precision}, {layer}", remedy

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the last batch."""
        self._batch = {}


class Unreadable(Callback):
    """Lets training go on over a few images that cannot be read, and says which.

    Another image takes an unreadable one's place (see `data.faults.Watched`). At the end of each epoch the new ones are
    added to `unreadable.txt` in the run folder, and their number over all processes is logged. More than `limit` end
    the run at once where they turn up in one process, at the end of the epoch where only all processes' are too many.
    In evaluation an unreadable image is always an error.

    Args:
        limit: images, each counted once since the process started; 0 tolerates none.
        folder: where to write; the trainer's `default_root_dir` if None.

    Raises:
        ConfigError: the limit is negative.
    """

    def __init__(self, limit: int = 10, folder: str | None = None) -> None:
        super().__init__()
        if limit < 0:
            raise ConfigError("callbacks.unreadable.limit", f"{limit} is negative")
        self.limit, self.folder = limit, Path(folder) if folder else None
        self._reported = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the data module, before it makes its loaders."""
        as_task(pl_module).datamodule.max_unreadable = self.limit

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report.

        Raises:
            DataError: all processes together have met more than `limit`.
        """
        watched = as_task(pl_module).datamodule.watched.get("train")
        if watched is None:
            return
        news = watched.news()
        if news:
            self._write(self.folder or Path(trainer.default_root_dir), news)
        total = len(watched.unreadable)
        if trainer.world_size > 1:
            # An image may meet another process in each epoch, so this counts a few of them twice: on the safe side.
            total = int(trainer.strategy.reduce(torch.tensor(total, device=pl_module.device), reduce_op="sum"))
        if total > self._reported:
            example = f", such as {news[0]}" if news else ""
            log.warning("%d training images could not be read, others took their place%s", total, example)
            self._reported = total
        if total > self.limit:
            raise DataError(
                LISTING,
                f"{total} training images cannot be read, {self.limit} are tolerated",
                "mend or remove them, or raise callbacks.unreadable.limit",
            )

    def _write(self, folder: Path, news: list[DataError]) -> None:
        """Add lines, each file once; every process writes its own."""
        path = folder / LISTING
        try:
            known = path.read_text().splitlines() if path.exists() else []
            lines = [line for line in dict.fromkeys(map(str, news)) if line not in known]
            with path.open("a") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            log.warning("%s could not be written: %s", path, error)
