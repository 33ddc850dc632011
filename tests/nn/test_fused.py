"""Runs of modules that are computed in one pass: which ones are, and which stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelcnn_fast.nn import FusedSequential


class Dimmed(nn.Conv2d):
    """Has a mask of its own, of the weight's shape, and puts it to another use."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.register_buffer("mask", torch.zeros_like(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input * (2 + self.mask.sum()))


def test_another_convolution_with_a_mask_does_what_it_does():
    torch.manual_seed(0)
    modules = [Dimmed(), nn.BatchNorm2d(4), nn.ReLU(), Dimmed(), nn.Tanh()]
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        assert torch.equal(FusedSequential(*modules).eval()(x), nn.Sequential(*modules).eval()(x))
