"""Two tiers of tests: what `make test` runs with every change, and what only `make test-all` adds.

A test is thorough if it is slow, needs nvcc or another build of the package, or if it repeats with more seeds,
instruction sets or networks what another has shown with a few. Nothing is left out of both.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
thorough = pytest.mark.thorough


def tiered(values: Iterable[T], is_quick: Callable[[T], bool]) -> list[Any]:
    """For ``parametrize``: all of them, of which the first tier has those that are quick."""
    return [value if is_quick(value) else _thorough(value) for value in values]


def few(values: Iterable[T], count: int) -> list[Any]:
    """For ``parametrize``: all of them, of which the first tier has the first ones."""
    return [value if k < count else _thorough(value) for k, value in enumerate(values)]


def _thorough(value: Any) -> Any:
    """A tuple is of several arguments, as it is to ``parametrize``."""
    return pytest.param(*value if isinstance(value, tuple) else (value,), marks=thorough)
