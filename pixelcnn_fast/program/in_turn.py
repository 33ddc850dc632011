"""Makes things that need each other in turn, without recursion: there may be a thousand of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Key = TypeVar("Key", bound=tuple)


def made(found: dict[Key, int], key: Key, make: Callable[..., int | list[Key]]) -> int:
    """found[key], made with ``make(*key)``, which gives the result, or the keys of what it misses."""
    pending = [key]
    while pending:
        key = pending[-1]
        result = found[key] if key in found else make(*key)
        if isinstance(result, list):
            pending += reversed(result)
        else:
            found[pending.pop()] = result
    return found[key]
