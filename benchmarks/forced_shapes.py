"""Makes a CUDA runtime draw with blocks and clusters of a given size: set its ``cost`` to ``prefers(...)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def prefers(blocks: int, images: int = 1) -> Callable[..., float]:
    """A cost for which clusters of so many blocks, with so many images each, are the cheapest, or what is as near to
    that as there can be; the number of blocks counts first."""

    def distance(facts: dict[str, Any], math: str, each: int, *_: int) -> float:
        return 1e6 * abs(int(facts["cluster"]) - blocks) + abs(each - images)

    return distance
