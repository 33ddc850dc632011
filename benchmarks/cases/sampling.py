"""Sampling from the default PixelCNN, 3x32x32. Contestants draw from the same noise, and every image is checked."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from measuring import (
    MB,
    Cases,
    Found,
    Settings,
    Target,
    building,
    in_fresh_process,
    interleaved,
    megabytes,
    peak_rise,
    percent,
    ratio,
    speed,
    taking,
)

from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.runtimes.cpu import CpuRuntime
from pixelcnn_fast.sampler import Sampler
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

TITLE = "Sampling targets"
TINY: dict[str, Any] = dict(hidden_channels=8, n_residual=1)


def cases(how: Settings) -> Cases:
    config = TINY if how.quick else {}
    side, batch, naive_pixels, mm_size = (8, 2, 6, 64) if how.quick else (32, 16, 100, 4096)
    repeats, model = how.repeats, random_model(**config)

    def one() -> Found:
        wanted = [(NAIVE, "cpu", 900, 1500), (NAIVE, "cpu-bf16", 1200, 2500), ("eager", "cpu", 18, 30)]
        return speed(workload(model, 1, side, side), wanted, repeats, naive_pixels)

    def many() -> Found:
        wanted = [(NAIVE, "cpu", 1300.0, 2000.0), ("eager", "cpu", 3.5, 5.0)]
        return speed(workload(model, batch, side, side), wanted, repeats, naive_pixels)

    def flops() -> Found:
        sampler, work = sampler_of(config, side), workload(model, batch, side, side)
        a, b = torch.rand(2, mm_size, mm_size)

        def sample() -> object:
            return sampler.sample(batch, noise=work.noise, batch_size=batch, runtime="cpu")

        seconds = interleaved({"sampler": sample, "mm": lambda: torch.mm(a, b)}, repeats)
        sampling = (sampler.program.row_flops + sampler.program.pixel_flops) * work.pixels * batch
        share, shares = ratio(seconds["mm"], seconds["sampler"], sampling / (2 * mm_size**3))
        name = f"live-tap FLOP/s, {batch} at once, against torch.mm {mm_size} float32"
        yield Target(name, 0.7, 1.0, share, shares, percent)

    def growth() -> Found:
        small, large = side // 2, side * 2

        def draw(side: int) -> Callable[[], object]:
            sampler, noise = sampler_of(config, side), workload(model, 1, side, side).noise
            return lambda: sampler.sample(1, noise=noise, runtime="cpu")

        seconds = interleaved({"small": draw(small), "large": draw(large)}, repeats)
        growth, growths = ratio(seconds["large"], seconds["small"], small**2 / large**2)
        name = f"growth of the time per pixel, {small}x{small} to {large}x{large}, 1 at once"
        yield Target(name, 0.2, 0.0, growth - 1, [g - 1 for g in growths], percent, at_most=True, strict=True)

    def memory() -> Found:
        runtime = sampler_of(config, side).runtime("cpu")
        assert isinstance(runtime, CpuRuntime)
        counted = runtime.workspace_bytes(batch) / MB
        name = f"memory beyond the weights, {batch} at once"
        yield Target(f"{name}: workspace_bytes", 64, 32, counted, [counted], megabytes, at_most=True)
        risen = [in_fresh_process(memory_rise, config, side, batch) for _ in range(min(repeats, 3))]
        if None not in risen:
            what = f"{name}: rise of the peak resident set"
            yield Target(what, 64, 32, median(risen), risen, megabytes, at_most=True)

    def ready() -> Found:
        """Capturing is what building a sampler does first."""
        wrapped = WrappedModel(model, (model.input_channels, side, side))
        yield taking("capturing the model", lambda: capture_model(wrapped), 0.5, 0.2, repeats)
        yield building(workload(model, 1, side, side), 1.0, 0.2, repeats)

    return {
        "one at once": one,
        "many at once": many,
        "FLOP/s": flops,
        "growth": growth,
        "memory": memory,
        "building": ready,
    }


def sampler_of(config: dict[str, Any], side: int) -> Sampler:
    model = random_model(**config)
    return Sampler(model, (model.input_channels, side, side))


def memory_rise(config: dict[str, Any], side: int, batch: int) -> float | None:
    """MB by which the peak resident set rises while a sampler that is already built draws."""
    sampler = sampler_of(config, side)
    sampler.runtime("cpu")
    return peak_rise(lambda: sampler.sample(batch, batch_size=batch, runtime="cpu"))
