"""One number per sub-pixel, for images of two levels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.heads.categorical import Categorical


@dataclass(frozen=True)
class Bernoulli:
    """Images of two levels, 0 and 1; the model's output is [N, C, H, W], one number per sub-pixel.

    probabilities: whether that number is the probability of level 1, after a sigmoid, or its logit, before one.
    """

    probabilities: bool = False
    levels = 2
    layout = "N,C,H,W"

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        """[N, C, H, W] -> logits [N, C, H, W, 2], that of level 0 being zero."""
        if self.probabilities:  # one of 1 would have an infinite logit
            output = torch.logit(output, eps=torch.finfo(output.dtype).eps)
        pairs = torch.zeros(2 * channels, channels, 1, 1, dtype=output.dtype, device=output.device)
        pairs[1::2, :, 0, 0].fill_diagonal_(1)
        return Categorical(2, "N,C*L,H,W").arranged(F.conv2d(output, pairs), channels)

    def comparable(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.probabilities else logits
