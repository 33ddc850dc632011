"""What rewritten graphs compute has PyTorch's strides, by which ``flatten`` shares memory or copies."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.rewriting.backend import Backend
from pixelcnn_fast.rewriting.strides import OTHER_STRIDES
from tests.rewriting.networks import Masked
from tests.tiers import few, thorough

# Of axes, from the outermost in memory to the innermost.
ORDERS = [(0, 1, 2, 3), (0, 2, 3, 1), (0, 1, 3, 2), (2, 3, 0, 1), (0, 3, 2, 1)]


class Network(nn.Module):
    def __init__(
        self, channels: int, hidden: int, outputs: int, forward: Callable[[Any, Tensor], Any]
    ) -> None:
        super().__init__()
        self.first, self.last = Masked(channels, hidden), Masked(hidden, outputs)
        self.middle, self.wide = Masked(hidden, hidden), Masked(hidden, 2 * hidden)
        self.norm, self.logits = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, outputs, 1)
        self.forward_of = forward

    def forward(self, x: Tensor) -> Any:
        return self.forward_of(self, x)


def one(m: Network, x: Tensor) -> Any:
    return m.first(x)


def two(m: Network, x: Tensor) -> Any:
    return m.last(m.first(x))


def flattened(m: Network, x: Tensor) -> Any:
    flat = m.first(x).flatten(1)
    return flat, flat.stride()


def with_logits(m: Network, x: Tensor) -> Any:
    return m.logits(torch.relu(m.middle(m.first(x))))


def block(m: Network, x: Tensor) -> Any:
    h = m.first(x)
    return F.relu(m.norm(m.middle(h))) + h, torch.relu(m.middle(h) + h.flip(1))


def residual_of_other_strides(m: Network, x: Tensor) -> Any:
    h = m.first(x)
    other = h.transpose(2, 3).contiguous().transpose(2, 3)
    return torch.relu(m.middle(h) + other), torch.relu(other + m.middle(h)), m.middle(other)


def gate(m: Network, x: Tensor) -> Any:
    a, b = m.wide(m.first(x)).chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def gate_of_the_input(m: Network, x: Tensor) -> Any:
    total = (1 * x).repeat_interleave(2, 1) + (1 * x).repeat_interleave(2, 1)
    a, b = total.chunk(2, 1)
    c, d = (torch.cat([x, x], 1) * 1).transpose(2, 3).chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b), torch.tanh(c) * torch.sigmoid(d)


def gate_of_sums(m: Network, x: Tensor) -> Any:
    h = m.wide(m.first(x))
    a, b = (h + h.transpose(2, 3).contiguous().transpose(2, 3)).chunk(2, 1)
    c, d = (h.transpose(2, 3).contiguous().transpose(2, 3) + h).chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b), torch.tanh(c) * torch.sigmoid(d)


def padded(m: Network, x: Tensor) -> Any:
    return m.first(F.pad(x, (0, 0, 1, 0)))[:, :, :-1].relu(), m.first(F.pad(x, (1, 0))[..., :-1])


def weights_channels_last(m: Network, x: Tensor) -> Any:
    weight = (m.first.weight * m.first.mask).contiguous(memory_format=torch.channels_last)
    h = F.conv2d(x, weight, padding=1)
    return h, m.last(torch.relu(h))


PROGRAMS = [
    one,
    two,
    flattened,
    with_logits,
    block,
    residual_of_other_strides,
    gate,
    gate_of_the_input,
    gate_of_sums,
    padded,
    weights_channels_last,
]
SIZES = [(2, 4, 6, 5), (1, 1, 6, 5), (3, 4, 1, 1), (2, 4, 5, 1)]
SIZES_AND_CHANNELS = [*zip(SIZES, ((4, 1), (1, 3), (4, 1), (1, 3)), strict=True)]
SIZES_AND_CHANNELS += [*zip(SIZES, ((1, 3), (4, 1), (1, 3), (4, 1)), strict=True)]


def _permuted(size: Sequence[int], order: Sequence[int]) -> Tensor:
    """Of a size, with axes in some order in memory."""
    return torch.randn([size[axis] for axis in order]).permute([order.index(axis) for axis in range(4)])


def _tensors(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple) else [found]


def _check(compiled: Any, model: nn.Module, x: Tensor) -> None:
    for got, expected in zip(*(_tensors(m(x)) for m in (compiled, model)), strict=True):
        if isinstance(got, Tensor):
            assert got.stride() == expected.stride(), (x.shape, x.stride())
            torch.testing.assert_close(got, expected)
        else:
            assert got == expected


@pytest.mark.parametrize("inference", few([False, True], 1), ids=["training", "inference"])
@pytest.mark.parametrize(
    "cases", few([SIZES_AND_CHANNELS[:1], SIZES_AND_CHANNELS[1:]], 1), ids=["one", "others"]
)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_strides_are_those_of_pytorch(program: Callable[..., Any], cases: Any, inference: bool) -> None:
    backend = Backend()
    for size, (hidden, outputs) in cases:
        model = Network(size[1], hidden, outputs, program).train(not inference)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend, dynamic=False)
        for order in ORDERS:
            with torch.set_grad_enabled(not inference):
                _check(compiled, model, _permuted(size, order))
    assert backend.report.rewritten or program is gate_of_the_input
    assert not backend.report.warnings


@pytest.mark.parametrize(
    ("program", "inference"),
    few(
        [(two, False), (gate, False), (block, True), (two, True), (gate, True), (block, False)]
        + [(with_logits, inference) for inference in (False, True)],
        3,
    ),
)
def test_sizes_that_vary(program: Callable[..., Any], inference: bool) -> None:
    backend = Backend()
    model = Network(4, 4, 3, program).train(not inference)
    compiled = torch.compile(model, backend=backend, dynamic=True)
    for order in ORDERS[:2]:
        for size in ((2, 4, 6, 5), (3, 4, 7, 6), (5, 4, 9, 8)):
            with torch.set_grad_enabled(not inference):
                _check(compiled, model, _permuted(size, order))
    assert backend.report.rewritten and OTHER_STRIDES not in str(backend.report)
    assert not backend.report.warnings


@pytest.mark.parametrize("inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("program", [two, with_logits, block, gate, padded])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("last", [False, True])
@thorough
def test_models_that_are_channels_last(program, channels, last, inference):
    """A weight of one channel is both; its product with a mask becomes contiguous, and its fake tensor does not."""
    backend = Backend()
    model = Network(channels, 4, 3, program).to(memory_format=torch.channels_last).train(not inference)
    compiled = torch.compile(model, backend=backend, dynamic=False)
    x = torch.randn(2, channels, 6, 5)
    with torch.set_grad_enabled(not inference):
        _check(compiled, model, x.contiguous(memory_format=torch.channels_last) if last else x)
    assert not backend.report.warnings
