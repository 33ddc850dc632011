"""What holds for every op: its registration with PyTorch, and its derivatives, against finite differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import ops
from pixelcnn_fast.nn import raster_mask
from tests.tiers import few, tiered

MASK, LEVELS, PAIR = raster_mask(3, 3, "B"), torch.arange(12).view(2, 1, 2, 3) % 4, (1, 1)

# The op, the shapes of the tensors that it has gradients of, and its arguments by these and the backend.
Case = tuple[str, list[tuple[int, ...]], Callable[..., tuple]]
TWICE: dict[str, Case] = {  # which have derivatives of derivatives, too
    "convolution": (
        "masked_conv2d",
        [(1, 2, 3, 3), (2, 2, 3, 3), (2,)],
        lambda x, weight, bias, how: (x, weight, bias, MASK.to(x), PAIR, PAIR, how),
    ),
    "convolution without bias": (
        "masked_conv2d",
        [(1, 2, 3, 3), (2, 2, 3, 3)],
        lambda x, weight, how: (x, weight, None, MASK.to(x), PAIR, PAIR, how),
    ),
    "convolution of its own size": (
        "masked_conv2d",
        [(1, 2, 3, 3), (2, 2, 2, 3), (2,)],
        lambda x, weight, bias, how: (
            *(x, weight, bias, torch.ones(1).to(x), PAIR, PAIR, how, False, None, (3, 4)),
        ),
    ),
    "gate": ("gated_activation", [(1, 4, 1, 2)], lambda x, how: (x, None, how)),
    "linear gate": ("gated_activation", [(1, 4, 1, 2)], lambda x, how: (x, None, how, True)),
    "gate, a condition of images": ("gated_activation", [(1, 4, 1, 2), (1, 4)], lambda *given: given),
    "gate, a condition of pixels": ("gated_activation", [(1, 4, 1, 2), (1, 4, 1, 2)], lambda *given: given),
    "concatenated ELU": ("concat_elu", [(1, 3, 1, 2)], lambda *given: given),
    "likelihood": ("categorical_nll", [(2, 1, 2, 3, 4)], lambda x, how: (x, LEVELS, how)),
}
LSTM = [(2, 8, 3, 4), (8, 2, 2), (2,), (2,)]
ONCE: dict[str, Case] = {
    "rows": ("row_lstm", [LSTM[0], (8, 2, 3), *LSTM[2:]], lambda *given: (*given[:4], True, given[4])),
    "rows, from zero": (
        "row_lstm",
        [LSTM[0], (8, 2, 1)],
        lambda sums, weight, how: (sums, weight, None, None, True, how),
    ),
    "diagonals": ("diagonal_lstm", LSTM, lambda *given: (*given[:4], False, True, given[4])),
    "diagonals from the right": ("diagonal_lstm", LSTM, lambda *given: (*given[:4], True, True, given[4])),
    "diagonals, from zero": (
        "diagonal_lstm",
        LSTM[:2],
        lambda sums, weight, how: (sums, weight, None, None, False, True, how),
    ),
}
ALL = TWICE | ONCE


def drawn(name: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ALL[name][1]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


def op(name: str) -> Any:
    return getattr(torch.ops.pixelcnn_fast, ALL[name][0]).default


def function(name: str, backend: str) -> Callable[..., Tensor]:
    """The first result by the tensors that it has gradients of."""

    def call(*tensors: Tensor) -> Tensor:
        result = op(name)(*ALL[name][2](*tensors, backend))
        return result[0] if isinstance(result, tuple) else result

    return call


@pytest.mark.parametrize("dtype", few([torch.float32, torch.float16], 1))
@pytest.mark.parametrize("name", tiered(ALL, lambda name: "zero" not in name))
def test_registration(name: str, dtype: torch.dtype) -> None:
    torch.library.opcheck(op(name), ALL[name][2](*drawn(name, dtype), "auto"))


@pytest.mark.parametrize("backend", few(["auto", "reference"], 1))
@pytest.mark.parametrize("name", ALL)
def test_first_derivatives(name: str, backend: str) -> None:
    torch.autograd.gradcheck(function(name, backend), drawn(name))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", tiered(TWICE, lambda name: "without" not in name))
def test_second_and_third_derivatives(name: str, backend: str) -> None:
    tensors, computed = drawn(name), function(name, backend)

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(computed(*tensors).pow(3).sum(), tensors, create_graph=True)

    torch.autograd.gradgradcheck(computed, tensors)
    torch.autograd.gradgradcheck(gradients, tensors)


@pytest.mark.parametrize(
    ("differentiated", "given"),
    [
        (lambda x: ops.masked_conv2d(x, x.new_ones(2, 2, 3, 3), None, MASK), (1, 2, 4, 4)),
        (ops.gated_activation, (1, 4, 2, 2)),
        (ops.concat_elu, (1, 4, 2, 2)),
        (lambda x: ops.categorical_nll(x, torch.zeros(1, 1, 2, 2, dtype=torch.long)), (1, 1, 2, 2, 3)),
        (lambda x: ops.row_lstm(x, x.new_ones(12, 3, 3)), (1, 12, 2, 2)),
        (lambda x: ops.diagonal_lstm(x, x.new_ones(12, 3, 2)), (1, 12, 2, 2)),
    ],
)
def test_forward_mode_derivatives_are_refused(differentiated: Callable, given: tuple[int, ...]) -> None:
    x = torch.randn(given)
    with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        torch.func.jvp(differentiated, (x,), (x,))
