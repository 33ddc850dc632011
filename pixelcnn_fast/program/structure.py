"""What a program is besides the numbers that were evaluated, which differ by rounding between processors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from torch import Tensor

UNTOLD = ("name", "device", "branches")  # fields that decide no image


def structure(x: object) -> Iterator[object]:
    """The kinds of instructions and steps, in order, what they read and where, and the shapes of their weights."""
    if isinstance(x, Tensor):
        yield list(x.shape) if x.is_floating_point() else x
    elif is_dataclass(x):
        yield type(x).__name__
        for field in fields(x):
            if field.name not in UNTOLD:
                yield from structure(getattr(x, field.name))
    elif isinstance(x, (tuple, list)):
        yield len(x)
        for each in x:
            yield from structure(each)
    else:
        yield f"{x:.6g}" if isinstance(x, float) else x
