"""Estimates of memory, so that a command can refuse too much before it tries."""

from __future__ import annotations

import os
import re
from pathlib import Path

from torch import nn

from pixelcnn_fast.user_model.wrapped_model import FEWEST_DIFFERENT

# How many 8-byte numbers are held at least while a model is captured: for each logit, when
# the program is compared with the model; for each feature that a layer gives, when the
# forward is recorded.
HELD_OF_LOGITS, HELD_OF_FEATURES = 8, 0.35


def check_memory(needed: int, what: str) -> None:
    """Raises ValueError if more bytes are needed than are free."""
    free = available()
    if free is not None and needed > free:
        raise ValueError(
            f"{what} needs at least {_size(needed)} of memory, and {_size(free)} is free: "
            "ask for fewer or smaller images"
        )


def to_capture(model: nn.Module, shape: tuple[int, int, int], levels: int, classes: int | None) -> int:
    """The bytes that it takes at least to capture a model for images of this shape, (C, H, W)."""
    channels, height, width = shape
    features = sum(len(weight) for weight in model.parameters() if weight.dim() > 1)
    held = max(HELD_OF_LOGITS * channels * levels, HELD_OF_FEATURES * features)
    images = min(classes, FEWEST_DIFFERENT) if classes else 1
    return int(8 * held * height * width) * images


def available() -> int | None:
    """How many bytes are free, or None if the system does not say it."""
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
