"""What elsewhere.py starts, to take turns: draws images for each line of standard input, and says how long it took.

It may run with a package of another commit, so it asks for nothing but models and samplers.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import GatedPixelCNN, PixelRNN
from pixelcnn_fast.sampler import Sampler

SMALL: dict[str, Any] = dict(input_channels=1, hidden_channels=64)
MODELS: dict[str, dict[str, Any]] = {
    "Row LSTM": dict(family=PixelRNN, kind="row_lstm"),
    "Diagonal BiLSTM": dict(family=PixelRNN, kind="diagonal_bilstm"),
    "default PixelCNN": {},
    "Gated PixelCNN 64 × 7": dict(family=GatedPixelCNN, dilations=(1, 2, 1, 4, 1, 2, 1), **SMALL),
    "PixelCNN 64 × 7": dict(n_residual=7, **SMALL),
}
TINY: dict[str, dict[str, Any]] = {
    name: dict(hidden_channels=32, n_layers=1) for name in ("Row LSTM", "Diagonal BiLSTM")
}
SECONDS = 0.2  # of a turn at least, of whose draws the median counts
WARM_UP = 12  # calls in which a sampler may still try schedules


def sampler_of(name: str, quick: bool, precision: Any = "same") -> Sampler:
    config = {**MODELS[name], **(TINY.get(name, {}) if quick else {})}
    channels = config.get("input_channels", 3)
    side = 6 if quick else 32 if channels == 3 else 28
    return Sampler(random_model(**config), (channels, side, side), precision=precision)


def drawing(sampler: Sampler, images: int = 1) -> Callable[[], Tensor]:
    """What draws so many images at once."""
    of_noise = torch.Generator().manual_seed(0)
    noise = torch.rand(images, *sampler.shape, dtype=torch.float64, generator=of_noise)
    return lambda: sampler.sample(images, noise=noise, runtime="cpu", batch_size=images)


def main(name: str, images: str, precision: str, threads: str, *quick: str) -> None:
    torch.set_num_threads(int(threads))
    draw = drawing(sampler_of(name, bool(quick), precision), int(images))
    least = min(timed(draw)[0] for _ in range(WARM_UP))
    print(sys.modules["pixelcnn_fast"].__file__, flush=True)
    for _ in sys.stdin:
        draw()  # threads and caches are warm then
        turn = [timed(draw) for _ in range(max(1, math.ceil(SECONDS / least)))]
        digest = hashlib.sha256(turn[0][1].numpy().tobytes()).hexdigest()
        print(median(seconds for seconds, _ in turn), digest, flush=True)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main(*sys.argv[1:])
