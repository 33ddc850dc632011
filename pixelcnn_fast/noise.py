"""The noise of numbered images, which for image k depends on the seed and on k alone."""

from __future__ import annotations

import math
import operator

import numpy as np
import torch
from torch import Tensor

SEEDS = 2**128  # the generator's keys
PER_IMAGE = 2**128  # numbers that the counter leaves to each image


def noise_of(seed: int, images: range, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1) for the images of these numbers -> float64 [len(images), *shape].

    shape: as ``Sampler.noise_shape``. They are the upper 53 bits of those that Philox 4x64
    gives with the seed as its key and k * 2^128 as the counter of image k; NumPy promises
    never to change this stream.
    Raises ValueError for a seed below 0, or of more than 128 bits, and TypeError
    for one that is no integer. Source: Salmon et al. 2011, "Parallel Random
    Numbers: As Easy as 1, 2, 3".
    """
    seed = operator.index(seed)
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed is {seed}: expected 0 or more, and less than 2^128")
    out = np.empty((len(images), math.prod(shape)))
    for row, k in zip(out, images, strict=True):
        bits = np.random.Philox(key=seed, counter=k * PER_IMAGE).random_raw(row.size)
        np.multiply(bits >> np.uint64(11), 2.0**-53, out=row)
    return torch.from_numpy(out).view(len(images), *shape)
