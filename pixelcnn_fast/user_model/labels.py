"""Finds out which labels a model takes, or which codes as a condition, whether it says so or not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HIGHEST = 2**16  # label up to which K is looked for
CHECKED = 64  # labels among which those of examples are, if K is not known


class Labels:
    """The labels of a model, or the integers of its condition: 0...K-1, where K is said or found by trying.

    classes: K, if known; accepted: labels below it count as taken; highest: the label up to
    which K is looked for.
    """

    def __init__(self, classes: int | None, name: str = "labels", highest: int = HIGHEST) -> None:
        self.classes, self._name, self._highest = classes, name, highest
        self.accepted = classes or 2

    def examples(self, first: int, n: int, device: torch.device) -> Tensor:
        """n labels in turn, from the label ``first``."""
        return (first + torch.arange(n, device=device)) % self.accepted

    def explore(self, takes: Callable[[int], bool]) -> None:
        """Tries labels beyond 0 and 1. takes: whether the model takes a label."""
        if self.classes is None and takes(self.accepted - 1):
            self.classes = first_refused(takes, self.accepted, self._highest)
            self.accepted = self.classes or max(self.accepted, min(CHECKED, self._highest + 1))

    def restrict(self, takes: Callable[[int], bool]) -> None:
        """Finds K below ``accepted`` if a stricter judge refuses a label that seemed to be taken."""
        if not takes(self.accepted - 1):
            self.classes = self.accepted = first_refused(takes, 1, self.accepted - 1) or self.accepted

    def why_not(self, low: int, high: int, takes: Callable[[int], bool] | None) -> str | None:
        """Why labels that span low...high are refused, or None. takes: None if it can't be tried."""
        untried = low < 0 or high >= self.accepted
        if self.classes is None and untried and takes is not None and takes(0):
            if low >= 0 and takes(high):
                self.accepted = high + 1
            else:
                self.classes = first_refused(takes, self.accepted, max(high, self._highest))
        if low >= 0 and (self.classes is None or high < self.classes):
            return None
        expected = "0 or more" if self.classes is None else f"0...{self.classes - 1}"
        return f"{self._name} span {low}...{high}, expected {expected}"


def first_refused(takes: Callable[[int], bool], taken: int, most: int) -> int | None:
    """The smallest number that is not taken, by doubling and bisection, up to ``most``; those below ``taken`` are."""
    good, bad = taken - 1, None
    while bad is None:
        if good >= most:
            return None
        tried = min(max(2 * good, 1), most)
        good, bad = (tried, None) if takes(tried) else (good, tried)
    while bad - good > 1:
        tried = (good + bad) // 2
        good, bad = (tried, bad) if takes(tried) else (good, tried)
    return bad
