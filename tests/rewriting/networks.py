"""What tests of rewriting share: networks that do what they are given, and how they are compared with compiled ones."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.rewriting.backend import Backend

SHAPE = (2, 4, 6, 6)
Model = TypeVar("Model", bound=nn.Module)


class Masked(nn.Conv2d):
    """A plain convolution that multiplies its weight by a mask B."""

    mask: Tensor

    def __init__(self, inputs: int = 4, outputs: int = 4, size: int = 3) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.register_buffer("mask", raster_mask(size, size, "B").expand_as(self.weight).clone())

    def forward(self, input: Tensor, padding: Any = None) -> Tensor:
        padding = self.padding if padding is None else padding
        return F.conv2d(input, self.weight * self.mask, self.bias, padding=padding)


class Programmed(nn.Module):
    """Layers, parameters and buffers, of which ``program(network, *given)`` takes what it needs."""

    mask: Tensor
    ones: Tensor

    def __init__(self, program: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.wide = Masked(), Masked(), Masked(), Masked(4, 8)
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        buffers = {"mask": self.a.mask.clone(), "ones": torch.ones(1, 1, 3, 3), "map": torch.ones(SHAPE)}
        for name, x in (buffers | {"spare": torch.zeros(4, 4, 3, 3)}).items():
            self.register_buffer(name, x)
        self.scalar, self.gains = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(4, 1, 1, 1))
        self.left, self.right = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.zeros(2, 4))
        self.soft, self.learned = nn.Parameter(torch.ones(1)), nn.Parameter(self.mask[:1, :1].clone())
        self.condition = nn.Parameter(torch.randn(2, 4, 1, 1))
        self.condition_of_all = nn.Parameter(torch.randn(1, 4, 1, 1))
        self.condition_of_pixels = nn.Parameter(torch.randn(2, 1, 6, 5))
        self.program = program

    def forward(self, *given: Tensor) -> Any:
        return self.program(self, *given)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.conv.bias, padding=1)

    @property
    def weight(self) -> Tensor:
        return self.conv.weight


def in_order(*steps: Any) -> Any:
    """What the last of these steps gives, as arguments are computed in order."""
    return steps[-1]


def images(width: int = 6) -> Tensor:
    return torch.randn(2, 4, 6, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def compiled_copy(model: Model, mode: Any = "eager", **settings: Any) -> tuple[Model, Backend]:
    """A copy that is compiled when it is called, and the backend, which has its report."""
    fast, backend = copy.deepcopy(model), Backend(mode, **settings)
    fast.compile(backend=backend)
    return fast, backend


def moved(model: nn.Module) -> None:
    """As training moves its parameters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def outputs_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)  # of dropout
    x = x.clone().requires_grad_()
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in (x, *model.parameters()) if p.grad is not None)]


def check(model: nn.Module, x: Tensor, mode: Any = "eager") -> Backend:
    """Compares a compiled copy with the model, in training and in inference, before and after its weights move."""
    model = model.double().train()
    fast, backend = compiled_copy(model, mode)
    for _ in range(2):
        found, expected = outputs_and_gradients(fast, x), outputs_and_gradients(model, x)
        assert found[0].stride() == expected[0].stride()
        torch.testing.assert_close(found, expected)
        for each in (fast, model):
            moved(each)
    fast.eval(), model.eval()
    with torch.no_grad():
        got, plain = fast(x), model(x)
    torch.testing.assert_close(got, plain)
    assert got.stride() == plain.stride()
    return backend


def times(backend: Backend, op: str) -> int:
    """How many calls were rewritten to an op, in training: it is compiled again for inference."""
    return sum(op in what for what, _ in backend.report.rewritten)
