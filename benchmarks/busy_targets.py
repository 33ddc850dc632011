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
from drawing_when_asked import MODELS, drawing
from targets import Target, options, ratio, write

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.measure import interleaved


def main() -> int:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="a checkout with its native part built")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
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
    script = Path(__file__).with_name("drawing_when_asked.py")
    with subprocess.Popen(
        [sys.executable, str(script), name, str(args.threads), *(["quick"] if args.quick else [])],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        requests, answers = process.stdin, process.stdout
        used = answers.readline().strip()
        if checkout not in Path(used).parents:
            why = f"{used} was imported, and not it" if used else "it failed, see above"
            raise SystemExit(f"the package in {checkout} can't be measured: {why}")

        def seconds() -> float:
            requests.write("draw\n")
            requests.flush()
            return float(answers.readline())

        yield seconds
        requests.close()


if __name__ == "__main__":
    sys.exit(main())
