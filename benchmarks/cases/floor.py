"""The CPU sampler against a version before it (--baseline FOLDER: a built checkout), how fast this machine lets weights
come, and what choosing a schedule costs.

What a schedule gains depends on the processor's caches: bounds are those of an Intel Xeon with two cores, 2 MB of L2
each and an L3 that gives a core 7 to 23 GB/s, or of others, which must not become slower.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

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


def cases(how: Settings) -> Cases:
    on_intel = "Intel" in report.processor()
    other = "an AMD processor" if on_intel else "an Intel Xeon"
    print(f"not measured: {other}, whose bounds differ; this is {report.processor()}")
    if how.baseline is None:
        print("not measured: the version before (--baseline FOLDER, a built checkout)")
    found: Cases = {"the machine": partial(the_machine, how)}
    for name, by_images in BOUNDS.items() if how.baseline else ():
        for images, bounds in by_images.items():
            precisions = ("same", "bf16") if name == LARGE else ("same",)
            for precision in precisions:
                case = f"{name}, {images} at once" + ", bf16" * (precision == "bf16")
                wanted = bounds if on_intel and precision == "same" else ELSEWHERE
                found[case] = partial(speed, name, images, precision, wanted, how)
    found["choosing"] = partial(choosing, how)
    return found


def speed(name: str, images: int, precision: str, bounds: tuple[float, float], how: Settings) -> Found:
    share, shares, seconds = share_of_baseline(name, how, images, precision)
    each = report.duration(median(seconds) / images)
    what = f"{name}, {images} at once, {precision} weights: of the baseline's speed ({each} an image)"
    yield Target(what, *bounds, 1 / share, [1 / s for s in shares], "{:.3f}×".format)


def the_machine(how: Settings) -> Found:
    """Prints what schedules are chosen by."""
    found = required().machine(how.threads)
    sizes = ", ".join(f"{size / 2**20:g} MB: {1e-9 * b:.0f} GB/s" for size, b in found["bandwidths"].items())
    print(f"a thread's multiply-adds: {1e-9 / found['multiply_add']:.0f} G/s")
    print(f"weights that a thread goes through again and again: {sizes}")
    print(
        f"a barrier: {1e9 * found['barrier']:.0f} ns; a line of another core: {16e9 * found['element']:.0f} ns"
    )
    return []


def choosing(how: Settings) -> Found:
    for images in (1, 16):
        rounds = [in_fresh_process(choosing_seconds, images, how) for _ in range(min(how.repeats, 3))]
        for i, when in enumerate(("beforehand, by prepare", "in the first runs, beyond later ones")):
            seconds = [each[i] for each in rounds]
            what = f"{LARGE}, {images} at once: choosing a schedule {when}"
            yield Target(what, 0.3, 0.1, median(seconds), seconds, report.duration, at_most=True)


def choosing_seconds(images: int, how: Settings) -> tuple[float, float]:
    torch.set_num_threads(how.threads)
    first, second = sampler_of(LARGE, how.quick), sampler_of(LARGE, how.quick)
    start = time.perf_counter()
    first.prepare(images)
    prepared = time.perf_counter() - start
    draw = drawing(second, images)
    runs = [timed(draw)[0] for _ in range(WARM_UP + 8)]
    later = median(runs[WARM_UP:])
    return prepared, sum(each - later for each in runs[:WARM_UP])
