"""The child of `test_corpus_hostile.py`: does one job after another, each under limits, and says what came of each.

A job is a line of JSON on its input: `[name, kind, path]`. The answer is a line of JSON: the name, what happened
(`error` and its text, or `read`), processor seconds, and MiB of memory above the start at the peak.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from vistrain.checkpoints import load_weights
from vistrain.data.base.images import image_size, read_image
from vistrain.data.base.shards import Shards
from vistrain.data.classification.sources import ImageFile
from vistrain.data.coco.reader import read_coco
from vistrain.data.restoration.pixels import read_pixels
from vistrain.errors import VistrainError

SECONDS, MEMORY = 20, 3 * 2**29  # of one job: a job that wants more fails alone

JOBS: dict[str, Callable[[str], Any]] = {
    "image": read_image,
    "pixels": lambda path: read_pixels(Path(path)),
    "smaller": lambda path: ImageFile(Path(path)).decode(8.0),
    "size": image_size,
    "weights": lambda path: load_weights(nn.Linear(3, 3), path),
    "annotations": read_coco,
    "shards": Shards,
}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def do(name: str, kind: str, path: str) -> dict[str, Any]:
    """One job."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = _status("VmRSS"), time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 2 * MEMORY, resource.RLIM_INFINITY))
    try:
        JOBS[kind](path)
        answer = {"what": "read", "text": ""}
    except VistrainError as error:
        answer = {"what": "error", "text": str(error)}
    except BaseException as error:
        answer = {"what": type(error).__name__, "text": str(error)[:300]}
    seconds, peak = time.process_time() - started, _status("VmHWM") - before
    return {"name": name, **answer, "seconds": round(seconds, 2), "megabytes": peak >> 20}


if __name__ == "__main__":
    for job in sys.stdin:
        sys.stdout.write(json.dumps(do(*json.loads(job))) + "\n")
        sys.stdout.flush()
