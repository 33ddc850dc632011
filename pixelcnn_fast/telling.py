"""Warnings at the line of the user's code that has led to them."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

INSIDE = ("pixelcnn_fast", "torch", "contextlib")


def tell(text: str) -> None:
    """Gives a UserWarning at the last line outside this package and PyTorch's decorators."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
