"""Changes good files at random and has the readers read them: whatever happens, it must be an error of ours.

    python tools/fuzz.py --count 20000 --seed 1
    python tools/fuzz.py --seed 1 --only 4711 --keep found/       # one case again; its file is kept

Pictures, annotations in COCO's format, indices and tar files of shards, checkpoints. Cases run in one child process,
which is started again only after a hang or a crash; a case may take 20 seconds of a processor, and 1.5 GiB above what
the child began with.
Case I of a seed is always the same. Prints what is found, and ends with 1 if anything is.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import random
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

WAITING = 3  # times as long a case may take in all: the machine may have other work
ADDRESSES = 8 * 2**30  # bytes that the child may address in all beyond its start: protects the machine
STARTING = 180.0  # seconds that a child may take to begin: it imports torch
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e9, 1e308, math.inf, -math.inf, math.nan, "", "1",
    "a", "\ud800", "../a.png", "/etc/passwd", "a\0b", "x" * 5000, [], [[]], {}, [1], [None] * 4, [1e300] * 4,
    [0, 0, -5, -5],
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a case may take.

    Attributes:
        seconds: of a processor.
        memory: bytes above what the child held before.
    """

    seconds: float = 20.0
    memory: int = 3 * 2**29


@dataclass(frozen=True)
class Subject:
    """Files of a kind.

    Attributes:
        make: the random draws -> the name and bytes of a changed file.
        read: a folder with that file in it -> nothing, or an error.
    """

    make: Callable[[random.Random], tuple[str, bytes]]
    read: Callable[[Path], None]


Kind: TypeAlias = Callable[[], Subject]  # a function of a module, so that a spawned child finds it
LIMITS = Limits()

# -------------------------------------------------------------------- changes


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four changes: bits, bytes, numbers, a cut, parts left out, repeated, zeroed or random."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        size = len(found)
        if not size:
            break
        # The head decides most: half of all changes are there
        at = draw.randrange(min(size, 200)) if draw.random() < 0.5 else draw.randrange(size)
        span = min(size - at, 1 << draw.randint(0, 8))
        kind = draw.randrange(8)
        if kind == 0:
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at] = draw.choice((0, 1, 127, 128, 254, 255))
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            value = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)) % 2 ** (8 * width)
            found[at : at + width] = value.to_bytes(width, draw.choice(("big", "little")))
        elif kind == 3:
            del found[at:]
        elif kind == 4:
            del found[at : at + span]
        elif kind == 5:
            found[at:at] = found[at : at + span] * draw.randint(1, 3)
        elif kind == 6:
            found[at : at + span] = bytes(span)
        else:
            found[at : at + span] = draw.randbytes(span)
    return bytes(found)


def changed_tree(content: Any, draw: random.Random) -> Any:
    """One to three changes of a nested value: odd values, parts left out, repeated, exchanged."""
    root = {"": copy.deepcopy(content)}
    for _ in range(draw.randint(1, 3)):
        places = list(_places(root))
        parent, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind < 3:
            parent[key] = copy.deepcopy(draw.choice(NASTY))
        elif kind == 3 and parent is not root:
            del parent[key]
        elif kind == 4 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            other, name = draw.choice(places)
            with suppress(KeyError, IndexError):
                parent[key] = copy.deepcopy(other[name])
    return root[""]


