"""Of huggingface_hub, which timm fetches weights with: whether it asks the network at all.

Without a network it tries for most of a minute before it says so, and gives no setting for that; told that it is
offline, it looks into its cache alone.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session

__all__ = ["fetching"]

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


def _unreachable() -> str:
    """Why the hub does not answer; empty: it does, whatever it says."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # its client's library is another one from version to version
        return f"{constants.ENDPOINT} does not answer: {(str(error).splitlines() or [type(error).__name__])[0][:100]}"
    return ""
