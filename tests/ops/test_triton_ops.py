"""The operators on Triton, as users call them, against plain torch and float64, with their gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiers import few
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import exact_float32, poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("exact_float32", "poisoned_memory")

from pixelcnn_fast import ops  # noqa: E402
from pixelcnn_fast.nn import raster_mask  # noqa: E402
from pixelcnn_fast.ops import recurrence  # noqa: E402
from pixelcnn_fast.ops.categorical_nll import op as nll_op  # noqa: E402
from pixelcnn_fast.ops.concat_elu import op as elu_op  # noqa: E402
from pixelcnn_fast.ops.gated_activation import op as gate_op  # noqa: E402
from pixelcnn_fast.ops.masked_conv2d import op as conv_op  # noqa: E402
from pixelcnn_fast.ops.masked_conv_block import op as block_op  # noqa: E402

IS_GPU = DEVICE.type == "cuda"  # else the interpreter, to which size matters
SIZE, CHANNELS, HIDDEN = ((17, 35), (33, 40), 20) if IS_GPU else ((3, 5), (5, 8), 5)
MASK = raster_mask(3, 3, "B").to(DEVICE)
each_dtype = pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16, torch.float16], 1), ids=str)


@pytest.fixture(autouse=True)
def triton_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, too, in its interpreter."""
    torch.manual_seed(0)
    for module in (nll_op, elu_op, gate_op, conv_op, block_op, recurrence):
        monkeypatch.setattr(module, "choose", lambda given, *_: "triton" if given == "auto" else given)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float64)


def check(
    function: Callable[..., Tensor], dtype: torch.dtype, given: list[Tensor], trains: bool = True, **how: Any
) -> None:
    """The result, and the gradients of what is given."""
    rounded = [x.to(dtype) for x in given]

    def computed(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_(trains) for x in rounded]
        y = function(*leaves, **how, backend=backend)
        along = torch.linspace(-1, 1, y.numel(), device=DEVICE).view(y.shape).to(rounded[0].dtype).to(y)
        return [y.detach(), *(torch.autograd.grad(y, leaves, along) if trains else ())]

    exact = computed("reference", torch.float64)
    for results in zip(computed("auto", dtype), computed("reference", dtype), exact, strict=True):
        assert_as_exact_as_plain(*results)


@each_dtype
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution(layout: torch.memory_format, dtype: torch.dtype) -> None:
    def convolved(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, MASK, (2, 1), (2, 1), backend)

    x = random(3, CHANNELS[0], *SIZE).contiguous(memory_format=layout)
    check(convolved, dtype, [x, random(*CHANNELS[::-1], 3, 3), random(CHANNELS[1])])


@each_dtype
def test_window(dtype: torch.dtype) -> None:
    def convolved(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        how = ([2, 0], [1, 2], backend, False, torch.channels_last, [5, 3])
        return torch.ops.pixelcnn_fast.masked_conv2d.default(x, weight, bias, MASK, *how)

    check(convolved, dtype, [random(2, 9, 6, 5), random(8, 9, 3, 3), random(8)])


@each_dtype
@pytest.mark.parametrize("left_out", [(), ("bias",), ("bias", "scale", "shift", "condition", "residual")])
def test_block(left_out: tuple[str, ...], dtype: torch.dtype) -> None:
    out = CHANNELS[1]
    shapes = dict(bias=(out,), scale=(out,), shift=(out,), condition=(3, out), residual=(3, out, *SIZE))
    given = {name: random(*shape) for name, shape in shapes.items() if name not in left_out}

    def block(x: Tensor, weight: Tensor, *terms: Tensor, backend: str) -> Tensor:
        named: dict[str, Any] = {"bias": None} | dict(zip(given, terms, strict=True))
        return ops.masked_conv_block(
            x, weight, mask=MASK, **named, activation="elu", alpha=0.3, backend=backend
        )

    tensors = [random(3, CHANNELS[0], *SIZE), random(*CHANNELS[::-1], 3, 3), *given.values()]
    check(block, dtype, tensors, trains=False)


@each_dtype
@pytest.mark.parametrize("condition", [(3, 66), (3, 66, 7, 5)])
def test_gate(condition: tuple[int, ...], dtype: torch.dtype) -> None:
    check(ops.gated_activation, dtype, [random(3, 66, 7, 5), random(*condition)])


@each_dtype
def test_linear_gate(dtype: torch.dtype) -> None:
    check(ops.gated_activation, dtype, [random(3, 66, 7, 5)], linear=True)


@each_dtype
def test_concatenated_elu(dtype: torch.dtype) -> None:
    check(ops.concat_elu, dtype, [random(3, 33, 7, 5)])


@each_dtype
@pytest.mark.parametrize("ignored", [None, 3])
def test_nll(ignored: int | None, dtype: torch.dtype) -> None:
    logits = random(3, 3 * 70, 7, 5).unflatten(1, (3, 70)).permute(0, 1, 3, 4, 2)
    levels = torch.randint(70, (3, 3, 7, 5), device=DEVICE)
    check(ops.categorical_nll, dtype, [logits], levels=levels, ignored=ignored)


def test_nll_whose_gradient_is_one_number_for_all_images() -> None:
    levels = torch.randint(7, (2, 1, 4, 5), device=DEVICE)

    def in_all(logits: Tensor, backend: str) -> Tensor:
        return ops.categorical_nll(logits, levels, backend).sum()

    check(in_all, torch.float32, [random(2, 1, 4, 5, 7)])


@each_dtype
@pytest.mark.parametrize("reverse", few([None, False, True], 1))
def test_recurrences(reverse: bool | None, dtype: torch.dtype) -> None:
    """Weights and states may have gaps."""
    taps = 3 if reverse is None else 2
    function = ops.row_lstm if reverse is None else partial(ops.diagonal_lstm, reverse=reverse)
    spread = [random(*shape, 2)[..., 0] for shape in ((4 * HIDDEN, HIDDEN, taps), (HIDDEN,), (HIDDEN,))]
    check(function, dtype, [random(3, 4 * HIDDEN, *SIZE), 0.3 * spread[0], *spread[1:]])


if IS_GPU:

    def test_another_stream_and_the_compiler() -> None:
        x = random(2, 66, 7, 5).float()
        plain, exact = (ops.gated_activation(part, None, "reference") for part in (x, x.double()))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            later = ops.gated_activation(x + 0, None, "triton")
        stream.synchronize()
        assert_as_exact_as_plain(later, plain, exact)
        compiled = torch.compile(lambda x: ops.gated_activation(x, None, "triton"), fullgraph=True)
        assert_as_exact_as_plain(compiled(x), plain, exact)
