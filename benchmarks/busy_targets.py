"""Measures samplers on cores that other processes keep busy, and says which targets are met.

    python benchmarks/busy_targets.py                     one image of three models: some minutes on 2 cores
    python benchmarks/busy_targets.py --baseline FOLDER   quiet cores, too, against a built checkout of another commit
    python benchmarks/busy_targets.py --quick             tiny models: tries the script; its figures mean nothing

The load is a process for each core that does nothing but loop. There, all threads take turns with one thread. On quiet
cores, this package and the baseline's take turns, each in a process of its own. Leave the machine alone meanwhile.
Writes FOLDER/<processor>-<isa>-busy.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from targets import Target, options, ratio, write

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.measure import interleaved
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.sampler import Sampler

TINY: dict[str, Any] = dict(hidden_channels=32, n_layers=1)
MODELS: dict[str, dict[str, Any]] = {
    "Row LSTM": dict(family=PixelRNN, kind="row_lstm"),
    "Diagonal BiLSTM": dict(family=PixelRNN, kind="diagonal_bilstm"),
    "default PixelCNN": {},
}
WORKER = "--draw-for-another-process"


def main() -> int:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="a checkout with its native part built")
    parser.add_argument(WORKER, dest="model", choices=MODELS, help="what the script starts to take turns")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.model:
        return draw_when_asked(args.model, args.quick)
    folder = output_folder(args.out)
    found = report.machine()
    found_targets = list(targets(args))
    write(folder, "busy", "Targets of samplers on busy cores", found, args.quick, found_targets, "", {})
    return int(any(target.verdict() == "no" for target in found_targets))


def targets(args: Any) -> Iterator[Target]:
    for name in MODELS:
        if args.baseline:
            yield on_quiet_cores(name, args)
        yield on_busy_cores(name, args)


def drawing(name: str, quick: bool) -> Callable[[], object]:
    config = {**MODELS[name], **(TINY if quick and MODELS[name] else {})}
    side = 6 if quick else 32
    sampler = Sampler(random_model(**config), (3, side, side))
    noise = torch.rand(1, *sampler.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lambda: sampler.sample(1, noise=noise, runtime="cpu")


def on_busy_cores(name: str, args: Any) -> Target:
    draw = drawing(name, args.quick)

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        draw()

    with busy_cores():
        seconds = interleaved({"one": lambda: on(1), "all": lambda: on(args.threads)}, args.repeats)
    torch.set_num_threads(args.threads)
    value, values = ratio(seconds["all"], seconds["one"], 1)
    what = f"{name}, busy cores: {args.threads} threads, of the time of one"
    return Target(what, 1.3, 1.1, value, values, "{:.2f}".format, at_most=True)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in load:
            process.kill()
            process.wait()


def on_quiet_cores(name: str, args: Any) -> Target:
    here = Path(__file__).parents[1]
    with drawn_elsewhere(name, args, here) as new, drawn_elsewhere(name, args, args.baseline.resolve()) as old:
        pairs = []
        for turn in range(args.repeats):
            pairs.append((new(), old()) if turn % 2 else (old(), new())[::-1])
    value, values = ratio([a for a, _ in pairs], [b for _, b in pairs], 1)
    what = f"{name}, quiet cores: of the baseline's time"
    return Target(what, 1.03, 1.0, value, values, "{:.3f}".format, at_most=True)


@contextlib.contextmanager
def drawn_elsewhere(name: str, args: Any, checkout: Path) -> Iterator[Callable[[], float]]:
    """A process that draws with this checkout's package, when it is called -> how many seconds that took."""
    command = [sys.executable, __file__, WORKER, name, "--threads", str(args.threads)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with subprocess.Popen(
        [*command, *(["--quick"] if args.quick else [])],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout
        used = Path(answers.readline().strip())
        if checkout not in used.parents:
            raise SystemExit(f"{used} was imported, and not the package in {checkout}")

        def seconds() -> float:
            requests.write("draw\n")
            requests.flush()
            return float(answers.readline())

        yield seconds
        requests.close()


def draw_when_asked(name: str, quick: bool) -> int:
    draw = drawing(name, quick)
    draw()
    print(sys.modules["pixelcnn_fast"].__file__, flush=True)
    for _ in sys.stdin:
        draw()  # threads and caches are warm then
        start = time.perf_counter()
        draw()
        print(time.perf_counter() - start, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
