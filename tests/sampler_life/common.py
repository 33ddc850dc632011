"""What the tests of a sampler's life have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelcnn_fast import Sampler
from pixelcnn_fast.models import PixelCNN
from tests.system import networks
from tests.system.networks import ABOVE, LEFT, Masked, Written

SHAPE = (1, 3, 4)
ZEROS = torch.zeros(1, *SHAPE, dtype=torch.uint8)
STALE = "the model has changed since this sampler was built, or refreshed"


def pixelcnn(classes: int | None = None, seed: int = 0) -> PixelCNN:
    """A small one, as most of these tests build several samplers."""
    return networks.pixelcnn(blocks=0, classes=classes, seed=seed)


# How often it was refreshed before; from the second time on, guards that follow from others are not looked at.
BEFORE = pytest.mark.parametrize("before", [0, 2], ids=["first refresh", "third refresh"])


def refreshed(sampler: Sampler, times: int) -> Sampler:
    for _ in range(times):
        sampler.refresh()
    return sampler


def noise(n: int = 3) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@contextmanager
def silence() -> Iterator[None]:
    """Within the context, a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def take(model: nn.Module, other: nn.Module) -> None:
    model.load_state_dict(other.state_dict())


class NoCopies:
    """Of which there are none, nor of what holds one."""

    def __deepcopy__(self, memo: dict) -> NoCopies:
        raise TypeError("there is only one")


class Around(Written):
    """A network and what ``use(module, output)`` makes of its output."""

    levels = 256
    net: PixelCNN

    def __init__(self, use: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__(use, net=pixelcnn(), **held)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_of(self, self.net(x))


class InPlace(nn.Module):
    """It masks its weight in place when it is called, caches something, and checkpoints a part of itself."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 6, (2, 3)), nn.Conv2d(6, 5, 1)
        self.register_buffer("mask", torch.tensor([[1.0, 1, 1], [1, 0, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data *= self.get_buffer("mask")
        self.cached = x
        h = self.first(nn.functional.pad(x.to(self.first.weight), (1, 1, 1, 0)))
        return checkpoint(lambda h: self.last(torch.relu(h)), h, use_reentrant=False)


class Network(nn.Module):
    """Between its layers, a part that may be anything."""

    levels = 5

    def __init__(self, mid: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mid, self.last = Masked(1, 6, [*ABOVE, *LEFT]), mid, nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.mid(self.first(x.to(self.last.weight)))))
