"""Maps between the library's ops are channels-last, whatever comes first, and the caller's are contiguous."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pixelcnn_fast.models.reference import PixelCNN
from pixelcnn_fast.rewriting.backend import Backend
from tests.needs import needs_native
from tests.rewriting.networks import Masked
from tests.tiers import thorough


class Results(fx.Interpreter):
    """Runs a graph, and lists the maps that the library's ops give."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.maps: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if str(n.target).startswith("pixelcnn_fast."):
            self.maps.append(result)
        return result


class Looking(Backend):
    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        super().__call__(module, inputs)

        def run(*args: Any) -> Any:
            results = Results(module)
            result = results.run(*args)
            self.maps += results.maps
            return result

        return run


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
def test_maps_between_ours_are_channels_last(colours: int, inference: bool) -> None:
    model, images = PixelCNN(colours, 8, 2).train(not inference), torch.rand(2, colours, 6, 5)
    backend = Looking()
    with torch.set_grad_enabled(not inference):
        got, expected = torch.compile(model, backend=backend)(images), model(images)
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()
    *between, logits = backend.maps
    assert len(between) == 7, str(backend.report)
    for one in between:
        assert one.is_contiguous(memory_format=torch.channels_last)
    assert logits.is_contiguous()


@pytest.mark.parametrize("inference", [False, True])
def test_logits_of_a_dilated_convolution_are_contiguous(inference: bool) -> None:
    model = nn.Sequential(
        Masked(3), nn.ReLU(), Masked(4), nn.ReLU(), nn.Conv2d(4, 9, 3, padding=2, dilation=2)
    )
    x, backend = torch.randn(2, 3, 6, 5), Looking()
    with torch.set_grad_enabled(not inference):
        found, expected = torch.compile(model, backend=backend)(x), model(x)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride() and len(backend.maps) == 3, str(backend.report)


@needs_native
@pytest.mark.parametrize("inference", [False, True])
@thorough
def test_inductor_gives_logits_contiguously(inference: bool) -> None:
    """It may lay out what is read in both layouts as it likes: here a sum with zeros, which it makes constants."""

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Masked(3), Masked(4)])
            self.skip, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.out(torch.zeros_like(x) + self.skip(x))

    torch.manual_seed(0)
    plain, x, backend = Skips(), torch.randn(2, 3, 8, 8), Backend("inductor")
    with torch.set_grad_enabled(not inference):
        found, expected = torch.compile(plain, backend=backend)(x), plain(x)
    torch.testing.assert_close(found, expected)
    assert found.stride() == expected.stride() and backend.report.rewritten
