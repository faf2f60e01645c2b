"""Of huggingface_hub, which timm fetches weights with: whether it asks the network at all.

Without a network it tries for most of a minute before it says so, and gives no setting for that; told that it is
offline, it looks into its cache alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache

from vistrain.internals.waiting import within

__all__ = ["cached", "download", "fetching"]

PATIENCE = 5.0  # seconds, for an answer of the hub
SILENCE = 15.0  # seconds, that a download of another host may pause


@contextmanager
def fetching() -> Iterator[str]:
    """Inside, weights are fetched: of the hub from the cache alone if it does not answer, and with an end to waiting.

    Yields:
        why it does not answer; empty: it does, or was told to be offline before.
    """
    offline, silence = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    reason = "" if offline else _unreachable()
    constants.HF_HUB_OFFLINE = offline or bool(reason)
    socket.setdefaulttimeout(silence or SILENCE)
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(silence)


def cached(repo: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository in the hub's cache, which no network is asked for; None: it is not there."""
    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def download(repo: str, file: str, revision: str | None) -> Path:
    """The same, fetched; inside `fetching`.

    Raises:
        OSError, ValueError: it cannot be.
    """
    return Path(hf_hub_download(repo, file, revision=revision))


def _unreachable() -> str:
    """Why the hub does not answer; empty: it does, whatever it says."""
    try:
        within(2 * PATIENCE, lambda: get_session().head(constants.ENDPOINT, timeout=PATIENCE))
    except Exception as error:  # its client's library is another one from version to version
        return f"{constants.ENDPOINT} does not answer: {(str(error).splitlines() or [type(error).__name__])[0][:100]}"
    return ""
