"""Compares this package's samplers with those of a built checkout of another commit: each draws in a process of its
own, they take turns, and their images must be the same."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from measuring import Settings, ratio

from pixelcnn_fast.errors import CheckFailed

HERE = Path(__file__).parents[1]


def share_of_baseline(
    name: str, how: Settings, images: int = 1, precision: str = "same"
) -> tuple[float, list[float], list[float]]:
    """Of the baseline's time, what this package takes for so many images of that model of
    drawing_when_asked.py: of the medians, and of each round; and its seconds."""
    assert how.baseline is not None
    asked = [name, str(images), precision, str(how.threads), *["quick"] * how.quick]
    with drawing(asked, HERE) as new, drawing(asked, how.baseline.resolve()) as old:
        pairs = [(new(), old()) if turn % 2 else (old(), new())[::-1] for turn in range(how.repeats)]
    if len({digest for pair in pairs for _, digest in pair}) > 1:
        raise CheckFailed(f"{name}, {images} at once: the baseline draws other images")
    ours, theirs = ([seconds for seconds, _ in each] for each in zip(*pairs, strict=True))
    return *ratio(ours, theirs), ours


@contextlib.contextmanager
def drawing(asked: list[str], checkout: Path) -> Iterator[Callable[[], tuple[float, str]]]:
    """A process that draws with this checkout's package, when it is called -> how many
    seconds that took, and the images' digest."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "benchmarks" / "drawing_when_asked.py"), *asked],
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

        def draw() -> tuple[float, str]:
            requests.write("draw\n")
            requests.flush()
            seconds, digest = answers.readline().split()
            return float(seconds), digest

        yield draw
        requests.close()
