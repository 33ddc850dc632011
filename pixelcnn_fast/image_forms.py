"""The forms in which models take images: how they are made from levels, and how levels are read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

ImageForm = Literal["uint8", "int64", "codes", "unit", "centred", "levels"]
IMAGE_FORMS: tuple[ImageForm, ...] = get_args(ImageForm)
# The floating-point forms: (from, to) that levels 0...L-1 are mapped to; None: unchanged.
SCALED_FORMS: dict[ImageForm, tuple[float, float] | None] = {"unit": (0, 1), "centred": (-1, 1), "levels": None}


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_levels(images: Tensor, levels: int) -> None:
    """images: integers of any shape. Raises ValueError unless all of them are levels, 0...levels-1."""
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < levels:
        raise ValueError(f"levels span {int(images.min())}...{int(images.max())}, expected 0...{levels - 1}")


def with_channels(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape of images, [N, C, H, W], or [N, H, W] for one channel -> (N, C, H, W)."""
    if len(shape) not in (3, 4):
        raise ValueError(f"images have shape {list(shape)}, expected [N, C, H, W] or [N, H, W] for one channel")
    n, *channels, height, width = shape
    return n, channels[0] if channels else 1, height, width


def from_levels(images: Tensor, form: ImageForm, levels: int, dtype: torch.dtype) -> Tensor:
    """images: integer levels [N, C, H, W] -> images in this form: [N, C, H, W], or [N, H, W] for 'codes'.

    levels: L, their number; dtype: what the floating-point forms are in.
    """
    if form == "uint8":
        return images.to(torch.uint8)
    if form in ("int64", "codes"):
        return images.long() if form == "int64" else images.long()[:, 0]
    images, interval = images.to(dtype), SCALED_FORMS[form]
    if interval is None:
        return images
    low, high = interval
    return images / (levels - 1) * (high - low) + low


def to_levels(images: Tensor, levels: int = 256) -> Tensor:
    """Images -> their integer levels (int64, same shape).

    uint8 and other integers are levels already. Floating point is read as 0...1, or as 0...levels-1 when some
    value exceeds 1, and rounded: truncation is wrong for most levels once an image has been float16.
    Raises ValueError for values that are NaN or outside the range.
    """
    if images.is_floating_point():
        x = images.double()
        x = x if x.numel() and x.max() > 1 else x * (levels - 1)
        images = x.round()
        if not torch.isfinite(images).all():
            raise ValueError("images hold NaN or infinite values")
    images = images.long()
    check_levels(images, levels)
    return images
