"""From one pixel's logits and noise to levels, and what a user may change about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcnn_fast.errors import NonFiniteLogits


@dataclass(frozen=True)
class Drawing:
    """How levels are drawn from softmax(logits / temperature); temperature 0 takes the most likely level.

    top_k: only that many levels, the most likely, may be drawn (None: all). top_p: only the most likely levels that
    together just reach this probability; after top_k, which counts as probability 1. Of equally likely levels the
    lower counts as more likely.
    Source of top_p: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: expected a finite number, 0 or larger")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k}: expected an integer, 1 or more, or None for all levels")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p is {self.top_p}: expected more than 0 and at most 1, or None for all levels"
            )

    def draw(self, logits: Tensor, noise: Tensor) -> Tensor:
        """The smallest level k with u < cdf_k; the last possible one if rounding leaves none.

        logits: [..., L]; noise: u in [0, 1), [...] -> levels [...], int64.
        The probabilities are in the logits' dtype, their sums in float64.
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        weights = ((logits - logits.amax(-1, keepdim=True)) / self.temperature).exp().double()
        if self.top_k is not None or self.top_p is not None:
            weights = weights * self._possible(logits, weights)
        cumulative = weights.cumsum(-1)
        target = noise.double()[..., None] * cumulative[..., -1:]
        last = (weights > 0).double().cumsum(-1).argmax(-1)
        return (cumulative <= target).sum(-1).minimum(last)

    def _possible(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Which levels may be drawn: bool [..., L]."""
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        ranked = weights.gather(-1, order)
        if self.top_k is not None:
            ranked[..., self.top_k :] = 0
        kept = ranked > 0
        if self.top_p is not None and self.top_p < 1:  # 1 keeps also levels too unlikely to change the sum
            sums = ranked.cumsum(-1)
            kept[..., 1:] &= sums[..., :-1] < self.top_p * sums[..., -1:]
        return torch.zeros_like(kept).scatter(-1, order, kept)


def check_finite(logits: Tensor, row: int, column: int, first_channel: int = 0) -> None:
    """logits: [N, C, L] of pixel (row, column) from that image channel on. Raises NonFiniteLogits."""
    bad = ~torch.isfinite(logits).all(-1)
    if bad.any():
        image, channel = bad.nonzero()[0].tolist()
        raise NonFiniteLogits(image, first_channel + channel, row, column)
