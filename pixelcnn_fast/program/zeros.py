"""Tells which weights are not zero, and lets recorders know when only that is asked."""

from __future__ import annotations

import threading

from torch import Tensor


class _Asking(threading.local):
    is_for_more = False  # whether this thread is in ``lets_through``


asking = _Asking()


def lets_through(weights: Tensor) -> Tensor:
    """Which weights are not zero, as bool, for callers that don't mind if more become zero later.

    A program that multiplies by zero is as right as one without the product.
    """
    asking.is_for_more = True
    try:
        return weights != 0
    finally:
        asking.is_for_more = False
