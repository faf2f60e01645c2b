"""Weights by URL, of the hub and of timm: fetched once, never when they are there, refused in one line."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import constants

from vistrain.checkpoints import fetching, load_weights, locate
from vistrain.errors import WeightsError
from vistrain.internals import hub
from vistrain.internals.waiting import NoAnswer, within

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server on this machine, and the paths that it was asked for; `/cut` breaks off."""
    asked: list[str] = []
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "served.pth")
    data = (tmp_path / "served.pth").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404 if "absent" in self.path else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100] if "cut" in self.path else data)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_is_fetched_once(served: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = f"{served[0]}/some/net.pth?x=1", served[1]
    net = torch.nn.Linear(2, 2)
    load_weights(net, url)
    assert locate(url).path.name.endswith("-net.pth")
    assert asked == ["/some/net.pth?x=1"]
    assert torch.equal(net.weight, torch.load(tmp_path / "served.pth")["weight"])


@pytest.mark.parametrize(("path", "said"), [("absent.pth", "404"), ("cut.pth", "of [0-9]+ bytes came|IncompleteRead")])
def test_what_does_not_come_whole_leaves_nothing(
    served: tuple[str, list[str]], tmp_path: Path, path: str, said: str
) -> None:
    with pytest.raises(WeightsError, match=rf"cannot be downloaded \(.*({said}).*\) - download it where") as refusal:
        locate(f"{served[0]}/{path}")
    assert "\n" not in str(refusal.value)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_downloads_end(served: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bytes, whether the server says them or not, and in time, by a clock that runs fast."""

    def refused(said: str) -> None:
        with pytest.raises(WeightsError, match=rf"cannot be downloaded \({said}\) - download it where") as refusal:
            locate(f"{served[0]}/net.pth")
        assert "\n" not in str(refusal.value)
        assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "LARGEST", 100)
        refused("more than 100 bytes")
    with monkeypatch.context() as patch:
        hours = iter(range(0, 10**6, 3600))
        patch.setattr(fetching, "monotonic", lambda: next(hours))
        refused(r"[1-9]\d* bytes in 3600 seconds, which is too slow")
    monkeypatch.setattr(fetching, "LARGEST", 150)  # of a server that does not say how much will come
    with pytest.raises(OSError, match="more than 150 bytes"):
        fetching._copy(cast(Any, BytesIO(bytes(200))), BytesIO())


def test_nobody_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(.*refused\)"):
        locate("http://127.0.0.1:1/net.pth")


def test_a_host_that_is_silent_is_not_waited_for() -> None:
    never = threading.Event()
    with pytest.raises(NoAnswer, match=r"no answer within 0\.01 seconds"):
        within(0.01, never.wait)
    never.set()
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    assert fetching.OPENING + 2 * hub.PATIENCE <= 25
    assert max(fetching.OPENING, 2 * hub.PATIENCE) < 20  # either is asked, not both


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one file, and a hub that must not be asked."""
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISION)
    (repo / "snapshots" / REVISION).mkdir(parents=True)
    torch.save(torch.nn.Linear(2, 2).state_dict(), repo / "snapshots" / REVISION / "net.pth")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_unreachable", lambda: "nobody answers")
    return repo / "snapshots" / REVISION / "net.pth"


@pytest.mark.parametrize("at", ["", f"@{REVISION}", "@main"])
def test_a_file_of_the_hub_that_is_there(cache: Path, at: str) -> None:
    found = locate(f"hf://owner/name{at}/net.pth")
    assert (found.path, found.revision) == (cache, REVISION)
    identity = found.identity()
    assert identity["sha256"] == hashlib.sha256(cache.read_bytes()).hexdigest()
    assert identity["revision"] == REVISION
    assert identity["bytes"] == cache.stat().st_size


@pytest.mark.usefixtures("cache")
def test_a_file_of_the_hub_that_is_not() -> None:
    with pytest.raises(WeightsError, match=r"hf://owner/name/other\.pth: is not in the cache .*\(nobody answers\)"):
        locate("hf://owner/name/other.pth")
    with pytest.raises(WeightsError, match=r"write hf://owner/name\[@revision\]/file"):
        locate("hf://owner")
    with pytest.raises(WeightsError, match=r"timm has no weights 'resnet50\.nobody'"):
        locate("timm://resnet50.nobody")


def test_timms_names_are_files_of_the_hub() -> None:
    assert fetching._of_timm("timm://resnet50.tv_in1k") == "hf://timm/resnet50.tv_in1k/model.safetensors"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://user:secret@example.com/x.pth", "has a user and a password, which are not handed on"),
        ("https://user:secret@example.com:port/x.pth", "is no address"),
        ("https://[::1", "is no address"),
        ("https:///x.pth", "names no host"),
        ("hf://owner/../../etc/passwd", "is no file of the hub"),
        ("hf://-owner-/na..me/file", "is no file of the hub"),
        ("ftp://example.com/x.pth", "ftp:// is fetched by nobody here - known: https://, http://, hf://, timm:// and"),
        ("s3://bucket/x.pth", "s3:// is fetched by nobody here"),
    ],
)
def test_addresses_that_are_none_end_in_one_line(name: str, said: str) -> None:
    with pytest.raises(WeightsError) as caught:
        locate(name)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_kinds_of_addresses_are_written_in_any_case() -> None:
    with pytest.raises(WeightsError, match="timm has no weights 'nothing'"):
        locate("TIMM://nothing")


def test_digests_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    load_weights(torch.nn.Linear(2, 2), f"{path}#sha256={right}")
    with pytest.raises(WeightsError, match=rf"is another file: its sha256 is {right}, {'0' * 64} is wanted - download"):
        load_weights(torch.nn.Linear(2, 2), f"{path}#sha256={'0' * 64}")
    with pytest.raises(WeightsError, match="sha256 has 64 hexadecimal digits - this has 4"):
        locate(f"{path}#sha256=abcd")
    assert fetching.with_digest("a", right) == f"a#sha256={right}"
    assert fetching.with_digest(f"a#sha256={right}", "other") == f"a#sha256={right}"
