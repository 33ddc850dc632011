"""What the tables of targets measure with: targets, contestants that are compared and take turns, memory."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.contestants import NAIVE, Result
from pixelcnn_fast.bench.measure import compare, wrong_images
from pixelcnn_fast.bench.streams import watched
from pixelcnn_fast.bench.workload import Workload
from pixelcnn_fast.cores import usable
from pixelcnn_fast.errors import CheckFailed

MB = 1e6
TOLERANCE = (
    1e-3  # of a result's largest value: float32 sums in another order, through a whole network at most
)
Work = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Settings:
    """How a table is measured. quick: something tiny, whose figures mean nothing; baseline: a built checkout of
    another commit; log: where to write what commands print; port, public, priors, generative: checkouts of other
    people's models."""

    repeats: int
    threads: int
    quick: bool
    device: str
    baseline: Path | None
    log: Path
    port: Path | None = None
    public: Path | None = None
    priors: Path | None = None
    generative: Path | None = None


@dataclass(frozen=True)
class Target:
    """must and reach: what ``value`` has to be at least, or at most; samples: its values round by round; needs: what is
    missing if it is not measured, and so is None."""

    name: str
    must: float
    reach: float
    value: float | None
    samples: list[float]
    show: Callable[[float], str]
    at_most: bool = False
    strict: bool = False  # the value must not even equal ``must``
    needs: str = ""

    def verdict(self) -> str:
        if self.value is None:
            return f"not measured: needs {self.needs}"
        sign = -1 if self.at_most else 1
        value, must, reach = (sign * x for x in (self.value, self.must, self.reach))
        if not (value > must if self.strict else value >= must):  # NaN meets nothing
            return "no"
        return "yes, reached" if value >= reach else "yes"

    def row(self) -> list[str]:
        bound = ("< " if self.strict else "<= ") if self.at_most else ">= "
        ends = [self.show(f(self.samples)) for f in (min, max)] if len(self.samples) > 1 else []
        must, reach, value = ("" if x is None else self.show(x) for x in (self.must, self.reach, self.value))
        return [self.name, bound + must, reach, value, " – ".join(ends), self.verdict()]


# What a case of a table gives: targets, and comparisons of samplers and remarks, which are shown below the table.
Found = Iterable[Target | list[Result] | str]
Cases = dict[str, Callable[[], Found]]
Wanted = tuple[
    str, str, float, float
]  # of samplers: the slow one, the fast one, must and reach of the factor


def factor(value: float) -> str:
    return f"{value:.2f}×" if value < 10 else report.factor(value)


def ratio(a: list[float], b: list[float], scale: float = 1.0) -> tuple[float, list[float]]:
    """scale * a / b: of the medians, and of each round."""
    return scale * median(a) / median(b), [scale * x / y for x, y in zip(a, b, strict=True)]


def check(
    name: str, expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float = TOLERANCE
) -> None:
    """Raises CheckFailed where results differ by more than this share of their largest values."""
    # A gradient may be zero but for rounding: some of the largest one is allowed everywhere. Losses are no gradients.
    largest = max((float(x.detach().abs().max()) for x in expected if x.dim()), default=0.0)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        error, scale = float((a - b).detach().abs().max()), float(a.detach().abs().max())
        if not error <= (allowed := tolerance * (scale + 0.01 * largest)):
            raise CheckFailed(f"{name}: result {i} differs by {error:.3g}, allowed {allowed:.3g}")


