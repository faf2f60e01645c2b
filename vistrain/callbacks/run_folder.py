"""What a run leaves behind for people: its config, its surroundings, its curves and its pictures."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from PIL import Image

from vistrain import pictures
from vistrain.errors import DataError

log = logging.getLogger(__name__)

PACKAGES = (
    "vistrain", "torch", "torchvision", "lightning", "timm", "numpy", "scipy", "opencv-python-headless", "pillow",
    "albumentations", "pycocotools", "faster-coco-eval", "omegaconf", "pydantic", "wandb",
)  # fmt: skip

# An allow-list: everything else (tokens, paths, host names) stays out of a folder that people share.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED",
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "WANDB_MODE",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
)  # fmt: skip
PREFIXES = ("NCCL_", "VISTRAIN_", "GLOO_")
SLURM = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_CPUS_PER_TASK", "SLURM_GPUS", "SLURM_GPUS_PER_NODE",
    "SLURM_RESTART_COUNT", "SLURM_JOB_PARTITION",
)  # fmt: skip
ENLARGED = 2.5  # tiny images are shown up to this many times as large
SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


Cells = list[tuple[str, np.ndarray]]  # captions and pictures of one sample


@dataclass
class _Shown:
    """An evaluated image and what was found in it, in its own pixels; boxes are `[N, 4]` xyxy."""

    title: str
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    found_boxes: np.ndarray
    found_labels: np.ndarray
    found_scores: np.ndarray


class RunFolder(Callback):
    """Fills the run folder; only rank 0 writes.

    `config.yaml` and `environment.json` at the start, `first_batch.png` (the first training batch as the network gets
    it), and after each evaluation `curves.png`, `eval/epoch_003.png` (truth left, prediction right) and the predictions
    (see the task's `write_predictions`). `metrics.csv` is the logger's (`CSVMetrics`), which a resumed run continues. A
    task may say what is shown of a sample: `draw_sample(batch, index, prediction, side) -> [(caption, picture), ...]`.
    What cannot be written is reported, and the run goes on.

    Args:
        images: how many images the pictures show, spread over the set.
        side: long side of each image in the pictures, pixels.
        threshold: lowest score of a drawn prediction.
        folder: where; the trainer's `default_root_dir` if None.
    """

    def __init__(self, images: int = 6, side: int = 480, threshold: float = 0.3, folder: str | None = None) -> None:
        self.images, self.side, self.threshold = images, side, threshold
        self.folder: Path | None = Path(folder) if folder else None
        self._rows: list[Cells] = []
        self._batches = 0  # of the evaluation so far

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write what is known before training."""
        self.folder = folder = self.folder or Path(trainer.default_root_dir)
        if stage != "fit" or not trainer.is_global_zero:
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = getattr(pl_module, "checkpoint_facts", {}).get("config")
        if config is not None:
            self._write("config.yaml", lambda path: path.write_text(OmegaConf.to_yaml(OmegaConf.create(config))))
        self._write("environment.json", lambda path: path.write_text(json.dumps(environment(), indent=2) + "\n"))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let `metrics.csv` continue where the checkpoint was written."""
        for logger in trainer.loggers:
            resume = getattr(logger, "resume_at", None)
            if resume is not None:
                resume(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the first batch of a new run."""
        if batch_idx == 0 and trainer.global_step == 0 and trainer.current_epoch == 0 and trainer.is_global_zero:
            rows = [self._cells(pl_module, batch, i, None) for i in range(min(len(batch["id"]), self.images))]
            self._draw(rows, 3, "first_batch.png")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start collecting."""
        self._rows, self._batches = [], 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep images from all over the set: class folders would show one class alone."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        self._batches += 1
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        due = math.ceil(self.images * self._batches / max(sum(batches), self._batches)) - len(self._rows)
        predictions = outputs["predictions"]
        wanted = min(due, len(predictions))
        for i in (len(predictions) * k // wanted for k in range(wanted)):
            self._rows.append(self._cells(pl_module, batch, i, predictions[i]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what an evaluation during training left."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._after_evaluation(pl_module, f"eval/epoch_{trainer.current_epoch + 1:03d}.png")
            assert self.folder is not None
            numbers = self.folder / "metrics.csv"
            if numbers.exists():
                self._write("curves.png", lambda path: pictures.curves(numbers, path))

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a test left."""
        if trainer.is_global_zero:
            self._after_evaluation(pl_module, "eval/test.png")

    def _after_evaluation(self, pl_module: LightningModule, name: str) -> None:
        rows, self._rows = self._rows, []
        self._draw(rows, 4, name)
        write_predictions = getattr(pl_module, "write_predictions", None)
        if write_predictions is not None:
            self._write("predictions.json", write_predictions)

    def _draw(self, rows: list[Cells], width: int, name: str) -> None:
        """Draw cells by samples; several samples share a line of `width` cells where they fit whole."""
        if not rows:
            return
        per_line = max(width // max(map(len, rows)), 1)
        lines = [list(chain(*rows[i : i + per_line])) for i in range(0, len(rows), per_line)]
        captions = [[caption for caption, _ in line] for line in lines]
        picture = pictures.grid([[image for _, image in line] for line in lines], captions)
        self._write(name, lambda path: _save(picture, path))

    def _cells(self, pl_module: LightningModule, batch: Mapping[str, Any], i: int, found: Any) -> Cells:
        """What is shown of one sample: as its task says in `draw_sample`, or the image with its boxes."""
        draw_sample = getattr(pl_module, "draw_sample", None)
        if draw_sample is not None:
            return list(draw_sample(batch, i, found, self.side))
        style, s = _style(pl_module), self._prepare(batch, i, found)
        truth = pictures.draw_boxes(s.image, s.boxes, s.labels, **style)
        if found is None:
            return [(s.title, truth)]
        drawn = pictures.draw_boxes(
            s.image, s.found_boxes, s.found_labels, s.found_scores, threshold=self.threshold, **style
        )
        above = int((s.found_scores >= self.threshold).sum())
        caption = f"prediction: {above} of {len(s.found_scores)} >= {self.threshold:g}"
        return [(f"{s.title}: truth", truth), (caption, drawn)]

    def _prepare(self, batch: Mapping[str, Any], i: int, found: Any) -> _Shown:
        """One image of a batch without its padding, of a size to look at, with what belongs to it."""
        height, width = (int(n) for n in batch["size"][i])
        scale = min(ENLARGED, self.side / max(height, width))
        image = batch["image"][i, :3, :height, :width].cpu()
        if image.dtype != torch.uint8:
            image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
        array = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        target = batch["target"][i] if i < len(batch["target"]) else {}
        boxes, labels = target.get("boxes", torch.zeros(0, 4)), target.get("labels", torch.zeros(0, dtype=torch.int64))
        found_boxes, found_labels, found_scores = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        if found is not None and hasattr(found, "boxes"):
            # Predictions are in the original image's pixels.
            full_height, full_width = (int(n) for n in batch["original_size"][i])
            ratio = torch.tensor([width / full_width, height / full_height] * 2)
            found_boxes = found.boxes.detach().float().cpu() * ratio
            found_labels, found_scores = found.labels.detach().cpu(), found.scores.detach().float().cpu()
        small = Image.fromarray(array).resize((max(1, round(width * scale)), max(1, round(height * scale))))
        return _Shown(
            str(batch["id"][i]),
            np.asarray(small),
            boxes.detach().float().cpu().numpy() * scale,
            labels.detach().cpu().numpy(),
            found_boxes.numpy() * scale,
            found_labels.numpy(),
            found_scores.numpy(),
        )

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        """Write one file; without it the run is poorer, not broken."""
        assert self.folder is not None
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OSError, DataError) as error:
            log.warning("%s could not be written: %s", path, error)


def environment() -> dict[str, Any]:
    """What a bug report or a reproduction needs to know: versions, hardware and an allow-list of variables."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if _allowed(name)},
    }


def _allowed(name: str) -> bool:
    listed = name in VARIABLES or name in SLURM or name.startswith(PREFIXES)
    return listed and not any(part in name for part in SECRETS)


def _style(pl_module: LightningModule) -> dict[str, Any]:
    """Class names and colours for drawing, where the network has labels."""
    labels = getattr(getattr(pl_module, "model", None), "labels", None)
    return {} if labels is None else {"names": labels.name_of, "colours": pictures.class_colours(labels)}


def _save(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path)
