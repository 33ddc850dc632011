"""Samplers on cores that other processes keep busy: one image of three models.

The load is a process for each core that does nothing but loop. There, all threads take turns with one thread. With
--baseline FOLDER, a built checkout of another commit, they are also measured on quiet cores: this package and the
baseline's take turns, each in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from drawing_when_asked import MODELS, drawing
from measuring import Cases, Found, Settings, Target, busy_cores, interleaved, ratio

TITLE = "Targets of samplers on busy cores"


def cases(how: Settings) -> Cases:
    if how.baseline is None:
        print("not measured: quiet cores, against a built checkout of another commit (--baseline FOLDER)")
    return {f"busy: {name}": partial(measured, name, how) for name in MODELS}


def measured(name: str, how: Settings) -> Found:
    if how.baseline:
        yield on_quiet_cores(name, how, how.baseline.resolve())
    yield on_busy_cores(name, how)


def on_busy_cores(name: str, how: Settings) -> Target:
    draw = drawing(name, how.quick)

    def on(threads: int) -> None:
        torch.set_num_threads(threads)
        draw()

    with busy_cores():
        seconds = interleaved({"one": lambda: on(1), "all": lambda: on(how.threads)}, how.repeats)
    torch.set_num_threads(how.threads)
    value, values = ratio(seconds["all"], seconds["one"])
    what = f"{name}, busy cores: {how.threads} threads, of the time of one"
    return Target(what, 1.3, 1.1, value, values, "{:.2f}".format, at_most=True)


def on_quiet_cores(name: str, how: Settings, baseline: Path) -> Target:
    here = Path(__file__).parents[2]
    with drawn_elsewhere(name, how, here) as new, drawn_elsewhere(name, how, baseline) as old:
        pairs = []
        for turn in range(how.repeats):
            pairs.append((new(), old()) if turn % 2 else (old(), new())[::-1])
    value, values = ratio([a for a, _ in pairs], [b for _, b in pairs])
    what = f"{name}, quiet cores: of the baseline's time"
    return Target(what, 1.03, 1.0, value, values, "{:.3f}".format, at_most=True)


@contextlib.contextmanager
def drawn_elsewhere(name: str, how: Settings, checkout: Path) -> Iterator[Callable[[], float]]:
    """A process that draws with this checkout's package, when it is called -> how many seconds that took."""
    script = Path(__file__).parents[1] / "drawing_when_asked.py"
    with subprocess.Popen(
        [sys.executable, str(script), name, str(how.threads), *["quick"] * how.quick],
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
            raise RuntimeError(f"the package in {checkout} can't be measured: {why}")

        def seconds() -> float:
            requests.write("draw\n")
            requests.flush()
            return float(answers.readline())

        yield seconds
        requests.close()
