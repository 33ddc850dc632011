"""Compares samplers, which take turns so that a drift of the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pixelcnn_fast.bench.checks import Oracle
from pixelcnn_fast.bench.contestants import LABELS, NAIVE, Result, Rounded, SomePixels, WholeImages
from pixelcnn_fast.bench.naive import Apart, Naive
from pixelcnn_fast.bench.workload import Workload
from pixelcnn_fast.heads import Head
from pixelcnn_fast.progress import progress_bar
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.reference import ReferenceRuntime


def wrong_images(results: Sequence[Result]) -> str:
    """Who drew wrong images, and the evidence; '' if nobody did."""
    return "; ".join(
        f"{r.name}, {r.images} at once: {r.check.evidence}" for r in results if r.check and r.wrong
    )


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError for names that are unknown or come twice."""
    if not names or len(set(names)) < len(names) or any(name not in LABELS for name in names):
        found = ",".join(names) or "none"
        raise ValueError(f"runtimes are {found}: choose from {', '.join(LABELS)}, each once")


def compare(
    work: Workload,
    names: Sequence[str],
    repeats: int,
    naive_pixels: int = 0,
    naive_repeats: int | None = None,
    progress: bool = False,
    naive: Callable[[Head, int], Naive | Apart] | None = None,
) -> list[Result]:
    """Warms up, times the contestants in turns on the same noise, and checks every image they drew.

    naive_pixels: how many the naive sampler draws in all, given the others; its time is
    scaled up; 0: whole images. naive_repeats: in how many rounds, from the first, it takes
    part. naive: it, made for a head and so many draws of a pixel; by default, of the workload, in
    this process. Raises what Sampler raises.
    """
    check_names(names)
    precisions: dict[str, Precision] = {name: "bf16" if name.endswith("-bf16") else "same" for name in names}
    samplers = {p: work.sampler(p) for p in {"same", *precisions.values()}}
    naive_rounds = min(naive_repeats or repeats, repeats)
    contestants: dict[str, WholeImages] = {}
    for name in names:
        sampler, exact = samplers[precisions[name]], samplers["same"]
        contestants[name] = (
            WholeImages(name, sampler, work) if sampler is exact else Rounded(name, sampler, exact, work)
        )
    warm = {name: contestant.warm_up() for name, contestant in contestants.items() if name != NAIVE}
    expected = [images for name, images in warm.items() if precisions[name] == "same"]
    common = expected[-1] if expected else samplers["same"].sample(work.images, work.labels, noise=work.noise)
    if NAIVE in names:
        reference = samplers["same"].runtime(NAIVE)
        assert isinstance(reference, ReferenceRuntime)
        plain = (naive or partial(Naive, work))(samplers["same"].head, reference.draws)
        if 0 < naive_pixels < work.pixels:
            contestants[NAIVE] = SomePixels(plain, work, common, naive_pixels, naive_rounds)
        else:
            contestants[NAIVE] = WholeImages(NAIVE, plain, work, progress)

    turns = [(r, name) for r in range(repeats) for name in names if name != NAIVE or r < naive_rounds]
    with progress_bar(turns, shown=progress, unit="run") as bar:
        for round, name in bar:
            bar.set_description(f"{work.images} at once, {name}")
            contestants[name].run(round)

    oracle = Oracle(work)
    for contestant in contestants.values():
        contestant.result.check = contestant.check(common, oracle)
    return [contestant.result for contestant in contestants.values()]
