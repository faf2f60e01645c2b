"""What a run would cost on many devices, computed from what was measured on one: a Markdown table with its arithmetic.

    python tools/plan_scaling.py --config det/focus_detr --step SECONDS --per-device 2 --rate BYTES_PER_SECOND

Measure `--step` on one device of yours: `data.per_device / perf/images_per_s` of `metrics.csv` after a hundred steps
with `data.batch_size` and `data.per_device` both at what one device takes. `--rate` is what one device sends and
receives at once in a ring over all devices (the "busbw" that nccl-tests' all_reduce_perf prints). Everything that is
not given is an assumption, and the table says so. Nothing here is a measurement of many devices.
"""

from __future__ import annotations

import argparse
import math
import pickle
from dataclasses import dataclass

from vistrain.config import index

BUCKET = 25 * 2**20  # bytes; torch's DistributedDataParallel reduces gradients in parts of this size
BACKWARD = 2 / 3  # of a step's computation: two multiplications for each one of the forward pass


@dataclass(frozen=True)
class Device:
    """One device and what surrounds it.

    Attributes:
        step: seconds of an optimizer step on one device, alone.
        per_device: images of that step.
        parameters: trained numbers.
        rate: bytes per second that a device sends, and receives, in a ring over all.
        latency: seconds of one message.
        overlap: share of the backward pass that communication can hide behind.
        record: bytes of an image's evaluation record.
        images: of the evaluation.
        gather_rate: bytes per second into rank 0.
        loader: images per second that one processor core decodes and augments.
        image: mean bytes of a file.
    """

    step: float
    per_device: int
    parameters: int
    rate: float
    latency: float
    overlap: float
    record: float
    images: int
    gather_rate: float
    loader: float
    image: float


@dataclass(frozen=True)
class Plan:
    """What so many devices need; seconds and bytes."""

    devices: int
    traffic: float
    reducing: float
    exposed: float
    step: float
    images_per_second: float
    efficiency: float
    gathered: float
    gathering: float
    cores: float
    reading: float


def plan(device: Device, count: int) -> Plan:
    """The arithmetic, see `FORMULAS`."""
    gradient = 4 * device.parameters
    buckets = math.ceil(gradient / BUCKET)
    traffic = 2 * (count - 1) / count * gradient
    reducing = traffic / device.rate + 2 * (count - 1) * device.latency * buckets
    exposed = max(reducing - device.overlap * BACKWARD * device.step, reducing / buckets) if count > 1 else 0.0
    step = device.step + exposed
    per_device = device.per_device / step
    gathered = device.images * device.record * (count - 1) / count
    return Plan(
        count, traffic, reducing, exposed, step, count * per_device, device.step / step, gathered,
        gathered / device.gather_rate, per_device / device.loader, count * per_device * device.image,
    )  # fmt: skip


FORMULAS = """\
    gradient    4 bytes x {parameters:,} parameters = {gradient:.1f} MB, in {buckets} buckets of 25 MiB
    traffic     2 (n - 1) / n x gradient: what each device sends, and receives, in a step (ring all-reduce)
    reducing    traffic / {rate:g} GB/s + 2 (n - 1) x {latency:g} us x buckets
    exposed     the larger of: reducing - {overlap:g} x 2/3 x {step:g} s (hidden behind the backward pass, two thirds
                of the step's computation); reducing / buckets (the last bucket has nothing to hide behind)
    step        {step:g} s (one device) + exposed
    images/s    n x {per_device} / step; efficiency: {step:g} s / step
    gathered    {images:,} images x {record:,.0f} bytes x (n - 1) / n to rank 0, once per evaluation,
                at {gather_rate:g} GB/s
    loader      {per_device} / step images per second and device, of {loader:g} that a core delivers;
                files of {image:.0f} kB"""


