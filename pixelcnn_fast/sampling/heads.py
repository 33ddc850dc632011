"""Heads turn one pixel's logits and its noise into levels."""

from __future__ import annotations

import torch
from torch import Tensor


class NonFiniteLogits(ValueError):
    """The model gave NaN or infinite logits, so there is nothing to draw from."""

    def __init__(self, image: int, channel: int, row: int, column: int) -> None:
        self.place = (image, channel, row, column)
        super().__init__(
            f"image {image}, channel {channel}, row {row}, column {column}: the logits are NaN or infinite; "
            "check the model's weights, and the scale of known pixels if you gave any"
        )


def draw_categorical(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """The smallest level k with u < cdf_k of softmax(logits / temperature); the last if rounding leaves none.

    logits: [..., L]; noise: u in [0, 1), [...] -> levels [...], int64. temperature 0: argmax.
    The probabilities are in the logits' dtype, their sums in float64.
    """
    if temperature == 0:
        return logits.argmax(-1)
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    cumulative = scaled.exp().double().cumsum(-1)
    target = noise.double()[..., None] * cumulative[..., -1:]
    return (cumulative <= target).sum(-1).clamp_max(logits.shape[-1] - 1)


def check_finite(logits: Tensor, row: int, column: int) -> None:
    """logits: [N, C, L] of pixel (row, column). Raises NonFiniteLogits."""
    bad = ~torch.isfinite(logits).all(-1)
    if bad.any():
        image, channel = bad.nonzero()[0].tolist()
        raise NonFiniteLogits(image, channel, row, column)
