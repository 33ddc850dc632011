"""Timings for pytest-benchmark: ``pytest benchmarks/``. For figures to report, use sampling_targets.py."""

from __future__ import annotations

from typing import Any

import pytest

from pixelcnn_fast.bench.checks import LIMIT, Oracle
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.native import native, why_not_native
from pixelcnn_fast.sampler import Sampler

SIDE = 16
MODELS: dict[str, dict[str, Any]] = {
    "tiny": dict(input_channels=1, hidden_channels=8, n_residual=1),
    "small": dict(input_channels=3, hidden_channels=64, n_residual=4),
}


@pytest.mark.parametrize(
    ("size", "runtime", "images"),
    [
        ("tiny", "reference", 1),
        ("tiny", "eager", 1),
        ("tiny", "cpu", 1),
        ("small", "eager", 1),
        ("small", "cpu", 1),
        ("small", "eager", 8),
        ("small", "cpu", 8),
    ],
)
def test_sample(benchmark, size: str, runtime: str, images: int) -> None:
    if runtime == "cpu" and native() is None:
        pytest.skip(why_not_native())
    work = workload(random_model(**MODELS[size]), images, SIDE, SIDE)
    sampler = Sampler(work.model, work.shape)
    benchmark.group = f"{size} model, {images} at once"
    drawn = benchmark.pedantic(
        sampler.sample, (images,), dict(noise=work.noise, runtime=runtime), rounds=3, warmup_rounds=1
    )
    assert Oracle(work).excess(drawn).max() <= LIMIT