def markdown(device: Device, counts: list[int], measured: list[str], assumed: list[str]) -> str:
    """The table, the arithmetic with its numbers, and where they come from."""
    rows = [plan(device, n) for n in counts]
    lines = [
        "| | " + " | ".join(f"{n} devices" for n in counts) + " |",
        "|---|" + "---|" * len(counts),
    ]
    cells = {
        "global batch": [f"{device.per_device * n:,}" for n in counts],
        "gradient traffic per device and step": [f"{p.traffic / 1e6:.1f} MB" for p in rows],
        "time to reduce it": [f"{1000 * p.reducing:.1f} ms" for p in rows],
        "of that not hidden": [f"{1000 * p.exposed:.1f} ms" for p in rows],
        "expected step": [f"{1000 * p.step:.1f} ms" for p in rows],
        "images per second": [f"{p.images_per_second:,.1f}" for p in rows],
        "efficiency": [f"{p.efficiency:.1%}" for p in rows],
        "evaluation gather": [f"{p.gathered / 1e6:.1f} MB, {p.gathering:.2f} s" for p in rows],
        "images per second and device to load": [f"{device.per_device / p.step:.1f}" for p in rows],
        "loader cores per device": [f"{p.cores:.2f}" for p in rows],
        "reading from storage, all": [f"{p.reading / 1e6:,.1f} MB/s" for p in rows],
    }
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in cells.items()]
    gradient = 4 * device.parameters
    formulas = FORMULAS.format(
        parameters=device.parameters, gradient=gradient / 1e6, buckets=math.ceil(gradient / BUCKET),
        rate=device.rate / 1e9, latency=1e6 * device.latency, overlap=device.overlap, step=device.step,
        per_device=device.per_device, images=device.images, record=device.record, gather_rate=device.gather_rate / 1e9,
        loader=device.loader, image=device.image / 1000,
    )  # fmt: skip
    sources = [f"Measured or given: {', '.join(measured)}.", f"Assumed: {', '.join(assumed) or 'nothing'}."]
    return "\n".join([*lines, "", formulas, "", *sources])


def record_bytes(detections: int) -> float:
    """Bytes of an image's record as `metrics.CocoBox` makes it, in a list of a hundred as the processes exchange it."""
    import torch

    from vistrain.metrics import CocoBox
    from vistrain.predictions import Detections
    from vistrain.structures import LabelSpace

    ids = list(range(100))
    truth = {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in ids],
        "annotations": [],
        "categories": [{"id": k, "name": f"{k}"} for k in range(1, 81)],
    }
    metric = CocoBox(truth, LabelSpace(tuple(f"{k}" for k in range(1, 81)), tuple(range(1, 81))))
    torch.manual_seed(0)
    found = [
        Detections(torch.rand(detections, 4) * 400, torch.rand(detections), torch.randint(80, (detections,)))
        for _ in ids
    ]
    return len(pickle.dumps(metric.update(ids, found, [{}] * len(ids)))) / len(ids)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=float, required=True, help="seconds of an optimizer step on one device")
    parser.add_argument("--per-device", type=int, required=True, help="images of that step")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--config", help="for its number of parameters: a name of `vistrain list configs`")
    group.add_argument("--parameters", type=int, help="trained numbers")
    parser.add_argument("--rate", type=float, default=1.25e9, help="bytes per second in a ring (default: 10 Gbit/s)")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds of a message (default: %(default)s)")
    parser.add_argument("--overlap", type=float, default=0.8, help="of the backward pass (default: %(default)s)")
    parser.add_argument("--detections", type=int, default=300, help="kept for each image (default: %(default)s)")
    parser.add_argument("--images", type=int, default=5000, help="of the evaluation (default: COCO's)")
    parser.add_argument("--gather-rate", type=float, default=1e9, help="bytes per second (default: %(default)s)")
    parser.add_argument("--loader", type=float, default=60, help="images per second and core (default: %(default)s)")
    parser.add_argument("--image", type=float, default=160_000, help="mean bytes of a file (default: COCO's)")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512], help="(default: 8 64 512)")
    arguments = parser.parse_args(argv)
    parameters = arguments.parameters
    if parameters is None:
        configs = index.load("configs")
        name = arguments.config.removeprefix("vistrain:")
        if name not in configs:
            parser.error(f"no config {name!r}: see `vistrain list configs`")
        parameters = configs[name]["parameters"]
    device = Device(
        arguments.step, arguments.per_device, parameters, arguments.rate, arguments.latency, arguments.overlap,
        record_bytes(arguments.detections), arguments.images, arguments.gather_rate, arguments.loader, arguments.image,
    )  # fmt: skip
    measured = ["the step", "the number of parameters", f"the record of {arguments.detections} detections (pickled)"]
    assumed = ["the overlap"]
    names = {"rate": "the ring's rate", "latency": "latency", "gather_rate": "the rate into rank 0"}
    names |= {"loader": "the loader's rate", "image": "the files' size"}
    for key, name in names.items():
        (assumed if getattr(arguments, key) == parser.get_default(key) else measured).append(name)
    print(markdown(device, arguments.devices, measured, assumed))


if __name__ == "__main__":
    main()
