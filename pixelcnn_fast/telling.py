"""Warnings, at the user's line."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

INSIDE = ("pixelcnn_fast", "torch", "contextlib")


def tell(text: str) -> None:
    """A UserWarning at the line that has led here from outside this package, and PyTorch's decorators in it."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
