"""Values of images as users give and get them: integer levels, or real numbers."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from pixelcnn_fast.image_forms import check_levels


def check_whole(name: str, value: object, least: int) -> None:
    """Raises ValueError unless a head's argument is an integer, and not less than ``least``."""
    if not (isinstance(value, Integral) and int(value) >= least):
        raise ValueError(f"{name} is {value!r}: expected an integer, {least} or more")


def checked_levels(values: Tensor, levels: int) -> Tensor:
    """Levels that a user gave -> a copy in int32. Raises ValueError for other numbers."""
    if values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(
            f"images are {values.dtype}: expected integer levels (likelihood.to_levels makes them)"
        )
    check_levels(values.long(), levels)
    return values.to(torch.int32, copy=True).contiguous()


def levels_as_images(values: Tensor, levels: int) -> Tensor:
    """Levels as users get them: uint8 where all fit in it, else int32."""
    return values.to(torch.uint8 if levels <= 256 else torch.int32)


def checked_reals(values: Tensor, limit: float = torch.inf) -> Tensor:
    """Real numbers that a user gave -> a copy in float32. Raises ValueError for integers,
    and for what is not finite or larger than ``limit``."""
    if not values.is_floating_point():
        raise ValueError(f"images are {values.dtype}: expected floating point")
    if not bool((values.isfinite() & (values.abs() <= limit)).all()):
        expected = "finite numbers" if limit == torch.inf else f"numbers from {-limit:g} to {limit:g}"
        raise ValueError(f"images span {values.min():.7g}...{values.max():.7g}, expected {expected}")
    return values.to(torch.float32, copy=True).contiguous()
