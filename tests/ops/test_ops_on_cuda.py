"""The ops on a GPU, as users call them: the Triton backend against plain torch and float64, gradients too."""

from __future__ import annotations

from collections.abc import Callable
from importlib import util

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import ops
from pixelcnn_fast.nn import raster_mask
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import exact_float32  # noqa: F401

pytestmark = [
    pytest.mark.usefixtures("exact_float32"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not util.find_spec("triton"), reason="triton is not installed: pip install triton"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, device="cuda")


def check(function: Callable[..., Tensor], dtype: torch.dtype, *tensors: Tensor) -> None:
    """function(backend, *tensors): its result, and its gradients in all tensors."""

    def computed(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [rounded.to(dtype).requires_grad_() for rounded in (t.to(low) for t in tensors)]
        out = function(backend, *leaves)
        torch.manual_seed(1)
        grad = torch.randn(out.shape).to(low).to(out)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]

    low = dtype
    exact = computed("reference", torch.float64)
    for got, plain, value in zip(computed("triton", dtype), computed("reference", dtype), exact, strict=True):
        assert_as_exact_as_plain(got, plain, value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_conv2d(dtype):
    torch.manual_seed(0)
    mask = raster_mask(3, 3, "B").expand(40, 33, 3, 3).cuda()
    x, weight, bias = random(3, 33, 17, 5), random(40, 33, 3, 3), random(40)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory_format)
        check(
            lambda backend, x, weight, bias: ops.masked_conv2d(x, weight, bias, mask, backend=backend),
            dtype,
            x,
            weight,
            bias,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_conv_block(dtype):
    torch.manual_seed(0)
    mask = raster_mask(3, 3, "B").expand(40, 33, 3, 3).cuda()
    arguments = [
        random(*size) for size in ((3, 33, 7, 5), (40, 33, 3, 3), (40,), (40,), (40,), (3, 40), (3, 40, 7, 5))
    ]

    def block(backend: str, dtype: torch.dtype) -> Tensor:
        x, weight, bias, scale, shift, condition, residual = (a.to(dtype) for a in arguments)
        return ops.masked_conv_block(
            x, weight, bias, mask, scale, shift, condition, residual, "elu", alpha=0.5, backend=backend
        )

    arguments = [a.to(dtype) for a in arguments]
    assert_as_exact_as_plain(
        block("triton", dtype), block("reference", dtype), block("reference", torch.float64)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_activation(dtype):
    torch.manual_seed(0)
    for condition in (random(3, 66), random(3, 66, 7, 5)):
        check(
            lambda backend, x, condition: ops.gated_activation(x, condition, backend),
            dtype,
            random(3, 66, 7, 5),
            condition,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_categorical_nll(dtype):
    torch.manual_seed(0)
    logits = random(3, 768, 7, 5).unflatten(1, (3, 256)).permute(0, 1, 3, 4, 2)
    levels = torch.randint(256, (3, 3, 7, 5), device="cuda")
    check(lambda backend, leaf: ops.categorical_nll(leaf, levels, backend), dtype, logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["rows", "diagonals", "diagonals from the right"])
def test_recurrences(name, dtype):
    torch.manual_seed(0)
    diagonal, options = name != "rows", {"reverse": True} if name.endswith("right") else {}
    recurrence = ops.diagonal_lstm if diagonal else ops.row_lstm
    given = random(3, 80, 17, 35), 0.3 * random(80, 20, 2 if diagonal else 3), random(20), random(20)
    check(
        lambda backend, sums, weight, h0, c0: recurrence(sums, weight, h0, c0, backend=backend, **options),
        dtype,
        *given,
    )


def test_another_stream_and_the_compiler():
    x = random(2, 66, 7, 5).float()
    plain, exact = (
        ops.gated_activation(x, None, "reference"),
        ops.gated_activation(x.double(), None, "reference"),
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        later = ops.gated_activation(x + 0, None, "triton")
    stream.synchronize()
    assert_as_exact_as_plain(later, plain, exact)
    compiled = torch.compile(lambda x: ops.gated_activation(x, None, "triton"), fullgraph=True)
    assert_as_exact_as_plain(compiled(x), plain, exact)
