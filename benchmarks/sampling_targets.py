"""Measures the sampler's targets on this machine, each in one run, and says which are met.

    python benchmarks/sampling_targets.py            the default PixelCNN, 3x32x32: about 10 minutes on 2 cores
    python benchmarks/sampling_targets.py --quick    a tiny model: tries the script; its figures mean nothing

Contestants take turns on the same noise, and every image is checked before a speed-up is shown. Leave the
machine alone meanwhile. Writes FOLDER/<processor>-<isa>-sampling.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from targets import (
    MB,
    Target,
    building,
    capturing,
    in_fresh_process,
    megabytes,
    options,
    peak_rise,
    percent,
    ratio,
    speed,
    write,
)

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import count_or_zero, output_folder
from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.measure import interleaved
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.runtimes.cpu import CpuRuntime
from pixelcnn_fast.sampler import Sampler

MM_SIZE = 4096


@dataclass(frozen=True)
class Settings:
    config: dict[str, Any]
    side: int
    batch: int
    repeats: int
    naive_pixels: int
    mm_size: int

    def sampler(self, side: int | None = None) -> Sampler:
        model = random_model(**self.config)
        return Sampler(model, (model.input_channels, side or self.side, side or self.side))


def flops(settings: Settings) -> Target:
    sampler = settings.sampler()
    work = workload(random_model(**settings.config), settings.batch, settings.side, settings.side)
    a, b = torch.rand(2, settings.mm_size, settings.mm_size)
    seconds = interleaved(
        {
            "sampler": lambda: sampler.sample(
                work.images, noise=work.noise, batch_size=work.images, runtime="cpu"
            ),
            "mm": lambda: torch.mm(a, b),
        },
        settings.repeats,
    )
    sampling = (sampler.program.row_flops + sampler.program.pixel_flops) * work.pixels * work.images
    multiplying = 2 * settings.mm_size**3
    share, shares = ratio(seconds["mm"], seconds["sampler"], sampling / multiplying)
    name = f"live-tap FLOP/s, {work.images} at once, against torch.mm {settings.mm_size} float32"
    return Target(name, 0.7, 1.0, share, shares, percent)


def growth(settings: Settings) -> Target:
    small, large = settings.side // 2, settings.side * 2

    def draw(side: int) -> Callable[[], object]:
        sampler = settings.sampler(side)
        noise = torch.rand(1, *sampler.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return lambda: sampler.sample(1, noise=noise, runtime="cpu")

    seconds = interleaved({"small": draw(small), "large": draw(large)}, settings.repeats)
    growth, growths = ratio(seconds["large"], seconds["small"], small**2 / large**2)
    name = f"growth of the time per pixel, {small}x{small} to {large}x{large}, 1 at once"
    return Target(name, 0.2, 0.0, growth - 1, [g - 1 for g in growths], percent, at_most=True, strict=True)


def memory(settings: Settings) -> Iterator[Target]:
    runtime = settings.sampler().runtime("cpu")
    assert isinstance(runtime, CpuRuntime)
    counted = runtime.workspace_bytes(settings.batch) / MB
    name = f"memory beyond the weights, {settings.batch} at once"
    yield Target(f"{name}: workspace_bytes", 64, 32, counted, [counted], megabytes, at_most=True)
    risen = []
    for _ in range(min(settings.repeats, 3)):
        risen.append(in_fresh_process(memory_rise, settings))
    if None not in risen:
        yield Target(
            f"{name}: rise of the peak resident set", 64, 32, median(risen), risen, megabytes, at_most=True
        )


def memory_rise(settings: Settings) -> float | None:
    """MB by which the peak resident set rises while a sampler that is already built draws."""
    sampler = settings.sampler()
    sampler.runtime("cpu")
    return peak_rise(lambda: sampler.sample(settings.batch, batch_size=settings.batch, runtime="cpu"))


def main() -> int:
    parser = options(__doc__, repeats=5)
    parser.add_argument(
        "--naive-pixels",
        type=count_or_zero,
        default=100,
        help="pixels that the naive sampler draws; 0: whole images",
    )
    args = parser.parse_args()
    folder = output_folder(args.out)
    torch.set_num_threads(args.threads)
    if args.quick:
        settings = Settings(dict(hidden_channels=8, n_residual=1), 8, 2, 2, 6, 64)
    else:
        settings = Settings({}, 32, 16, args.repeats, args.naive_pixels, MM_SIZE)

    found = report.machine()
    model = random_model(**settings.config)
    how = (settings.repeats, settings.naive_pixels)
    one, alone = speed(
        model,
        settings.side,
        1,
        [(NAIVE, "cpu", 900, 1500), (NAIVE, "cpu-bf16", 1200, 2500), ("eager", "cpu", 18, 30)],
        *how,
    )
    many, together = speed(
        model, settings.side, settings.batch, [(NAIVE, "cpu", 1300, 2000), ("eager", "cpu", 3.5, 5)], *how
    )
    targets = [*one, *many, flops(settings), growth(settings), *memory(settings)]
    targets.append(capturing(model, settings.side, 0.5, 0.2, settings.repeats))
    targets.append(building(model, settings.side, 1.0, 0.2, settings.repeats))

    compared = report.markdown([alone, together])
    record = {"comparisons": [report.record(alone), report.record(together)]}
    write(folder, "sampling", "Sampling targets", found, args.quick, targets, compared, record)
    return int(any(target.verdict() == "no" for target in targets))


if __name__ == "__main__":
    sys.exit(main())