def _places(node: Any) -> Any:
    """(container, key) of all values below one."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


# -------------------------------------------------------------------- kinds


def pictures() -> Subject:
    """Small pictures in every format that is read."""
    import numpy as np
    from PIL import Image

    from vistrain.data.base import images

    ramp = np.arange(24 * 32 * 3, dtype=np.int64).reshape(24, 32, 3).astype(np.uint8)
    colour, exif = Image.fromarray(ramp), Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray(ramp[..., 0].astype(np.uint16) * 257)

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    paletted = colour.convert("P")
    seeds = [
        encoded(colour, "JPEG"), encoded(colour, "JPEG", progressive=True, exif=exif),
        encoded(colour.convert("L"), "JPEG"),
        encoded(colour.convert("CMYK"), "JPEG"), encoded(colour, "PNG"), encoded(paletted, "PNG"),
        encoded(colour.convert("RGBA"), "PNG", exif=exif), encoded(grey16, "PNG"), encoded(colour, "BMP"),
        encoded(paletted, "GIF", save_all=True, append_images=[paletted]), encoded(colour, "PPM"),
        encoded(colour, "WEBP"), encoded(colour, "WEBP", lossless=True, exif=exif), encoded(colour, "TIFF"),
        encoded(colour, "TIFF", compression="tiff_lzw"), encoded(colour, "TIFF", compression="jpeg"),
        encoded(grey16, "TIFF"), encoded(colour, "TIFF", compression="tiff_adobe_deflate", exif=exif),
    ]  # fmt: skip

    def read(folder: Path) -> None:
        path = folder / "a.jpg"
        for function in (images.image_size, images.image_orientation, images.has_several, images.read_alpha):
            tolerated(function, path)
        tolerated(images.read_listed_image, path, 24, 32)
        images.read_image(path)

    return Subject(lambda draw: ("a.jpg", changed_bytes(draw.choice(seeds), draw)), read)


def annotations() -> Subject:
    """A ground truth with results, changed as values or as text."""
    import numpy as np
    from pycocotools import mask

    from vistrain.data.coco.reader import checked, read_content, targets
    from vistrain.data.detection.repair import repaired
    from vistrain.metrics.coco import evaluate_records, records_of
    from vistrain.metrics.coco_masks import encode_mask

    runs = mask.encode(np.asfortranarray(np.eye(40, dtype=np.uint8)))
    shapes: list[Any] = [
        [[1.0, 1.0, 20.0, 1.0, 20.0, 20.0]], {"size": [40, 40], "counts": [0, 10, 1590]},
        {"size": [40, 40], "counts": runs["counts"].decode()}, [],
    ]  # fmt: skip
    listed = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 40} for i in range(4)]
    same = {"bbox": [1, 2, 10.5, 20], "area": 9.5, "iscrowd": 0}
    entries = [
        {
            "id": i,
            "image_id": i % 4,
            "category_id": 1 + i % 2,
            "iscrowd": int(i == 1),
            "segmentation": shapes[i % 4],
            **same,
        }
        for i in range(8)
    ]
    truth = {"images": listed, "annotations": entries, "categories": [{"id": i, "name": f"c{i}"} for i in (1, 2)]}
    results = [{"image_id": i % 4, "category_id": 1, "bbox": [i, 2, 10, 20], "score": i / 9} for i in range(8)]

    def make(draw: random.Random) -> tuple[str, bytes]:
        content = {"truth": truth, "results": results}
        if draw.random() < 0.7:
            content = changed_tree(content, draw)
        text = json.dumps(content if isinstance(content, dict) else {}).encode()
        return "a.json", text if content != {"truth": truth, "results": results} else changed_bytes(text, draw)

    def read(folder: Path) -> None:
        path = folder / "a.json"
        content = read_content(path)
        found, said = content.get("truth"), content.get("results")
        if isinstance(found, dict):
            listing = tolerated(checked, found, path)
            if listing is not None:
                split = targets(listing, keep_empty=True, masks=True)
                for i, segmentation in enumerate(split.segmentations or []):
                    image = int(np.searchsorted(split.first, i, "right")) - 1
                    tolerated(encode_mask, "a segmentation", segmentation, *split.sizes[image].tolist())
            mended, _ = repaired(found, lambda name: (40, 40))
            tolerated(checked, mended, path)
        evaluate_records(*records_of(said, found, "results", "truth"))

    return Subject(make, read)


def shards() -> Subject:
    """The index of a shard folder, or the tar file."""
    from vistrain.data.base.shards import INDEX, Shards, ShardWriter

    with tempfile.TemporaryDirectory() as made:
        with ShardWriter(made) as writer:
            for i in range(6):
                writer.add(f"train/{i}.bin", bytes([i]) * 50)
        content = {path.name: path.read_bytes() for path in sorted(Path(made).iterdir())}

    def make(draw: random.Random) -> tuple[str, bytes]:
        name = INDEX if draw.random() < 0.8 else next(n for n in content if n != INDEX)
        data = content[name]
        is_index = name == INDEX and draw.random() < 0.7
        return name, changed_archive(data, draw) if is_index else changed_bytes(data, draw)

    def read(folder: Path) -> None:
        for name, data in content.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(data)
        found = Shards(folder)
        for position in range(len(found)):
            tolerated(found.read, position)
        found.position("train/3.bin")
        found.folders("")

    return Subject(make, read)


def checkpoints() -> Subject:
    """Weights in every format that is read, with what checkpoints of runs hold besides."""
    import numpy as np
    import torch
    from safetensors.torch import save
    from torch import nn

    from vistrain.checkpoints import load_file, load_weights

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    state = model.state_dict()
    whole = {
        "model": state,
        "epoch": 3,
        "config": {"model": {"type": "x"}, "list": [1, 2.5, None]},
        "labels": ("a", "b"),
    }

    def saved(**options: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(whole, buffer, **options)
        return buffer.getvalue()

    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    archive = io.BytesIO()
    np.savez(archive, **arrays)
    zipped = (saved(), archive.getvalue())
    plain = (
        saved(_use_new_zipfile_serialization=False),
        save(dict(state)),
        pickle.dumps({"model": arrays}, protocol=2),
    )

    def make(draw: random.Random) -> tuple[str, bytes]:
        if draw.random() < 0.5:
            return "a.pth", changed_archive(draw.choice(zipped), draw)
        return "a.pth", changed_bytes(draw.choice((*zipped, *plain)), draw)

    def read(folder: Path) -> None:
        load_weights(copy.deepcopy(model), load_file(folder / "a.pth"), where="a.pth")

    return Subject(make, read)


def changed_archive(data: bytes, draw: random.Random) -> bytes:
    """A zip archive one of whose members is changed, with a check sum that is right again."""
    members = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([n for n in members if n.endswith((".pkl", ".npy"))] or list(members))
    if draw.random() < 0.1:
        del members[name]
    else:
        members[name] = changed_bytes(members[name], draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


def tolerated(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or None for an error of ours."""
    from vistrain.errors import VistrainError

    try:
        return function(*arguments)
    except VistrainError:
        return None


