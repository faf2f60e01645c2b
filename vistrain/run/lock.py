"""One run in one folder: a lock that names its owner, and that outlives no owner."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from vistrain import processes
from vistrain.errors import ConfigError

log = logging.getLogger(__name__)

NAME = ".lock"
BEAT = 10.0  # seconds between two signs of life, for those on other machines
WATCH = 35.0  # seconds that these watch for one


@dataclass(frozen=True)
class Owner:
    """The process that writes to a run folder.

    Attributes:
        host: its machine.
        space: its process numbers' namespace: containers may share the name of a machine, and not its processes.
        process: its number there.
        started: when it started, as the system counts; a number may be given again.
        since: when it took the folder, for people.
    """

    host: str
    space: int
    process: int
    started: int
    since: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        started = processes.started_at(os.getpid()) or 0
        return cls(socket.gethostname(), _space(), os.getpid(), started, since)

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Whom a lock names; None if there is none, or none that can be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def is_gone(self, path: Path) -> bool:
        """Whether the owner has ended without letting go of the lock at `path`."""
        if (self.host, self.space) == (socket.gethostname(), _space()):
            return processes.started_at(self.process) != self.started
        log.info("%s is held by process %d on %s: watching for a sign of life", path.parent, self.process, self.host)
        return not _beats(path)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, the folder is this run's; only the first of its processes asks.

    The lock of a process that has ended is taken over: on this machine at once, from another one if `WATCH` seconds
    bring no sign of life. Where no lock can be written, the run goes on without, and says so.

    Args:
        folder: made if needed, and gone again if nothing was left in it: a run was refused.

    Raises:
        ConfigError: another process writes to it, or it cannot be made.
    """
    if not processes.is_first():
        yield
        return
    path, owner = folder / NAME, Owner.here()
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{folder} cannot be made: {error.strerror}"
        raise ConfigError("run.folder", problem[:300], "name another one") from error
    try:
        _take(path, owner)
    except OSError as error:
        log.warning("%s could not be written (%s): nothing keeps another run from this folder", path, error.strerror)
        yield
        return
    stop = threading.Event()
    threading.Thread(target=_beat, args=(path, stop), daemon=True, name="lock").start()
    try:
        yield
    finally:
        stop.set()
        if Owner.read(path) == owner:
            with suppress(OSError):  # of folders: not empty
                path.unlink(missing_ok=True)
                for place in made:
                    place.rmdir()


def _take(path: Path, owner: Owner) -> None:
    """Make the lock, which only one process can; that of an ended one is moved away, which only one can, too."""
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _remove_stale(path)
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(owner)))
        return


def _remove_stale(path: Path) -> None:
    there = Owner.read(path)
    if there is None:
        time.sleep(0.2)  # it may just be written, or be gone
        there = Owner.read(path)
    if there is not None and not there.is_gone(path):
        raise ConfigError(
            "run.folder",
            f"process {there.process} on {there.host} writes to {path.parent} since {there.since}",
            "wait for its end, stop it, or give this run another run.folder",
        )
    aside = path.with_name(f"{NAME}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if Owner.read(aside) != there:  # another process was faster, and this is its lock
            with suppress(OSError):
                os.link(aside, path)
        elif there is not None:
            log.info("the lock of process %d on %s, which has ended, is taken over", there.process, there.host)
        aside.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):
            os.utime(path)


def _beats(path: Path) -> bool:
    """Whether a lock's time changes within `WATCH` seconds; no clock is compared with another machine's."""
    first, until = _time_of(path), time.monotonic() + WATCH
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCH / 4))
        if _time_of(path) != first:
            return True
    return False


def _time_of(path: Path) -> int:
    """Read through an open file: network file systems then ask their server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _space() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # no Linux
        return 0
