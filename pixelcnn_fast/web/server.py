"""Serves the page, and answers its strokes over a WebSocket. It needs the extra ``web``.

The page sends a stroke as JSON text, and gets 4 bytes, the stroke's id, then the completions' levels, uint8
[16, 28, 28]; or JSON with an error, if the text is no stroke. A stroke that waits is dropped when a newer one
comes, so ids in the answers ascend, with gaps.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib import resources
from urllib.parse import urlsplit

import torch
import uvicorn
import websockets  # noqa: F401 (without it, uvicorn serves no WebSocket)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from torch import Tensor

from pixelcnn_fast import checkpoint
from pixelcnn_fast.sampler import Sampler

SIZE = 28
KNOWN = 14  # rows
IMAGES = 16
CLASSES = 10
LARGEST_MESSAGE = 1 << 14  # bytes; a stroke takes some 2,000
FAREWELL = 1  # seconds that open pages are given when the server ends


@dataclass(frozen=True)
class Stroke:
    """id: 0…2³²−1; upper: the upper rows' levels, 0…255, row by row; label: None for each class in turn."""

    id: int
    upper: list[int]
    label: int | None
    temperature: float
    seed: int

    @staticmethod
    def parsed(text: str | None) -> Stroke:
        """Raises ValueError, which says what is wrong."""
        try:
            found = json.loads(text or "")
        except (ValueError, RecursionError):
            raise ValueError("the message is not JSON text") from None
        names = {field.name for field in fields(Stroke)}
        if not isinstance(found, dict) or found.keys() != names:
            raise ValueError(f"the message is not an object with {', '.join(sorted(names))}")
        stroke = Stroke(**found)
        for name in ("id", "seed"):
            if not _is_whole(found[name], 2**32):
                raise ValueError(f"{name} is not a whole number from 0 to 2^32 - 1")
        upper, size = stroke.upper, KNOWN * SIZE
        if not isinstance(upper, list) or len(upper) != size or not all(_is_whole(x, 256) for x in upper):
            raise ValueError(f"upper is not a list of {size} levels from 0 to 255")
        if stroke.label is not None and not _is_whole(stroke.label, CLASSES):
            raise ValueError(f"label is neither null nor a class from 0 to {CLASSES - 1}")
        if type(stroke.temperature) not in (int, float) or not 0 <= stroke.temperature <= 100:
            raise ValueError("temperature is not a number from 0 to 100")
        return stroke


def _is_whole(value: object, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def completions(sampler: Sampler, stroke: Stroke) -> Tensor:
    """-> uint8 [IMAGES, 1, SIZE, SIZE], alike in their upper rows; the same seed gives the same noise."""
    images = torch.zeros(IMAGES, 1, SIZE, SIZE, dtype=torch.uint8)
    images[:, 0, :KNOWN] = torch.tensor(stroke.upper, dtype=torch.uint8).view(KNOWN, SIZE)
    known = (torch.arange(SIZE) < KNOWN)[:, None].expand(SIZE, SIZE)
    turns = torch.arange(IMAGES) % CLASSES
    labels = turns if stroke.label is None else torch.full_like(turns, stroke.label)
    generator = torch.Generator().manual_seed(stroke.seed)
    return sampler.complete(images, known, labels, float(stroke.temperature), generator)


def application(complete: Callable[[Stroke], Tensor]) -> Starlette:
    """The page at / and the strokes at /strokes, which one thread completes, for all pages."""
    page = resources.files(__package__).joinpath("index.html").read_text(encoding="utf-8")
    thread = ThreadPoolExecutor(1)

    def answer(stroke: Stroke) -> bytes:
        return stroke.id.to_bytes(4, "little") + complete(stroke).numpy().tobytes()

    async def index(request: Request) -> HTMLResponse:
        return HTMLResponse(page)

    async def strokes(page: WebSocket) -> None:
        origin = page.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != page.headers["host"]:
            await page.close()  # another site's page in the same browser
            return
        await page.accept()
        newest: asyncio.Queue[Stroke] = asyncio.Queue(1)
        answering = asyncio.create_task(_answer(page, newest, answer, thread))
        with suppress(WebSocketDisconnect):  # it left before it was told of an error
            while (message := await page.receive())["type"] == "websocket.receive":
                try:
                    stroke = Stroke.parsed(message.get("text"))
                except ValueError as error:
                    await page.send_json({"error": str(error)})
                    continue
                if newest.full():
                    newest.get_nowait()
                newest.put_nowait(stroke)
        answering.cancel()

    return Starlette(routes=[Route("/", index), WebSocketRoute("/strokes", strokes)])


async def _answer(
    page: WebSocket,
    newest: asyncio.Queue[Stroke],
    answer: Callable[[Stroke], bytes],
    thread: ThreadPoolExecutor,
) -> None:
    with suppress(WebSocketDisconnect):
        while True:
            stroke = await newest.get()
            try:
                found = await asyncio.get_running_loop().run_in_executor(thread, answer, stroke)
            except Exception as error:
                await page.send_json({"error": f"{type(error).__name__}: {error}"})
            else:
                await page.send_bytes(found)


def listening(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; port 0 takes a free one. Raises OSError, which names the address."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        taken = "is in use: name another by --port, or 0 for a free one"
        why = taken if error.errno == errno.EADDRINUSE else f"can't be listened at: {error.strerror}"
        raise OSError(f"port {port} of {host} {why}") from error


def prepared() -> Callable[[Stroke], Tensor]:
    """What completes strokes with the packaged model, as fast as it will be."""
    sampler = Sampler(checkpoint.load("mnist"), (1, SIZE, SIZE))
    sampler.prepare(IMAGES)
    return lambda stroke: completions(sampler, stroke)


def server(complete: Callable[[Stroke], Tensor]) -> uvicorn.Server:
    """``run(sockets=[…])`` serves until a signal, or until ``should_exit`` is set."""
    return uvicorn.Server(
        uvicorn.Config(
            application(complete),
            log_level="warning",
            ws_max_size=LARGEST_MESSAGE,
            timeout_graceful_shutdown=FAREWELL,
        )
    )
