"""A detector and a data set small enough to train in milliseconds, for the tests of the training room."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import Dataset

from vistrain.callbacks import make_loggers
from vistrain.data.base.module import DataModule
from vistrain.network import Network
from vistrain.optim import ParameterGroups, Schedule
from vistrain.predictions import Detections
from vistrain.structures import Factory, LabelSpace, Preprocessing
from vistrain.tasks import DetectionTask

LABELS = LabelSpace(("cat", "dog"), (3, 7))
SIDE = 16


class TinyDetector(Network):
    """One box and one class per image, from the mean of a convolution."""

    def __init__(self, dropout: float = 0.0, norm: bool = False, poison: frozenset[int] = frozenset()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.labels, self.preprocessing = LABELS, Preprocessing()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 4 + LABELS.num_classes)
        self.poison = poison
        self.steps: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.backbone(images).mean((2, 3))))

    def normalised(self, batch: dict[str, Any]) -> Tensor:
        return batch["image"].to(self.head.weight.dtype) / 255

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        out = self(self.normalised(batch))
        counts = [len(t["labels"]) for t in batch["target"]]
        of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        boxes = torch.cat([t["boxes"] for t in batch["target"]]).to(out.dtype) / SIDE
        labels = torch.cat([t["labels"] for t in batch["target"]])
        divisor = batch.get("num_targets", len(labels))
        box = (out[of, :4] - boxes).abs().sum() / divisor
        if self.poison & set(batch["id"]):
            box = box * float("nan")
        return {"box": box, "class": nn.functional.cross_entropy(out[of, 4:], labels, reduction="sum") / divisor}

    def predict(self, batch: dict[str, Any]) -> list[Detections]:
        out = self(self.normalised(batch)).float()
        scores, labels = out[:, 4:].softmax(-1).max(-1)
        return [
            Detections(out[i : i + 1, :4].clamp(0, 1) * SIDE, scores[i : i + 1], labels[i : i + 1])
            for i in range(len(out))
        ]

    def on_step_end(self, step: int) -> None:
        self.steps.append(step)


class Images(Dataset[Any]):
    """Random images, each with one to three boxes; training adds noise that depends on the sample's seed."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        g = torch.Generator().manual_seed(index)
        image = torch.randint(0, 200, (3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        count = 1 + index % 3
        corner = torch.rand(count, 2, generator=g) * 8
        boxes = torch.cat([corner, corner + 2 + 6 * torch.rand(count, 2, generator=g)], 1)
        labels = torch.randint(0, 2, (count,), generator=g)
        if seed is not None:
            noise = torch.randint(0, 50, image.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
            image = image + noise
        return {"image": image, "id": index, "target": {"boxes": boxes, "labels": labels}}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    size = torch.tensor([[SIDE, SIDE]] * len(samples))
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "size": size,
        "original_size": size.clone(),
        "id": [s["id"] for s in samples],
        "target": [s["target"] for s in samples],
    }


class TinyData(DataModule):
    """The generated images behind vistrain's own samplers and loaders."""

    def __init__(self, count: int = 24, batch_size: int = 4, **arguments: Any) -> None:
        super().__init__(batch_size=batch_size, **{"workers": 0, **arguments})
        self.count = count
        self.seen: list[list[int]] = []

    @property
    def labels(self) -> LabelSpace:
        return LABELS

    def dataset(self, split: str) -> Images:
        return Images(self.count if split == "train" else 6)

    def largest(self, split: str) -> tuple[int, int]:
        return SIDE, SIDE

    @property
    def collate(self) -> Any:
        return collate

    def count_targets(self, target: Any) -> int:
        return len(target["labels"])

    def ground_truth(self, split: str) -> dict[str, Any]:
        data, annotations = self.dataset(split), []
        for i in range(len(data)):
            target = data[i]["target"]
            for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "category_id": LABELS.category_of[label], "bbox": box,
                     "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        images = [{"id": i, "width": SIDE, "height": SIDE, "file_name": f"{i}.png"} for i in range(len(data))]
        categories = [{"id": i, "name": n} for i, n in zip(LABELS.ids, LABELS.names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def image_path(self, split: str, image_id: int) -> Path:
        return Path(f"{image_id}.png")


class Watch(Callback):
    """Notes what each batch held, and can pull the plug after a batch."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.ids: list[tuple[int, ...]] = []
        self.stop_after = stop_after

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.stop_after is not None and len(self.ids) == self.stop_after:
            raise InterruptedError("the plug was pulled")
        self.ids.append(tuple(batch["id"]))


def make_task(model: Network | None = None, lr: float = 0.05, schedule: Schedule | None = None, **more: Any) -> Any:
    optimizer: Factory[Any] = Factory(torch.optim.AdamW, lr=lr, weight_decay=0.01)
    arguments = {"metrics": ("coco_box",), "groups": ParameterGroups(), "schedule": schedule, **more}
    return DetectionTask(model=model or TinyDetector(), optimizer=optimizer, **arguments)


def make_trainer(folder: Path, callbacks: Sequence[Callback] = (), **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 2, "log_every_n_steps": 2, "num_sanity_val_steps": 0,
        "logger": make_loggers(None, folder),
    }  # fmt: skip
    return Trainer(
        callbacks=list(callbacks),
        default_root_dir=str(folder),
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **{**defaults, **arguments},
    )


def fit(
    folder: Path, task: Any, data: Any, callbacks: Sequence[Callback] = (), *, resume: Any = None, **more: Any
) -> Any:
    trainer = make_trainer(folder, callbacks, accumulate_grad_batches=data.accumulation(1), **more)
    trainer.fit(task, datamodule=data, ckpt_path=None if resume is None else str(resume))
    return trainer
