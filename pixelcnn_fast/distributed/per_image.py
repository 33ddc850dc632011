"""Labels and conditions of numbered images, given as a tensor or computed as they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pixelcnn_fast.fingerprint import fingerprint

PerImage: TypeAlias = Tensor | Callable[[Tensor], Tensor]


def check_length(name: str, values: PerImage | None, n: int) -> None:
    if values is not None and not callable(values) and len(values) != n:
        raise ValueError(f"{name}: {len(values)} are given, expected {n}, or a function of the images' numbers")


def of_images(values: PerImage | None, images: range) -> Tensor | None:
    """The values of the images of these numbers."""
    if values is None:
        return None
    if callable(values):
        return torch.as_tensor(values(torch.arange(images.start, images.stop)))
    return torch.as_tensor(values[images.start : images.stop])


def told_apart(values: PerImage | None, first: range, last: range) -> str | None:
    """SHA-256 of the values; of a function, only of what it gives for the first and the last images."""
    if values is None:
        return None
    if not callable(values):
        return fingerprint(values)
    return fingerprint(*(of_images(values, images) for images in (first, last) if images))
