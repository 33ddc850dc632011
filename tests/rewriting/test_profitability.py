"""What is too small to gain anything is left, and said to be."""

import pytest
import torch
from public_networks import MaskedChild, Tutorial
from torch import Tensor

from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.rewriting import profitability
from pixelcnn_fast.rewriting.backend import Backend


@pytest.mark.parametrize("images", [1, 3])
def test_small_networks_are_left(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    model = Tutorial(4, (1, 2))
    of_two = 2 * 5 * 4 * 8 * 4 * 9  # products of a vertical stack's convolution, for two images
    monkeypatch.setattr(profitability, "FEWEST_PRODUCTS", of_two)
    monkeypatch.setattr(profitability, "FEWEST_ELEMENTS", 2 * 5 * 4 * 8)

    def run(model: torch.nn.Module, backend: Backend, n: int) -> Tensor:
        return torch.compile(model, backend=backend)(torch.randn(n, 1, 5, 4))

    backend = Backend()
    run(model, backend, images)
    assert sum(backend.report.rewritten.values()) == (0 if images == 1 else 2 + 4 + 1), str(backend.report)
    assert f"tanh · sigmoid: {profitability.TOO_SMALL}" in str(backend.report) or images == 3
    assert f"conv2d [8, 4, 1, 3]: {profitability.TOO_SMALL}" in str(backend.report)


def test_sizes_that_vary_count_as_what_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profitability, "FEWEST_PRODUCTS", 3 * 5 * 4 * 8 * 4 * 9)  # of three images
    layer, backend = MaskedChild(4, 8, raster_mask(3, 3, "B")), Backend()
    torch.compile(layer, backend=backend, dynamic=True)(torch.randn(3, 4, 5, 4))
    assert backend.report.rewritten, str(backend.report)
