"""``demo``: draws digits from the packaged model, and compares the samplers on it; or a page that completes yours."""

from __future__ import annotations

import argparse
import time
import webbrowser
from pathlib import Path

import torch

from pixelcnn_fast import checkpoint, pictures
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder, path, whole
from pixelcnn_fast.bench.measure import compare
from pixelcnn_fast.bench.streams import complain, say, watched
from pixelcnn_fast.bench.workload import Workload, workload
from pixelcnn_fast.cli.bench import available, finish
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.sampler import Sampler

PICTURE = "digits.png"
SIZE = 28
ROWS = 8
TEMPERATURE = 0.9  # of the picture, for fewer stray strokes
NAIVE_SECONDS = 75  # longer, it draws some pixels only
NAIVE_PIXELS = 64
EPILOG = """examples:
  python -m pixelcnn_fast demo --quick --out demo
  python -m pixelcnn_fast demo --web                  completes the digits that you begin, in the browser
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "draw digits from the packaged model, and compare the samplers on it"
    parser = commands.add_parser("demo", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    add("--out", type=path, default=Path("out"), metavar="FOLDER", help="where the files go")
    add("--quick", action="store_true", help="take a few seconds: the naive sampler draws only a few pixels")
    add("--web", action="store_true", help="serve a page instead, which completes the digits that you begin")
    add("--host", default="127.0.0.1", help="where the page is served; 0.0.0.0 is every network")
    add("--port", type=whole(0, 65535), default=8028, help="0 takes a free one")
    add("--no-browser", action="store_true", help="do not open the page")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return serve(args.host, args.port, not args.no_browser) if args.web else compare_samplers(args)


def serve(host: str, port: int, is_shown: bool) -> int:
    """Serves the page until a signal comes."""
    try:
        from pixelcnn_fast.web import server
    except ModuleNotFoundError as error:
        needed = f"--web needs {error.name}: pip install 'pixelcnn_fast[web]'"
        raise RuntimeError(needed) from error
    with server.listening(host, port) as socket:
        served = server.server(server.prepared())
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{socket.getsockname()[1]}"
        say(f"{address} completes the digits that you begin; Ctrl-C ends it")
        if is_shown:
            webbrowser.open(address)
        served.run(sockets=[socket])
    return 0


def compare_samplers(args: argparse.Namespace) -> int:
    folder = output_folder(args.out, PICTURE, *report.files("comparison"))
    if native() is None:
        complain(f"without the compiled sampler: {why_not_native()}")
    model = checkpoint.load("mnist")

    sampler = Sampler(model, (1, SIZE, SIZE))
    labels = torch.arange(10).repeat(ROWS)
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    digits = sampler.sample(len(labels), labels, TEMPERATURE, generator, progress=watched())
    seconds = time.perf_counter() - start
    pictures.save_png(pictures.image_grid(digits, columns=10, scale=2), folder / PICTURE)
    say(
        f"{folder / PICTURE}: {len(digits)} digits, one class per column, at temperature {TEMPERATURE}, "
        f"in {report.duration(seconds)}\n"
    )

    found = report.machine()
    work = workload(model, 4 if args.quick else 10, SIZE, SIZE)
    whole = not args.quick and _forward_seconds(work) * work.pixels <= NAIVE_SECONDS
    contestants = [name for name in available() if name != "cpu-bf16"]
    pixels = 0 if whole else 8 if args.quick else NAIVE_PIXELS
    rounds = 1 if whole else None
    comparison = compare(work, contestants, 2 if args.quick else 3, pixels, rounds, progress=watched())
    title = f"Sampling {SIZE}x{SIZE} digits, same noise, same images"
    return finish([comparison], folder, "comparison", title, found)


@torch.no_grad()
def _forward_seconds(work: Workload) -> float:
    images = torch.zeros(work.noise.shape, dtype=torch.uint8)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work.model(images, work.labels)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
