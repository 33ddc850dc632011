"""Masks and norms of weights that PyTorch's own tools apply: parametrizations, weight norms, spectral norm."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from pixelcnn_fast import accelerate, accelerated
from pixelcnn_fast.nn import raster_mask
from tests.tiers import few


class Mask(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", raster_mask(3, 3, "B"))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Masked(nn.Conv2d):
    """Masks whatever its weight has become."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.masked = Mask()

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.masked(self.weight), self.bias, padding=self.padding)


def convolution() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1)


def parametrized() -> nn.Module:
    layer = convolution()
    parametrize.register_parametrization(layer, "weight", Mask())
    return layer


def weight_norm_of_a_masked() -> nn.Module:
    return parametrizations.weight_norm(Masked())


def mask_after_weight_norm() -> nn.Module:
    layer = parametrizations.weight_norm(convolution())
    parametrize.register_parametrization(layer, "weight", Mask())
    return layer


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(Masked())


def spectral_norm() -> nn.Module:
    return parametrizations.spectral_norm(Masked())


WRAPPED = [parametrized, weight_norm_of_a_masked, mask_after_weight_norm, old_weight_norm, spectral_norm]


@pytest.mark.parametrize("training", few([True, False], 1))
@pytest.mark.parametrize("layer", WRAPPED, ids=lambda layer: layer.__name__)
def test_wrapped_weights(layer: Any, training: bool) -> None:

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(layer(), nn.ReLU(), layer()).double().train(training)

    plain, fast, x = network(), network(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    handle = accelerated(accelerate(fast))
    for _ in range(2):
        for model in (fast, plain):
            model.zero_grad()
            model(x).square().sum().backward()
        torch.testing.assert_close(fast(x), plain(x))
        for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    assert sum(n for (what, _), n in handle.report.rewritten.items() if "masked_conv2d" in what) == 2, str(
        handle
    )
