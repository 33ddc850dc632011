"""Runs of modules that are computed in one pass: which ones are, and which stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast.nn import FusedSequential, MaskedConv2d


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


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("at", range(3))
def test_what_hooks_see_and_change_is_computed_in_steps(at: int, hook: str) -> None:
    torch.manual_seed(0)
    modules = [MaskedConv2d(4, 4, 3, "B"), nn.BatchNorm2d(4), nn.ReLU()]
    fused, plain = FusedSequential(*modules).eval(), nn.Sequential(*modules).eval()
    getattr(modules[at], hook)(lambda _, given, *result: result[0] + 1 if result else (given[0] + 1,))
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
