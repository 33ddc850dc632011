"""The CPU sampler against a version before it (--baseline FOLDER: a built checkout), how fast this machine lets weights
come, and what choosing a schedule costs.

What a schedule gains depends on the processor's caches: bounds are those of an Intel Xeon with two cores, 2 MB of L2
each and an L3 that gives a core 7 to 23 GB/s, or of others, which must not become slower.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
from drawing_when_asked import WARM_UP, drawing, sampler_of, timed
from elsewhere import share_of_baseline
from measuring import Cases, Found, Settings, Target, in_fresh_process

from pixelcnn_fast.bench import report
from pixelcnn_fast.native import required

TITLE = "The CPU sampler at the floor"
# Model -> images at once -> must and reach on that Xeon, of the speed of the version before.
BOUNDS = {
    "default PixelCNN": {1: (1.15, 1.5), 16: (1.35, 1.6)},
    "Row LSTM": {1: (1.1, 1.3), 16: (1.25, 1.5)},
    "Diagonal BiLSTM": {1: (1.05, 1.3), 16: (1.05, 1.3)},
    "Gated PixelCNN 64 × 7": {1: (0.98, 1.1), 16: (0.98, 1.1), 64: (0.98, 1.1)},
    "PixelCNN 64 × 7": {1: (0.98, 1.1), 16: (0.98, 1.1), 64: (0.98, 1.1)},
}
ELSEWHERE = (0.98, 1.0)
LARGE = "default PixelCNN"
# What choosing takes, once.
MEASURING, BY_PREPARE = "measuring the machine", "choosing a schedule by prepare"
BY_RUNS = "choosing a schedule in the first runs, beyond what later ones take"


def cases(how: Settings) -> Cases:
    on_intel = "Intel" in report.processor()
    found: Cases = {"the machine": partial(the_machine, on_intel, how)}
    for name, by_images in BOUNDS.items() if how.baseline else ():
        for images, bounds in by_images.items():
            precisions = ("same", "bf16") if name == LARGE else ("same",)
            for precision in precisions:
                case = f"{name}, {images} at once" + ", bf16" * (precision == "bf16")
                wanted = bounds if on_intel and precision == "same" else ELSEWHERE
                found[case] = partial(speed, name, images, precision, wanted, how)
    found["choosing"] = partial(choosing, how)
    found["more threads"] = partial(more_threads, how)
    return found


def the_machine(on_intel: bool, how: Settings) -> Found:
    """What schedules are chosen by."""
    yield f"Not measured: {'an AMD processor' if on_intel else 'an Intel Xeon'}, whose bounds differ."
    if how.baseline is None:
        yield "Not measured: the version before (--baseline FOLDER, a built checkout)."
    found = required().machine(how.threads)
    sizes = (2.0 ** (found.LEAST - 20 + i) for i in range(len(found.bandwidths)))
    by_size = (f"{size:g} MB: {1e-9 * b:.0f} GB/s" for size, b in zip(sizes, found.bandwidths, strict=True))
    yield f"A thread's multiply-adds: {1e-9 / found.multiply_add:.0f} G/s."
    yield f"Weights that a thread goes through again and again: {', '.join(by_size)}."
    yield f"A barrier: {1e9 * found.barrier:.0f} ns; a line of another core: {16e9 * found.element:.0f} ns."


def speed(name: str, images: int, precision: str, bounds: tuple[float, float], how: Settings) -> Found:
    share, shares, seconds = share_of_baseline(name, how, images, precision)
    each = report.duration(median(seconds) / images)
    what = f"{name}, {images} at once, {precision} weights: of the baseline's speed ({each} an image)"
    yield Target(what, *bounds, 1 / share, [1 / s for s in shares], "{:.3f}×".format)


def more_threads(how: Settings) -> Found:
    """What schedules would take on more threads than there are."""
    here, counts = required().machine(how.threads), (1, 2, 4, 8, 16)
    rows = [["estimated ms an image, by threads", *map(str, counts)]]
    for name, by_images in BOUNDS.items():
        compiled: Any = sampler_of(name, how.quick).runtime("cpu")
        for images in by_images:
            costs = (compiled._sampler.schedules(images, n, here)[0].cost / images for n in counts)
            rows.append([f"{name}, {images} at once", *(f"{1e3 * each:.3g}" for each in costs)])
    yield (
        f"Estimated, not measured: as if each thread were as fast as one of the {how.threads} here when these are at "
        f"work, and waited as long for each other one.\n\n{report.table(rows)}"
    )


def choosing(how: Settings) -> Found:
    """``prepare`` tries no batches as long as 16 images take."""
    in_rounds: dict[str, list[float]] = {}
    for images in (1, 16):
        for _ in range(min(how.repeats, 5)):
            found = in_fresh_process(choosing_seconds, images, how)
            for what, seconds in zip((MEASURING, BY_PREPARE, BY_RUNS), found, strict=True):
                if (images, what) != (16, BY_PREPARE):
                    in_rounds.setdefault(f"{LARGE}, {images} at once: {what}", []).append(seconds)
    for name, seconds in in_rounds.items():
        bounds = (0.05, 0.01) if MEASURING in name else (0.3, 0.1)
        yield Target(name, *bounds, median(seconds), seconds, report.duration, at_most=True)


def choosing_seconds(images: int, how: Settings) -> tuple[float, float, float]:
    """Of measuring the machine at first, of ``prepare``, and of the first runs, beyond later ones."""
    torch.set_num_threads(how.threads)
    first, second = sampler_of(LARGE, how.quick), sampler_of(LARGE, how.quick)
    compiled: Any = first.runtime("cpu")
    measured, _ = timed(lambda: compiled._sampler.schedules(images, how.threads))
    prepared, _ = timed(lambda: first.prepare(images))
    draw = drawing(second, images)
    runs = [timed(draw)[0] for _ in range(WARM_UP + 8)]
    later = median(runs[WARM_UP:])
    return measured, prepared, sum(each - later for each in runs[:WARM_UP])
