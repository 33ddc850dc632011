"""The oracle of the runtimes: from the same noise, all of them draw the images that the model draws pixel by pixel."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast import Sampler
from pixelcnn_fast.runtimes import RuntimeName


def noise(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_runtimes_agree(
    sampler: Sampler,
    n: int = 3,
    *,
    runtimes: Iterable[RuntimeName] = ("eager", "auto"),
    batch_sizes: Iterable[int | None] = (None,),
    u: Tensor | None = None,
    **given: Any,
) -> Tensor:
    """-> the images of ``reference``, which the others draw, too, in batches of each size"""
    u = noise(n, sampler.noise_shape) if u is None else u
    naive = sampler.sample(n, noise=u, runtime="reference", **given)
    for runtime in runtimes:
        for size in batch_sizes:
            drawn = sampler.sample(n, noise=u, runtime=runtime, batch_size=size, **given)
            assert torch.equal(drawn, naive), (runtime, size)
    return naive
