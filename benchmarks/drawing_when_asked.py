"""What cases/busy.py starts, to take turns: draws an image for each line of standard input, and says how long it took.

It may run with a package of another commit, so it asks for nothing but models and samplers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.sampler import Sampler

TINY: dict[str, Any] = dict(hidden_channels=32, n_layers=1)
MODELS: dict[str, dict[str, Any]] = {
    "Row LSTM": dict(family=PixelRNN, kind="row_lstm"),
    "Diagonal BiLSTM": dict(family=PixelRNN, kind="diagonal_bilstm"),
    "default PixelCNN": {},
}


def drawing(name: str, quick: bool) -> Callable[[], object]:
    """What draws one image of that model."""
    config = {**MODELS[name], **(TINY if quick and MODELS[name] else {})}
    side = 6 if quick else 32
    sampler = Sampler(random_model(**config), (3, side, side))
    noise = torch.rand(1, *sampler.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lambda: sampler.sample(1, noise=noise, runtime="cpu")


def main(name: str, threads: str, *quick: str) -> None:
    torch.set_num_threads(int(threads))
    draw = drawing(name, bool(quick))
    draw()
    print(sys.modules["pixelcnn_fast"].__file__, flush=True)
    for _ in sys.stdin:
        draw()  # threads and caches are warm then
        start = time.perf_counter()
        draw()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
