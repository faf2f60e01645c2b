"""Training images that cannot be read: counted over all processes, reported, and never more than a few."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from vistrain.errors import ConfigError, DataError

log = logging.getLogger(__name__)

LISTING = "unreadable.txt"


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
        data = getattr(trainer, "datamodule", None)
        if data is not None:
            data.max_unreadable = self.limit

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report.

        Raises:
            DataError: all processes together have met more than `limit`.
        """
        watched = getattr(getattr(trainer, "datamodule", None), "watched", {}).get("train")
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
