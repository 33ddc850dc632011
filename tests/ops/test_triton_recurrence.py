"""The Triton recurrences against plain torch and float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.ops.test_recurrences import inputs
from tests.tiers import tiered
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import exact_float32, poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("poisoned_memory", "exact_float32")

from pixelcnn_fast.ops import recurrence, triton_recurrence  # noqa: E402
from pixelcnn_fast.ops.diagonal_lstm import op as diagonal  # noqa: E402
from pixelcnn_fast.ops.diagonal_lstm import reference as diagonals  # noqa: E402
from pixelcnn_fast.ops.row_lstm import op as row  # noqa: E402
from pixelcnn_fast.ops.row_lstm import reference as rows  # noqa: E402

# name: taps of the weight, whether diagonal, whether reversed
CASES = {
    "rows": (3, False, False),
    "rows, five taps": (5, False, False),
    "rows, one tap": (1, False, False),
    "diagonals": (2, True, False),
    "diagonals from the right": (2, True, True),
}
Results = tuple[Tensor, ...]
HIGH = (18, 3) if DEVICE.type == "cuda" else (9, 3)  # to the interpreter, each step costs


def by_triton(name: str, given: list[Tensor | None], grad: Tensor) -> Results:
    """h, and the gradients of sums, weight, h0 and c0."""
    taps, is_diagonal, reverse = CASES[name]
    sums, weight, h0, c0 = given
    assert sums is not None and weight is not None
    h, gates = triton_recurrence.forward(sums, weight, h0, c0, is_diagonal, reverse, True)
    grad_sums, grad_c0 = triton_recurrence.backward(grad, weight, c0, gates, is_diagonal, reverse)
    places = diagonal._taps(taps, reverse) if is_diagonal else row._taps(taps)
    grad_weight = recurrence._weight_gradient(grad_sums, h, h0, places, weight, "triton")
    return h, grad_sums, grad_weight, recurrence._initial_gradient(grad_sums, weight, places), grad_c0


def by_reference(name: str, given: list[Tensor | None], grad: Tensor) -> Results:
    _, is_diagonal, reverse = CASES[name]
    sums, weight, h0, c0 = given
    options = (reverse,) if is_diagonal else ()
    reference = diagonals if is_diagonal else rows
    forward: Callable[..., tuple[Tensor, Tensor]] = partial(reference.forward, keep=True)
    h, gates = forward(sums, weight, h0, c0, *options)
    return h, *reference.backward(grad, weight, h0, c0, h, gates, *options)


@pytest.mark.parametrize(
    ("size", "hidden", "dtype", "learned", "layout"),
    tiered(
        [
            ((4, 5), 3, torch.float32, True, torch.contiguous_format),
            ((3, 18), 17, torch.float32, False, torch.channels_last),
            (HIGH, 5, torch.bfloat16, True, torch.channels_last),
            ((1, 1), 2, torch.float16, True, torch.contiguous_format),
            # of fewer channels, plain torch's error may be none by chance
            ((5, 1), 9, torch.float32, True, torch.channels_last),
            ((1, 6), 9, torch.float32, True, torch.channels_last),
        ],
        lambda case: case[0] in ((4, 5), (1, 1)),
    ),
    ids=str,
)
@pytest.mark.parametrize("name", tiered(CASES, lambda name: name in ("rows", "diagonals from the right")))
def test_forward_and_backward(name, size, hidden, dtype, learned, layout):
    if (
        CASES[name][1] and DEVICE.type == "cpu"
    ):  # columns of 3 rows are steps, and of two tiles only along rows
        size = size[0], min(size[1], 11)
    rounded = [x if x is None else x.to(dtype) for x in inputs(hidden, CASES[name][0], 2, size, learned)]
    grad = torch.randn(2, hidden, *size).to(dtype)

    def on(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor]:
        moved = [x if x is None else x.to(device, dtype) for x in rounded]
        assert moved[0] is not None
        moved[0] = moved[0].contiguous(memory_format=layout)
        return moved, grad.to(device, dtype)

    found = by_triton(name, *on(DEVICE, dtype))
    plain = by_reference(name, *on(DEVICE, dtype))
    exact = by_reference(name, *on(DEVICE, torch.float64))
    assert found[0].is_contiguous(memory_format=layout) and found[1].is_contiguous(memory_format=layout)
    for got, plain_value, exact_value in zip(found, plain, exact, strict=True):
        assert_as_exact_as_plain(got, plain_value, exact_value)


def test_gates_are_kept_only_if_wanted() -> None:
    sums, weight, *_ = (x if x is None else x.float().to(DEVICE) for x in inputs(3, 3, 1, (3, 4), False))
    assert sums is not None and weight is not None
    h, gates = triton_recurrence.forward(sums, weight, None, None, False, False, False)
    kept, _ = triton_recurrence.forward(sums, weight, None, None, False, False, True)
    assert not gates.numel() and torch.equal(h, kept)


def test_no_image() -> None:
    sums, weight, *_ = (x if x is None else x.float().to(DEVICE) for x in inputs(3, 3, 1, (3, 4), False))
    assert sums is not None and weight is not None
    h, gates = triton_recurrence.forward(sums[:0], weight, None, None, False, False, True)
    assert h.shape == (0, 3, 3, 4) and gates.shape == (0, 12, 3, 4)
    grad_sums, grad_c0 = triton_recurrence.backward(h, weight, None, gates, False, False)
    assert grad_sums.shape == gates.shape and not grad_c0.any()


def test_float64_is_refused() -> None:
    sums, weight, *_ = (x if x is None else x.to(DEVICE) for x in inputs(3, 3, 1, (3, 4), False))
    assert sums is not None and weight is not None
    with pytest.raises(TypeError, match="float64.*reference"):
        triton_recurrence.forward(sums, weight, None, None, False, False, True)
