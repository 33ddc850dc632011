"""The operators hand their Triton kernels what they hand the others: each with all that it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.triton_device import exact_float32, poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("exact_float32", "poisoned_memory")

from pixelcnn_fast import ops  # noqa: E402
from pixelcnn_fast.nn import raster_mask  # noqa: E402
from pixelcnn_fast.ops import recurrence  # noqa: E402
from pixelcnn_fast.ops.categorical_nll import op as nll_op  # noqa: E402
from pixelcnn_fast.ops.gated_activation import op as gate_op  # noqa: E402
from pixelcnn_fast.ops.masked_conv2d import op as conv_op  # noqa: E402
from pixelcnn_fast.ops.masked_conv_block import op as block_op  # noqa: E402


@pytest.fixture(autouse=True)
def triton_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, too, in its interpreter."""
    for module in (nll_op, gate_op, conv_op, block_op, recurrence):
        monkeypatch.setattr(module, "choose", lambda given, *_: "triton" if given == "auto" else given)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def check(function: Callable[..., Tensor], given: list[Tensor], **how: Any) -> None:
    """The result, and the gradients of what is given, against the reference's."""
    results = []
    for backend in ("auto", "reference"):
        leaves = [x.detach().requires_grad_() for x in given]
        y = function(*leaves, **how, backend=backend)
        along = torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape)
        results.append([y, *torch.autograd.grad(y, leaves, along)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


MASK = raster_mask(3, 3, "B").to(DEVICE)


def test_convolution() -> None:
    def convolved(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, MASK, (2, 1), (2, 1), backend)

    check(convolved, [random(1, 2, 4, 5), random(3, 2, 3, 3), random(3)])


def test_window() -> None:
    def convolved(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        how = ([2, 0], [1, 2], backend, False, torch.channels_last, [5, 3])
        return torch.ops.pixelcnn_fast.masked_conv2d.default(x, weight, bias, MASK, *how)

    check(convolved, [random(1, 2, 6, 5), random(3, 2, 3, 3), random(3)])


@pytest.mark.parametrize("left_out", [(), ("bias",), ("bias", "scale", "shift", "condition", "residual")])
def test_block(left_out: tuple[str, ...]) -> None:
    terms = dict(
        bias=random(3), scale=random(3), shift=random(3), condition=random(2, 3), residual=random(2, 3, 4, 5)
    )
    x, weight = random(2, 2, 4, 5), random(3, 2, 3, 3)
    given: dict[str, Any] = {name: None if name in left_out else term for name, term in terms.items()}
    found, expected = (
        ops.masked_conv_block(x, weight, mask=MASK, **given, activation="elu", alpha=0.3, backend=backend)
        for backend in ("auto", "reference")
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("condition", [(2, 6), (2, 6, 4, 5)])
def test_gate(condition: tuple[int, ...]) -> None:
    check(ops.gated_activation, [random(2, 6, 4, 5), random(*condition)])


def test_nll() -> None:
    levels = torch.randint(7, (2, 1, 4, 5), device=DEVICE)
    check(ops.categorical_nll, [random(2, 1, 4, 5, 7)], levels=levels, ignored=3)


def test_nll_whose_gradient_is_one_number_for_all_images() -> None:
    levels = torch.randint(7, (2, 1, 4, 5), device=DEVICE)

    def in_all(logits: Tensor, backend: str) -> Tensor:
        return ops.categorical_nll(logits, levels, backend).sum()

    check(in_all, [random(2, 1, 4, 5, 7)])


@pytest.mark.parametrize("reverse", [None, False, True])
def test_recurrences(reverse: bool | None) -> None:
    """Weights and states may have gaps."""
    taps = 3 if reverse is None else 2
    function = ops.row_lstm if reverse is None else partial(ops.diagonal_lstm, reverse=reverse)
    spread = [random(*shape, 2)[..., 0] for shape in ((12, 3, taps), (3,), (3,))]
    check(function, [random(2, 12, 3, 4), *spread])
