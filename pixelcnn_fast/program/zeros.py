"""Which weights let something through, and who only asks that."""

from __future__ import annotations

import threading

from torch import Tensor


class _Asking(threading.local):
    is_for_more = False  # whether this thread is in ``lets_through``


asking = _Asking()


def lets_through(weights: Tensor) -> Tensor:
    """Where weights are not zero: bool, of their shape. That others become zero later must make no difference to who
    asks: a program that multiplies by zero is as right as one without the product."""
    asking.is_for_more = True
    try:
        return weights != 0
    finally:
        asking.is_for_more = False
