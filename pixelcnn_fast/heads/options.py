"""The options of drawing: a new one is a field here, and drawing.py says what it does.

C++'s struct of them is written from this file, which therefore imports the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypedDict

LOWEST_TEMPERATURE = 2.0**-126  # below it, 1 / temperature is infinite


def option(
    default: Any, parse: Callable[[str], Any], help: str, metavar: str | None = None, native: Any = None
) -> Any:
    """A field that is also a command-line argument; native: what C++ has in place of None."""
    native = default if native is None else native
    return field(
        default=default, metadata={"parse": parse, "help": help, "metavar": metavar, "native": native}
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How levels are drawn from softmax(logits / temperature); temperature 0 takes the most
    likely level, and others below the smallest normal float32 are refused.

    top_k: only so many levels, the most likely ones, may be drawn (None: all). top_p: only
    the most likely levels, as many as it takes to reach this probability; those that top_k
    keeps count as probability 1. Of equally likely levels, the lower counts as more likely.
    Raises ValueError for a value out of range.
    Source of top_p: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """

    temperature: float = option(1.0, float, "logits are divided by it; 0 takes the most likely level")
    top_k: int | None = option(None, int, "draw from the K most likely levels only", "K", native=0)
    top_p: float | None = option(
        None, float, "draw from the most likely levels that together reach P", "P", native=1.0
    )

    def __post_init__(self) -> None:
        plain: dict[str, tuple[type, Callable[[Any], object]]]
        plain = {"temperature": (Real, float), "top_k": (Integral, int), "top_p": (Real, float)}
        for name, (kind, made) in plain.items():  # NumPy's numbers will do, too
            if isinstance(given := getattr(self, name), kind):
                object.__setattr__(self, name, made(given))
        if not isinstance(self.temperature, float):
            raise ValueError(f"temperature is {self.temperature!r}, expected a number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: expected a finite number, 0 or larger")
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature}: expected at least {LOWEST_TEMPERATURE:.3g}, since logits are "
                "divided by it; 0 takes the most likely level"
            )
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k}: expected an integer, 1 or more, or None for all levels")
        if self.top_p is not None and not (isinstance(self.top_p, float) and 0 < self.top_p <= 1):
            raise ValueError(
                f"top_p is {self.top_p!r}: expected more than 0 and at most 1, or None for all levels"
            )


class OptionArguments(TypedDict, total=False):
    """The options other than temperature as keyword arguments, for type checkers."""

    top_k: int | None
    top_p: float | None
