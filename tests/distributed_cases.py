"""What the tests of several processes run on each of them: the same work, whatever the number of processes."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from parity.models import TinyBackbone, TinyBody, contiguous
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from training_tools import make_trainer

from vistrain.backbones.timm_model import TimmModel
from vistrain.callbacks import Checkpoints
from vistrain.checkpoints import load_file
from vistrain.classification import Classifier
from vistrain.cli import main
from vistrain.data.base.module import DataModule
from vistrain.data.base.samplers import ResumableSampler
from vistrain.detection import DINO, DeformableDETR, FocusDETR
from vistrain.detr import ContrastiveDenoising, DenoisingNoise
from vistrain.losses import Charbonnier, FrequencyLoss, PSNRLoss, SoftCrossEntropy
from vistrain.metrics import Metric
from vistrain.network import Network
from vistrain.optim import LoRA, ParameterGroups
from vistrain.predictions import Detections
from vistrain.restoration import NAFNet, RestorationModel
from vistrain.structures import Factory
from vistrain.tasks import ClassificationTask, DetectionTask, ErrorAnalysis, RestorationTask
from vistrain.tasks.base.parallel import trainer_arguments
from vistrain.tasks.base.task import Task

SIDE, CLASSES = 48, 5
SIZES: dict[str, Any] = {
    "embed_dim": 32, "num_heads": 4, "num_queries": 9, "encoder_layers": 2, "decoder_layers": 2, "ffn_dim": 48,
    "dropout": 0.0,
}  # fmt: skip


class SteadyNoise(ContrastiveDenoising):
    """Noise that is the same for every object: what is drawn for a batch would depend on who is in it."""

    @staticmethod
    def _draw(count: int, num_classes: int, device: torch.device) -> DenoisingNoise:
        label_draw, sign = torch.full((count,), 0.9), torch.tensor([1.0, -1.0, 1.0, 1.0]).expand(count, -1)
        return DenoisingNoise(label_draw, torch.zeros(count, dtype=torch.int64), sign, torch.full((count, 4), 0.3))


def detector(kind: type[Any], **arguments: Any) -> nn.Module:
    """A small detector."""
    widths = [8, 12, 16, 20]
    backbone = TinyBackbone(TinyBody(widths), tuple(widths[1:]))
    made: nn.Module = kind(backbone, contiguous(CLASSES), **SIZES, **arguments)
    return made


def classifier(name: str, **arguments: Any) -> nn.Module:
    """A small classifier."""
    backbone = TimmModel(name, contiguous(CLASSES), args=arguments)
    return Classifier(backbone, contiguous(CLASSES), SoftCrossEntropy(0.1))


def model(case: str) -> nn.Module:
    """The network of a case, the same at every call."""
    torch.manual_seed(0)
    noise = SteadyNoise(number=6)
    made: dict[str, Any] = {
        "deformable": lambda: detector(DeformableDETR),
        "two-stage": lambda: detector(DeformableDETR, box_refinement=True, two_stage=True, denoising=noise),
        "dino": lambda: detector(DINO, denoising=noise),
        "no denoising": lambda: detector(DINO, denoising=ContrastiveDenoising(number=0)),
        "focus": lambda: detector(FocusDETR, denoising=noise, cascade=(1.0, 0.5), topk_sa=20),
        "focus, no denoising": lambda: detector(
            FocusDETR, denoising=ContrastiveDenoising(number=0), cascade=(1.0, 0.5), topk_sa=20
        ),
        "convolutions": lambda: classifier("resnet10t"),
        "near": NearTruth,
        "classifier": lambda: classifier("vit_tiny_patch16_224", img_size=SIDE, depth=2, embed_dim=48),
        "restoration": lambda: RestorationModel(
            NAFNet(width=4, enc_blk_nums=(1, 1), dec_blk_nums=(1, 1)),
            {"pixel": Charbonnier(), "frequency": FrequencyLoss(), "psnr": PSNRLoss()},
        ),
    }
    network: nn.Module = made[case]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # away from the special values that it starts with
    return network


class Samples(Dataset[Any]):
    """Images of one size; `counts[i]` objects in image i, a class, and a cleaner image as the target of restoration."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[0] if isinstance(key, tuple) else key
        g = torch.Generator().manual_seed(index)
        count = self.counts[index]
        low = torch.rand(count, 2, generator=g) * 0.5 * SIDE
        boxes = torch.cat([low, low + (0.2 + 0.3 * torch.rand(count, 2, generator=g)) * SIDE], 1)
        labels = torch.randint(CLASSES, (count,), generator=g)
        image = torch.randint(256, (3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        clean = torch.randint(256, (3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        return {"image": image, "clean": clean, "id": index, "boxes": boxes, "labels": labels}


def as_batch(samples: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The batch that a task of this kind (`detection`, `classification`, `restoration`) sees."""
    size = torch.tensor([[SIDE, SIDE]] * len(samples))
    batch: dict[str, Any] = {"size": size, "original_size": size.clone(), "id": [s["id"] for s in samples]}
    batch["image"] = torch.stack([s["image"] for s in samples])
    if kind == "detection":
        batch["target"] = [{"boxes": s["boxes"], "labels": s["labels"]} for s in samples]
    elif kind == "classification":
        batch["target"] = [{"labels": [s["id"] % CLASSES]} for s in samples]
        batch["labels"] = torch.tensor([t["labels"][0] for t in batch["target"]])
    else:
        batch["id"] = [f"Set/{s['id']:03d}" for s in samples]
        batch["image"] = batch["image"].double() / 255  # the network is of float64
        batch["target"] = [{"image": s["clean"]} for s in samples]
    return batch


class Data(DataModule):
    """`Samples` behind vistrain's own samplers and loaders; `ordered`: dealt as they come, for a test to decide."""

    def __init__(
        self,
        kind: str,
        counts: Sequence[int],
        batch_size: int = 4,
        per_device: int | None = None,
        ordered: bool = False,
        eval_batch_size: int = 1,
    ) -> None:
        super().__init__(batch_size=batch_size, per_device=per_device, workers=0, eval_batch_size=eval_batch_size)
        self.kind, self.counts, self.ordered = kind, counts, ordered

    def dataset(self, split: str) -> Samples:
        return Samples(self.counts)

    def largest(self, split: str) -> tuple[int, int]:
        return SIDE, SIDE

    def training_sampler(self, length: int) -> ResumableSampler:
        made = super().training_sampler(length)
        return _Ordered(made) if self.ordered else made

    @property
    def collate(self) -> Any:
        return lambda samples: as_batch(samples, self.kind)

    def count_targets(self, target: Any) -> int | None:
        return len(target["labels"]) if "labels" in target else None

    def ground_truth(self, split: str) -> dict[str, Any]:
        samples = self.dataset(split)
        if self.kind == "classification":
            return {"images": len(samples)}
        images = [{"id": i, "width": SIDE, "height": SIDE, "file_name": f"{i}.png"} for i in range(len(samples))]
        annotations: list[dict[str, Any]] = []
        for i in range(len(samples)):
            for (x1, y1, x2, y2), label in zip(samples[i]["boxes"].tolist(), samples[i]["labels"], strict=True):
                box, number = [x1, y1, x2 - x1, y2 - y1], len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": i, "category_id": contiguous(CLASSES).category_of[int(label)],
                     "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
        space = contiguous(CLASSES)
        categories = [{"id": i, "name": n} for i, n in zip(space.ids, space.names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


class _Ordered(ResumableSampler):
    """Deals the samples as they come, so that a test decides who gets which."""

    def __init__(self, other: ResumableSampler) -> None:
        self.__dict__.update(other.__dict__)

    def __iter__(self) -> Any:
        yield from ((index, 0) for index in range(self.rank, self.used, self.world))


class Gradients(Callback):
    """Keeps the gradients of every optimizer step, and names parameters that have none."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.without: set[str] = set()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = {n: p.grad for n, p in pl_module.model.named_parameters() if p.requires_grad}
        self.without |= {name for name, grad in named.items() if grad is None}
        self.steps.append({name: grad.detach().clone() for name, grad in named.items() if grad is not None})


def kind_of(case: str) -> str:
    """Of the task."""
    return {"classifier": "classification", "convolutions": "classification", "restoration": "restoration"}.get(
        case, "detection"
    )


class PlainTask(Task):
    """The base task, without metrics."""

    def build_metrics(self, split: str) -> dict[str, Any]:
        return {}


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def train_gradients(
    folder: Path, cases: Sequence[str], world: int, per_device: int | None, counts: Sequence[int], ordered: bool = False
) -> dict[str, list[dict[str, Tensor]]]:
    """Train every case in float64 on the same global batches of 4; the gradients of each step."""
    _quiet()
    found = {}
    for case in cases:
        data = Data(kind_of(case), counts, per_device=per_device, ordered=ordered)
        optimizer: Factory[Any] = Factory(torch.optim.SGD, lr=0.01)
        task = PlainTask(model(case).double(), optimizer, ParameterGroups())
        watch = Gradients()
        trainer = make_trainer(
            folder, [watch], max_epochs=1, limit_val_batches=0, logger=False, devices=world,
            accumulate_grad_batches=data.accumulation(world),
        )  # fmt: skip
        trainer.fit(task, datamodule=data)
        assert not watch.without, f"{case}: no gradient for {sorted(watch.without)}"
        found[case] = watch.steps
    return found


def low_rank_run(folder: Path, world: int) -> dict[str, Tensor]:
    """Train a frozen transformer by low-rank products in float64, four steps; what each process holds in the end."""
    _quiet()
    groups = ParameterGroups(freeze=("backbone.*",), lora=LoRA(("*.qkv", "*.proj"), rank=4))
    task = PlainTask(model("classifier").double(), Factory(torch.optim.AdamW, lr=1e-2), groups)
    torch.manual_seed(1)  # of the products
    groups.prepare(task.model)
    trainer = make_trainer(folder, [Checkpoints()], max_epochs=2, limit_val_batches=0, logger=False, devices=world)
    trainer.fit(task, datamodule=Data("classification", [0] * 8))
    assert trainer.global_step == 4
    return {name: value.detach().clone() for name, value in task.model.state_dict().items()}


class _Summed(nn.Module):
    """The sum of a network's losses as `forward`, for DistributedDataParallel itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Any]) -> Tensor:
        losses: dict[str, Tensor] = self.network.losses(batch)  # type: ignore[operator]
        return torch.stack([value.double() for value in losses.values()]).sum()


def uneven_gradients(case: str, shares: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Gradients of one batch that is dealt to the processes as `shares` of sample numbers says; two rounds of it."""
    rank, world = (distributed.get_rank(), len(shares)) if distributed.is_initialized() else (0, 1)
    samples = Samples([2, 1, 2, 0, 1])
    network = model(case).double()
    runner: nn.Module = DistributedDataParallel(_Summed(network)) if world > 1 else _Summed(network)
    for _ in range(2):  # an unused parameter would be an error in the second
        runner.zero_grad()
        runner(as_batch([samples[i] for i in shares[rank]], "detection")).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- evaluation


def evaluate(folder: Path, world: int, nodes: int, count: int) -> dict[str, Any]:
    """Evaluate a network of each task on so many samples; every number there is, as exact text."""
    _quiet()
    found: dict[str, Any] = {}
    optimizer: Factory[Any] = Factory(torch.optim.SGD, lr=0.01)
    for case, task_type, metrics in (
        ("near", DetectionTask, ("coco_box",)),
        ("deformable", DetectionTask, ("coco_box",)),
        ("classifier", ClassificationTask, ("accuracy",)),
        ("restoration", RestorationTask, ("denoise", "float_rgb")),
    ):
        network = model(case)
        network = network.double() if case == "restoration" else network
        task = task_type(model=network, optimizer=optimizer, metrics=metrics)
        data = Data(kind_of(case), [i % 3 for i in range(count)], eval_batch_size=2)
        callbacks: list[Callback] = [Kept()]
        if case == "near":
            callbacks.append(ErrorAnalysis(str(folder / "analysis"), score_threshold=0.0))
        trainer = make_trainer(folder, callbacks, logger=False, devices=world // nodes, num_nodes=nodes)
        trainer.test(task, datamodule=data, verbose=False)
        found |= {f"{case} {name}": repr(value) for name, value in task.numbers.items()}
        if trainer.is_global_zero:
            found[f"{case} samples"] = callbacks[0].ids  # type: ignore[attr-defined]
    written = folder / "analysis" / "analysis.json"
    return {**found, "analysis": json.loads(written.read_text()) if written.exists() else None}


class NearTruth(Network):
    """Detections that lie near the truth, and some that do not: an untrained network finds nothing to count."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.weight = contiguous(CLASSES), nn.Parameter(torch.zeros(()))

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": self.weight}

    def predict(self, batch: Mapping[str, Any]) -> list[Detections]:
        found = []
        for i, target in zip(batch["id"], batch["target"], strict=True):
            g = torch.Generator().manual_seed(100 + i)
            boxes = torch.cat([target["boxes"] + 1.5 * torch.randn(target["boxes"].shape, generator=g), _anywhere(g)])
            labels = torch.cat([target["labels"], torch.randint(CLASSES, (3,), generator=g)])
            found.append(Detections(boxes, torch.rand(len(boxes), generator=g), labels))
        return found


def _anywhere(generator: torch.Generator) -> Tensor:
    low = torch.rand(3, 2, generator=generator) * 0.5 * SIDE
    return torch.cat([low, low + 0.3 * SIDE], 1)


class Kept(Callback):
    """The ids of all records, before the task lets go of them."""

    ids: dict[str, list[Any]]

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.ids = {name: [record["id"] for record in records] for name, records in pl_module.records.items()}


class Thorough(Metric):
    """A metric that rank 0 computes for longer than collectives of the training group may wait, the first time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def update(self, ids: Sequence[Any], predictions: Sequence[Any], targets: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"id": i} for i in ids]

    def compute(self, records: list[Any]) -> dict[str, float]:
        threading.Event().wait(self.seconds)
        self.seconds = 0.0
        return {"samples": len(records)}


class ThoroughTask(Task):
    """Evaluates with it."""

    seconds = 0.0

    def build_metrics(self, split: str) -> dict[str, Any]:
        return {"thorough": Thorough(self.seconds)}


def long_evaluation(folder: Path, seconds: float) -> dict[str, float]:
    """Train, evaluate for that long on rank 0, save, train on, evaluate again."""
    _quiet()
    task = ThoroughTask(model("classifier"), Factory(torch.optim.SGD, lr=0.01))
    task.seconds = seconds
    trainer = make_trainer(folder, [Checkpoints()], max_epochs=2, logger=False, devices=2)
    trainer.fit(task, datamodule=Data("classification", [0] * 9))
    assert trainer.global_step == 4
    return task.numbers


def statistics_when_evaluated(folder: Path) -> tuple[Tensor, Tensor]:
    """Running statistics of the first batch norm at the end of an evaluation, and those in the checkpoint."""
    _quiet()
    task = PlainTask(model("convolutions"), Factory(torch.optim.SGD, lr=0.01))
    trainer = make_trainer(folder, [Checkpoints()], max_epochs=1, logger=False, devices=2)
    trainer.fit(task, datamodule=Data("classification", [0] * 8))
    name = next(key for key in task.state_dict() if key.endswith("running_mean"))
    return task.state_dict()[name].clone(), load_file(folder / "last.ckpt")["state_dict"][name]


# ---------------------------------------------------------------- sharding


class Weights(Callback):
    """The whole weights at the end, on rank 0, and what the parameters were like."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.state = trainer.strategy.lightning_module_state_dict()
        self.sharded = sum(type(p.data).__name__ == "DTensor" for p in pl_module.parameters())
        self.blocks = sum(type(m).__name__.startswith("FSDP") for m in pl_module.modules())


def train_spread(folder: Path, case: str, strategy: str, steps: int, resume: Path | None = None) -> dict[str, Any]:
    """Train in float64 with AdamW in two groups, clipped, on two processes; saved after every second step."""
    _quiet()
    weights = Weights()
    task = PlainTask(model(case).double(), Factory(torch.optim.AdamW, lr=1e-2, weight_decay=0.1))
    data = Data(kind_of(case), [2] * 8)
    callbacks = [weights, Checkpoints(every_n_steps=2)]
    arguments = trainer_arguments({"strategy": strategy, "gradient_clip_val": 0.1}, task, callbacks)
    trainer = make_trainer(
        folder, callbacks, max_steps=steps, max_epochs=-1, limit_val_batches=0, logger=False, devices=2, **arguments
    )
    trainer.fit(task, datamodule=data, ckpt_path=None if resume is None else str(resume))
    assert trainer.global_step == steps
    return {"state": dict(weights.state), "sharded": weights.sharded, "blocks": weights.blocks}


def ddp_and_sharded(folder: Path, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Four steps each way, and two steps one way and two the other."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        home = folder / case
        found[case] = {name: train_spread(home / name, case, name, 4) for name in ("ddp", "fsdp2")}
        for first, second in (("ddp", "fsdp2"), ("fsdp2", "ddp")):
            train_spread(home / f"{first} begun", case, first, 2)
            begun = home / f"{first} begun" / "last.ckpt"
            found[case][f"{first}, {second}"] = train_spread(home / f"{second} ended", case, second, 4, begun)
    return found


def command(arguments: Sequence[str]) -> int:
    """`vistrain ...` in this process."""
    _quiet()
    return main(list(arguments))


if __name__ == "__main__":  # under torchrun: `-m distributed_cases FOLDER NODES COUNT`
    torch.set_num_threads(1)
    home, nodes, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rank = int(os.environ["RANK"])
    content = evaluate(home, int(os.environ["WORLD_SIZE"]), nodes, count)
    (home / f"rank_{rank}.json").write_text(json.dumps(content))