KINDS: dict[str, Kind] = {
    "pictures": pictures,
    "annotations": annotations,
    "shards": shards,
    "checkpoints": checkpoints,
}


# -------------------------------------------------------------------- the child


def work(
    pipe: Connection, kinds: Mapping[str, Kind], seed: int, cases: range, keep: Path | None, limits: Limits
) -> None:
    """Run cases and say of each what was found, if anything."""
    import gc
    import resource

    from vistrain.errors import VistrainError

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    subjects = {name: kind() for name, kind in kinds.items()}
    gc.collect()  # what making them left is not given back while a case is measured
    for kind in kinds:  # so that no case pays for what is loaded at the first use
        name, data = subjects[kind].make(random.Random(0))
        run_one(subjects[kind], name, data)
    with open("/proc/self/statm") as file:
        addressed = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (addressed + ADDRESSES,) * 2)
    for case in cases:
        draw = random.Random(f"{seed}/{case}")
        kind = draw.choice(list(kinds))
        name, data = subjects[kind].make(draw)
        if keep is not None:
            (keep / f"{case}-{name}").write_bytes(data)
        pipe.send(("begins", case, kind))
        # The peak starts anew: what one case used, or the process once held and gave back, hides no other case's.
        Path("/proc/self/clear_refs").write_text("5")
        low = _peak()
        began = time.process_time()
        error = run_one(subjects[kind], name, data)
        took = time.process_time() - began
        found = "refused" if isinstance(error, VistrainError) else "read"
        if error is not None and not isinstance(error, VistrainError):
            found = "".join(traceback.format_exception(error)[-4:])
        elif error is not None and "\n" in str(error):
            found = f"an error of several lines: {error}"
        elif took > limits.seconds:
            found = f"took {took:.0f} seconds"
        elif (used := _peak() - low) > limits.memory:
            found = f"took {used / 2**30:.1f} GiB"
        pipe.send(("ends", case, found))
    pipe.send(("done", 0, ""))


def run_one(subject: Subject, name: str, data: bytes) -> BaseException | None:
    """What reading a file raises."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as made:
        (Path(made) / name).write_bytes(data)
        try:
            subject.read(Path(made))
        except Exception as error:
            return error
    return None


def _peak() -> int:
    """The most resident memory since the peak was last set back, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# -------------------------------------------------------------------- the parent


def fuzz(
    kinds: Mapping[str, Kind], seed: int, cases: range, keep: Path | None = None, limits: Limits = LIMITS
) -> tuple[dict[int, str], Counter[str]]:
    """Run cases; what was found by case, and how many ended in which way.

    The child is spawned: a forked one would begin with this process's memory, of which the machine takes back what it
    likes while a case is measured.
    """
    spawn = multiprocessing.get_context("spawn")
    found: dict[int, str] = {}
    ends: Counter[str] = Counter()
    while len(cases):
        ours, theirs = multiprocessing.Pipe()
        child = spawn.Process(target=work, args=(theirs, kinds, seed, cases, keep, limits))
        child.start()
        theirs.close()
        case, limit, kind = cases.start - 1, STARTING, ""
        try:
            while True:
                if not ours.poll(limit):
                    problem = f"{kind}: more than {limit:g} seconds"
                    break
                word, number, text = ours.recv()
                limit = WAITING * limits.seconds
                if word == "begins":
                    case, kind = number, text
                elif word == "ends":
                    ends[f"{kind} {text}" if text in ("read", "refused") else "found"] += 1
                    if text not in ("read", "refused"):
                        found[case] = f"{kind}: {text}"
                else:
                    child.join()
                    return found, ends
        except EOFError:
            child.join()
            problem = f"{kind}: ended the process (exit code {child.exitcode})"
        child.kill()
        child.join()
        if case < cases.start:
            raise RuntimeError(f"the child does not begin: {problem}")
        found[case] = problem
        ends["found"] += 1
        cases = range(case + 1, cases.stop)
    return found, ends


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", type=int, metavar="I", help="run one case again")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the changed files")
    arguments = parser.parse_args(argv)
    if arguments.keep is not None:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    cases = range(arguments.count) if arguments.only is None else range(arguments.only, arguments.only + 1)
    found, ends = fuzz({kind: KINDS[kind] for kind in arguments.kinds}, arguments.seed, cases, arguments.keep)
    for case, text in found.items():
        sys.stdout.write(f"--only {case}: {text}\n")
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(ends.items()))
    sys.stdout.write(f"{len(cases):,} cases of seed {arguments.seed}: {counts}\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