def faster(
    name: str,
    contestants: Mapping[str, Work],
    must: float,
    reach: float,
    repeats: int,
    tolerance: float = TOLERANCE,
) -> Target:
    """How much faster the last contestant is than the fastest of the others: they take turns, once it is checked that
    all give the same results."""
    first: dict[str, float] = {}
    expected: Sequence[Tensor] = ()
    for which, work in contestants.items():
        start = time.perf_counter()
        found = work()
        first[which] = time.perf_counter() - start
        expected = expected or found
        check(f"{name}, {which}", expected, found, tolerance)
    del expected, found
    seconds = interleaved(contestants, repeats)
    *others, ours = seconds
    value, values = ratio(min((seconds[which] for which in others), key=median), seconds[ours])
    medians = {which: report.duration(median(s)) for which, s in seconds.items()}
    times = " → ".join(text if len(others) == 1 else f"{which} {text}" for which, text in medians.items())
    compiling = sum(first[k] - median(seconds[k]) for k in others if k.startswith("compiled"))
    note = f"; compiling took {compiling:.0f} s" if compiling > 0 else ""
    return Target(f"{name} ({times}{note})", must, reach, value, values, factor)


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function, called in turns (A B A B ...) ``repeats`` times after one call to warm up."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def paired_ratios(slow: Result, fast: Result) -> list[float]:
    """How many times faster, round by round."""
    return [a / b for a, b in zip(slow.seconds, fast.seconds, strict=False)]  # naive may sit rounds out


def compare_checked(work: Workload, names: Sequence[str], repeats: int, **how: Any) -> list[Result]:
    """``compare``; raises CheckFailed if an image is not what the model gives for the noise."""
    results = compare(work, names, repeats, **how)
    if wrong := wrong_images(results):
        raise CheckFailed(wrong)
    return results


def speed(
    work: Workload,
    wanted: Sequence[Wanted],
    repeats: int,
    naive_pixels: int,
    subject: str = "",
    **others: Any,
) -> Iterator[Target | list[Result]]:
    """Compares samplers, all on the same noise. others: what else ``compare`` is told."""
    names = list(dict.fromkeys([slow for slow, *_ in wanted] + [fast for _, fast, *_ in wanted]))
    pixels, batch = min(naive_pixels, work.pixels), work.images
    results = compare_checked(work, names, repeats, naive_pixels=pixels, progress=watched(), **others)
    yield results
    by_name = {result.name: result for result in results}
    for slow, fast, must, reach in wanted:
        a, b = by_name[slow], by_name[fast]
        how = f" (naive from {a.timed} of {a.pixels} pixels)" if a.extrapolated else ""
        baseline = "naive" if slow == NAIVE else "cached PyTorch"
        weights = "bf16 weights" if fast.endswith("bf16") else "float32"
        name = f"{subject}fast vs {baseline}, {batch} at once, {weights}{how}"
        yield Target(name, must, reach, a.median / b.median, paired_ratios(a, b), report.factor)


def taking(name: str, work: Callable[[], object], must: float, reach: float, repeats: int) -> Target:
    """Seconds of a call."""
    seconds = interleaved({"it": work}, repeats)["it"]
    return Target(name, must, reach, median(seconds), seconds, report.duration, at_most=True)


def building(work: Workload, must: float, reach: float, repeats: int, subject: str = "") -> Target:
    return taking(f"{subject}building a Sampler", work.sampler, must, reach, repeats)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """A process for each core that does nothing but loop."""
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable())]
    try:
        time.sleep(1)
        yield
    finally:
        for process in load:
            process.kill()
            process.wait()


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *args).result()


def memory_share(
    name: str, rise_of: Callable[..., float | None], args: Sequence[object], must: float, reach: float
) -> Iterator[Target]:
    """Ours of the plain one's rise of memory, which ``rise_of(*args, 'plain' | 'ours')`` measures in a process of its
    own; nothing where the system does not tell it."""
    plain, ours = (in_fresh_process(rise_of, *args, which) for which in ("plain", "ours"))
    if plain is not None:
        share = ours / plain
        text = f"{name}: peak memory ({plain:.0f} → {ours:.0f} MB)"
        yield Target(text, must, reach, share, [share], percent, at_most=True)


def peak_rise(work: Callable[[], object]) -> float | None:
    """MB by which this process's peak resident set rises during ``work``; Linux only, None elsewhere."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else work could reuse memory that was freed before, unseen
    reset.write_text("5")  # resets the peak
    before = _kilobytes(status, "VmRSS")
    work()
    return (_kilobytes(status, "VmHWM") - before) * 1024 / MB


def _kilobytes(status: Path, field: str) -> int:
    (found,) = re.findall(rf"{field}:\s+(\d+) kB", status.read_text())
    return int(found)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def megabytes(value: float) -> str:
    return f"{value:.1f} MB"
