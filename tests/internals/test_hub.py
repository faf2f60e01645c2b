"""What `internals.hub` relies on: a hub that does not answer is not asked again."""

from __future__ import annotations

import inspect
import socket
from typing import Any

import pytest
from huggingface_hub import constants, file_download, get_session

from vistrain.backbones import create
from vistrain.errors import WeightsError
from vistrain.internals import hub


class Deaf:
    """A client without a network."""

    def head(self, url: str, timeout: float) -> Any:
        raise OSError("no route to host")


def test_the_names_exist() -> None:
    assert isinstance(constants.HF_HUB_OFFLINE, bool)
    assert constants.ENDPOINT.startswith("http")
    assert "timeout" in inspect.signature(type(get_session()).head).parameters or hasattr(get_session(), "request")
    assert callable(file_download.hf_hub_download)


def test_a_hub_that_does_not_answer_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(hub, "get_session", Deaf)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.fetching() as reason:
        assert reason.endswith("does not answer: no route to host")
        assert constants.HF_HUB_OFFLINE
        assert socket.getdefaulttimeout() == hub.SILENCE
    assert not constants.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() is None
    with pytest.raises(WeightsError, match=r"timm/resnet10t.c3_in1k is not in the cache .* does not answer: no route"):
        create._build_pretrained("resnet10t.c3_in1k", {})


def test_one_that_answers_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deaf, "head", lambda self, url, timeout: None)
    monkeypatch.setattr(hub, "get_session", Deaf)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub.fetching() as reason:
        assert reason == ""
        assert not constants.HF_HUB_OFFLINE
