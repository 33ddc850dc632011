"""How long refreshing a sampler takes, against building it.

In every round the weights change, as in training; then a sampler is built from them and another one is refreshed, and
both must draw the same images from the same noise. The first refresh of a sampler prepares the later ones, and is shown
by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import Cases, Found, Settings, Target, ratio

from cases.family import GATED
from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.models import GatedPixelCNN, Model
from pixelcnn_fast.sampler import Sampler

TITLE = "Targets of refreshing a sampler"
SHARE = 10  # percent of the time that building takes: the most that refreshing may take
SECONDS = 0.040, 0.015  # must and reach of refreshing the default PixelCNN, and the tiny one
DEFAULT = "default PixelCNN, 3x32x32"
MODELS: dict[str, tuple[Callable[[], Model], int]] = {
    DEFAULT: (random_model, 32),
    "Gated PixelCNN, 64 x 7 blocks, 28x28": (lambda: random_model(family=GatedPixelCNN, **GATED), 28),
    "packaged digits, 28x28": (lambda: checkpoint.load("mnist"), 28),
}
TINY: dict[str, tuple[Callable[[], Model], int]] = {
    "tiny": (lambda: random_model(input_channels=1, hidden_channels=6, n_residual=1), 5)
}


def cases(how: Settings) -> Cases:
    chosen = TINY if how.quick else MODELS
    return {name: partial(measured, name, make(), side, how.repeats) for name, (make, side) in chosen.items()}


def measured(name: str, model: Model, side: int, repeats: int) -> Found:
    shape = (model.input_channels, side, side)
    sampler = Sampler(model, shape)
    sampler.refresh()
    work = workload(model, 1, side, side)
    rounds: list[tuple[float, float, float]] = []
    for round in range(repeats + 1):
        change(model, round)
        new, to_build = timed(lambda: Sampler(model, shape))
        to_refresh = timed(sampler.refresh)[1]
        images = (each.sample(1, work.labels, noise=work.noise) for each in (sampler, new))
        if not torch.equal(*images):
            raise CheckFailed(f"{name}: a refreshed sampler draws other images than a new one")
        rounds.append((to_build, to_refresh, timed(new.refresh)[1]))
    building, refreshing, first = map(list, zip(*rounds[1:], strict=True))  # the first warms up
    if name in (DEFAULT, *TINY):
        middle = median(refreshing)
        yield Target(f"{name}: refreshing", *SECONDS, middle, refreshing, report.duration, at_most=True)
    for what, seconds, must, reach in (
        ("refreshing", refreshing, SHARE, SHARE / 4),
        ("the first time, which prepares the others", first, 100, SHARE),
    ):
        share, shares = ratio(seconds, building, 100)
        text = f"{name}: {what}, of building"
        yield Target(text, must, reach, share, shares, "{:.1f} %".format, at_most=True)


def change(model: Model, seed: int) -> None:
    """As a step of training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=generator))


def timed(function: Callable[[], Sampler]) -> tuple[Sampler, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start
