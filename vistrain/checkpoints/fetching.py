"""Where weights are: a file, or a name that stands for one that is fetched once and kept.

    weights.pth                                  a file
    https://host/weights.pth                     fetched into torch's folder of checkpoints
    hf://owner/name[@revision]/file.safetensors  of the Hugging Face hub, kept in its cache
    timm://resnet50.a1_in1k                      what timm has under this name

`#sha256=` and 64 hexadecimal digits after any of them: the file must have this digest. A network is asked for what is
not there alone, and not for longer than a few seconds if it does not answer; what comes has limits in size and time.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import logging
import re
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import torch

from vistrain.errors import WeightsError, first_line
from vistrain.internals.waiting import NoAnswer, within
from vistrain.regular_files import open_regular

log = logging.getLogger(__name__)

OPENING = 15.0  # seconds until a server must have begun to answer, and between two pieces of what it sends
LARGEST = 16 * 2**30  # bytes of a file by URL: no network here has a tenth of it
SLOWEST = 16 * 2**10  # bytes a second that it must bring, on the whole
GRACE = 60.0  # seconds beyond
_DIGEST = re.compile(r"#sha256=([0-9a-fA-F]*)$")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/\s]+))?/(?P<file>\S+)")
KINDS = ("https://", "http://", "hf://", "timm://")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: one is a drive of Windows
_SECRET = re.compile(r"//[^/@\s]*@")
_REMEDY = "download it where there is a network, and name the file"


@dataclass(frozen=True)
class Located:
    """A file of weights.

    Attributes:
        name: as it was asked for.
        path: the file.
        revision: of the hub's repository that it is of, in full; None elsewhere.
    """

    name: str
    path: Path
    revision: str | None = None

    def identity(self) -> dict[str, Any]:
        """What tells it from others of its name, for records: name, file, revision, bytes and SHA-256.

        Raises:
            WeightsError: it cannot be read.
        """
        return {
            "name": self.name,
            "file": str(self.path),
            **({"revision": self.revision} if self.revision else {}),
            "bytes": self.path.stat().st_size if self.path.is_file() else 0,
            "sha256": sha256(self.path),
        }


def is_remote(name: str | Path) -> bool:
    """Whether a name stands for what may have to be fetched."""
    return _ADDRESS.match(str(name)) is not None


def without_digest(name: str | Path) -> str:
    """A name without what it says of its digest."""
    return _DIGEST.sub("", str(name))


def locate(name: str | Path) -> Located:
    """The file that a name stands for, fetched if it is of a network and not here yet.

    Raises:
        WeightsError: it cannot be had, or has another digest than the name says.
    """
    text = str(name)
    digest = _DIGEST.search(text)
    place = text[: digest.start()] if digest else text
    text = _SECRET.sub("//", text)  # for messages
    if digest and len(digest[1]) != 64:
        raise WeightsError(text, "sha256 has 64 hexadecimal digits", f"this has {len(digest[1])}")
    if address := _ADDRESS.match(place):
        place = address[0].lower() + place[address.end() :]
        if address[0].lower() not in KINDS:
            raise WeightsError(text, f"{address[0]} is fetched by nobody here", f"known: {', '.join(KINDS)} and paths")
    if place.startswith("timm://"):
        place = _of_timm(place)
    if place.startswith("hf://"):
        found = _of_hub(text, place)
    elif is_remote(place):
        found = Located(text, _of_url(text, place))
    else:
        found = Located(text, Path(place).expanduser())
    if is_remote(place):
        log.info("%s: %s%s", text, found.path, f", revision {found.revision}" if found.revision else "")
    if digest and (measured := sha256(found.path)) != digest[1].lower():
        problem = f"is another file: its sha256 is {measured}, {digest[1].lower()} is wanted"
        remedy = f"remove {found.path}, and it is fetched anew" if is_remote(place) else "download it again"
        raise WeightsError(str(found.path), problem, remedy)
    return found


def with_digest(name: str, digest: str) -> str:
    """A name of weights that says which digest they must have, unless it does already."""
    return name if _DIGEST.search(name) else f"{name}#sha256={digest}"


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # BinaryIO has no readinto
    except OSError as error:
        raise WeightsError(str(path), f"cannot be read ({error.strerror})", "check the path") from error


def _of_timm(place: str) -> str:
    """The name, by URL or on the hub, of the weights that timm has for a model."""
    timm: Any = importlib.import_module("timm")
    model = place.removeprefix("timm://")
    try:
        cfg = timm.models.get_pretrained_cfg(model)
    except RuntimeError:  # timm's for a tag that it does not know
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise WeightsError(place, f"timm has no weights {model!r}", "`vistrain list backbones` shows them")
    if not cfg.hf_hub_id:
        return str(cfg.url)
    owner = cfg.hf_hub_id if not cfg.hf_hub_id.endswith("/") else f"{cfg.hf_hub_id}{model}"
    return f"hf://{owner}/{cfg.hf_hub_filename or 'model.safetensors'}"


def _of_hub(name: str, place: str) -> Located:
    from vistrain.internals import hub  # nobody else needs it

    parts = _HUB.fullmatch(place)
    if parts is None:
        raise WeightsError(name, "is no file of the hub", "write hf://owner/name[@revision]/file")
    repo, revision, file = parts["repo"], parts["revision"], parts["file"]
    try:
        path = hub.cached(repo, file, revision)
    except ValueError as error:
        problem = f"is no file of the hub ({first_line(error, 160)})"
        raise WeightsError(name, problem, "write hf://owner/name[@revision]/file") from error
    if path is None:
        unreachable = ""
        try:
            with hub.fetching() as unreachable:
                path = hub.download(repo, file, revision)
        except (OSError, ValueError) as error:  # what downloads fail with, offline and online
            reason = unreachable or first_line(error, 160)
            raise WeightsError(name, f"is not in the cache and cannot be downloaded ({reason})", _REMEDY) from error
    # .../snapshots/REVISION/FILE
    below = path.parts[path.parts.index("snapshots") + 1 :] if "snapshots" in path.parts else ()
    return Located(name, path, below[0] if below else revision)


def _of_url(name: str, url: str) -> Path:
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read now
    except ValueError as error:
        raise WeightsError(name, f"is no address ({first_line(error, 160)})", "correct it") from error
    if parts.username or parts.password or not parts.hostname:
        problem = "names no host" if not parts.hostname else "has a user and a password, which are not handed on"
        raise WeightsError(name, problem, _REMEDY)
    file = Path(unquote(parts.path)).name or "weights"
    place = Path(torch.hub.get_dir()) / "checkpoints" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{file}"
    if place.is_file():
        return place
    temporary = place.with_name(f".{place.name}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "vistrain"})
        with within(OPENING, lambda: urllib.request.urlopen(request, timeout=OPENING)) as answer:
            length = answer.headers.get("Content-Length")
            _refuse_large(0 if length is None else int(length))
            with temporary.open("wb") as output:
                count = _copy(answer, output)
        if length is not None and count != int(length):
            raise OSError(f"{count} of {length} bytes came")
        temporary.replace(place)
    except (NoAnswer, OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = error.reason if type(error) is urllib.error.URLError else error  # its subclass says the code
        reason = first_line(cause, 160) if isinstance(cause, Exception) else str(cause)
        raise WeightsError(name, f"cannot be downloaded ({reason})", _REMEDY) from error
    return place


def _refuse_large(count: int) -> None:
    if count > LARGEST:
        raise OSError(f"more than {LARGEST} bytes")


def _copy(source: http.client.HTTPResponse, target: BinaryIO) -> int:
    count, began = 0, monotonic()
    while block := source.read1(2**20):  # what is there: `read` would wait for all of it
        target.write(block)
        count += len(block)
        _refuse_large(count)
        seconds = monotonic() - began
        if seconds > GRACE + count / SLOWEST:
            raise OSError(f"{count} bytes in {seconds:.0f} seconds, which is too slow")
    return count
