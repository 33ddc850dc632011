"""The live demo's server: what it answers, what it refuses, and what a newer stroke does to one that waits."""

import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import Sampler, checkpoint
from pixelcnn_fast.bench.workload import random_model
from tests.cli.common import run
from tests.processes import PATIENCE, TINY

for package in ("starlette", "uvicorn", "websockets", "httpx2"):
    pytest.importorskip(package)

from starlette.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402

from pixelcnn_fast.web import server  # noqa: E402
from pixelcnn_fast.web.server import IMAGES, KNOWN, SIZE, Stroke  # noqa: E402

ROW = [0, 7, 255, *range(25)]


def message(id: int = 0, **changes: Any) -> str:
    stroke = dict(id=id, upper=ROW * KNOWN, label=None, temperature=0.9, seed=0)
    return json.dumps({**stroke, **changes})


def client(complete: Callable[[Stroke], Tensor]) -> TestClient:
    return TestClient(server.application(complete))


def dark(stroke: Stroke) -> Tensor:
    return torch.zeros(IMAGES, 1, SIZE, SIZE, dtype=torch.uint8)


def read(answer: bytes) -> tuple[int, Tensor]:
    """-> the id, and levels, uint8 [IMAGES, 1, SIZE, SIZE]."""
    levels = torch.frombuffer(bytearray(answer[4:]), dtype=torch.uint8)
    return int.from_bytes(answer[:4], "little"), levels.view(IMAGES, 1, SIZE, SIZE)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(random_model(n_classes=10, **TINY), (1, SIZE, SIZE))


@pytest.mark.parametrize(("label", "labels"), [(None, [*range(10), *range(6)]), (3, [3] * 16)])
def test_a_stroke_is_completed_as_a_sampler_completes_it(
    sampler: Sampler, label: int | None, labels: list[int]
) -> None:
    with client(lambda stroke: server.completions(sampler, stroke)).websocket_connect("/strokes") as page:
        page.send_text(message(2**32 - 1, label=label, temperature=0.5, seed=9))
        id, images = read(page.receive_bytes())
    assert id == 2**32 - 1 and torch.equal(images[:, :, :KNOWN], torch.tensor(ROW).expand(16, 1, KNOWN, SIZE))
    known = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    known[:14] = True
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(images, sampler.complete(images, known, torch.tensor(labels), 0.5, generator))


def test_a_newer_stroke_supersedes_one_that_waits() -> None:
    begun, release = threading.Event(), threading.Event()

    def complete(stroke: Stroke) -> Tensor:
        begun.set()
        assert release.wait(PATIENCE)
        return dark(stroke)

    with client(complete).websocket_connect("/strokes") as page:
        page.send_text(message(1))
        assert begun.wait(PATIENCE)
        for id in (2, 3, 4):
            page.send_text(message(id))
        page.send_text(
            ""
        )  # whose answer comes while the first stroke is completed: all others have been read
        assert "error" in page.receive_json()
        release.set()
        assert [read(page.receive_bytes())[0] for _ in range(2)] == [1, 4]
        page.send_text(message(5))
        assert read(page.receive_bytes())[0] == 5


BAD = {
    "": "JSON",
    "[" * 9000: "JSON",
    "[1]": "id, label, seed, temperature, upper",
    json.dumps({"id": 1}): "id, label, seed, temperature, upper",
    message(-1): "id",
    message(seed=2**32): "seed",
    message(seed=True): "seed",
    message(label=10): "label",
    message(label="3"): "label",
    message(temperature="hot"): "temperature",
    message(temperature=-1): "temperature",
    message(temperature=float("nan")): "temperature",
    message(upper=None): "upper",
    message(upper=ROW): "392",
    message(upper=[256] * 392): "255",
    message(upper=[0.5] * 392): "255",
}


def test_bad_messages_are_told_what_is_wrong_and_the_next_is_answered() -> None:
    with client(dark).websocket_connect("/strokes") as page:
        for text, told in BAD.items():
            page.send_text(text)
            assert told in page.receive_json()["error"]
        page.send_bytes(b"\0")
        assert "JSON" in page.receive_json()["error"]
        page.send_text(message(1))
        assert read(page.receive_bytes())[0] == 1


def test_a_failure_is_told_and_the_next_stroke_is_answered() -> None:
    def complete(stroke: Stroke) -> Tensor:
        if stroke.id == 0:
            raise MemoryError("for 16 images")
        return dark(stroke)

    with client(complete).websocket_connect("/strokes") as page:
        page.send_text(message(0))
        assert page.receive_json() == {"error": "MemoryError: for 16 images"}
        page.send_text(message(1))
        assert read(page.receive_bytes())[0] == 1


def test_only_the_demo_s_own_page_may_send_strokes() -> None:
    own, others = {"origin": "http://testserver"}, {"origin": "http://example.org"}
    with client(dark).websocket_connect("/strokes", headers=own) as page:
        page.send_text(message(1))
        assert read(page.receive_bytes())[0] == 1
    with pytest.raises(WebSocketDisconnect), client(dark).websocket_connect("/strokes", headers=others):
        pass


def test_the_page_fetches_nothing_from_elsewhere() -> None:
    page = client(dark).get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text and "src=" not in page.text


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "pixelcnn_fast.web.server")
    monkeypatch.delattr("pixelcnn_fast.web.server")
    assert run("demo", "--web", "--no-browser") == 2
    assert capsys.readouterr().err == "error: --web needs uvicorn: pip install 'pixelcnn_fast[web]'\n"


def test_an_address_that_can_t_be_had_is_named(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("demo", "--web", "--no-browser", "--port", port) == 2
    assert f"port {port} of 127.0.0.1 is in use: name another by --port" in capsys.readouterr().err
    assert run("demo", "--web", "--no-browser", "--host", "192.0.2.1") == 2
    assert "port 8028 of 192.0.2.1 can't be listened at" in capsys.readouterr().err


def test_the_command_shows_the_page_and_ends_with_the_server(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(checkpoint, "load", lambda name: happened.append(name))
    monkeypatch.setattr(server, "Sampler", lambda model, shape: sampler)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: happened.append("served"))
    monkeypatch.setattr("webbrowser.open", happened.append)
    assert run("demo", "--web", "--port", 0) == 0
    address = capsys.readouterr().out.partition(" ")[0]
    assert happened == ["mnist", address, "served"] and address.startswith("http://127.0.0.1:")
    assert run("demo", "--web", "--port", 0, "--no-browser") == 0 and happened[3:] == ["mnist", "served"]
