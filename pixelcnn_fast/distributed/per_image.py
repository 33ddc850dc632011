"""Labels and conditions of numbered images, given as a tensor or computed as they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pixelcnn_fast.fingerprint import fingerprint

TRIED = 100  # images for which functions of two runs are compared: so many from the first on, and as many spread evenly
PerImage: TypeAlias = Tensor | Callable[[Tensor], Tensor]


def of_images(values: PerImage | None, images: range) -> Tensor | None:
    """The values of the images of these numbers, or None if there are no values."""
    if values is None:
        return None
    if callable(values):
        return torch.as_tensor(values(torch.arange(images.start, images.stop, images.step)))
    return torch.as_tensor(values[images.start : images.stop : images.step])


def told_apart(values: PerImage | None, n: int) -> str | None:
    """SHA-256 of the values of n images, or of what a function gives for some of them; None if there are no values."""
    if values is None:
        return None
    if not callable(values):
        found = torch.as_tensor(values)
        return fingerprint(found if found.is_floating_point() else found.long())
    first, spread = range(min(n, TRIED)), range(0, n, math.ceil(n / TRIED) or 1)
    return fingerprint(of_images(values, first), of_images(values, spread))
