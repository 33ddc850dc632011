import pytest
import torch
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.ops.gated_activation import reference
from tests.needs import EACH_ISA, instruction_set
from tests.tolerances import assert_right

SHAPES = [(2, 66, 7, 5), (1, 2, 1, 1), (0, 4, 3, 3), (3, 10, 40, 33)]


def run(function, x, condition, dtype, channels_last=False, linear=False):
    """Result and gradients, in ``dtype``."""
    x = x.to(dtype, copy=True)
    x = (x.to(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    condition = None if condition is None else condition.to(dtype, copy=True).requires_grad_()
    y = function(x, condition, linear=linear)
    y.backward(
        torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    )
    return [y.detach(), x.grad, *([] if condition is None else [condition.grad])]


@pytest.mark.parametrize("isa", EACH_ISA or [""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("condition", [None, "per image", "per pixel"])
@pytest.mark.parametrize("linear", [False, True])
def test_equals_plain_torch(isa, dtype, channels_last, condition, linear):
    with instruction_set(isa):
        for shape in SHAPES:
            generator = torch.Generator().manual_seed(0)
            x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
            c = None
            if condition:
                size = shape[:2] if condition == "per image" else shape
                c = torch.randn(size, generator=generator, dtype=torch.float64)
            got = run(ops.gated_activation, x, c, dtype, channels_last, linear)
            plain, exact = (
                run(reference.gated_activation, x, c, d, linear=linear) for d in (dtype, torch.float64)
            )
            if x.numel():
                for one, other, true in zip(got, plain, exact, strict=True):
                    assert_right(one, other, true)
            assert got[0].shape == plain[0].shape


def test_the_linear_gate_is_that_of_pytorch():
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert_right(ops.gated_activation(x, linear=True), F.glu(x, 1), F.glu(x, 1))


@pytest.mark.parametrize("linear", [False, True])
def test_far_values_saturate_and_nan_passes(linear):
    x = torch.tensor([1e4, -1e4, 0.0, 1.0, float("nan"), 1.0, float("nan"), 1.0, 1e4, -1e4]).view(1, 2, 1, 5)
    y = ops.gated_activation(x, linear=linear)
    expected = reference.gated_activation(x, linear=linear)
    assert torch.equal(torch.isnan(y), torch.isnan(expected))
    assert torch.allclose(y, expected, atol=1e-6, equal_nan=True)


def test_a_map_with_gaps():
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    for part in (x[:, 1:5], x[..., ::2], x.to(memory_format=torch.channels_last)[:, :, 1:, 2:]):
        got = ops.gated_activation(part)
        assert (got - reference.gated_activation(part)).abs().max() < 1e-14
    for condition in (torch.randn(6, 2).double().mT, torch.randn(2, 6, 8, 5).double().mT):
        got, expected = (
            run(gate, x, condition, x.dtype) for gate in (ops.gated_activation, reference.gated_activation)
        )
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("x", "condition", "message"),
    [
        (torch.zeros(1, 3, 2, 2), None, "even number"),
        (torch.zeros(4, 2), None, "expected"),
        (torch.zeros(2, 4, 2, 2), torch.zeros(2, 2), "does not fit"),
        (torch.zeros(2, 4, 2, 2), torch.zeros(2, 4).double(), "convert one"),
        (torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, device="meta"), "convert one"),
        (torch.zeros(2, 4, 2, 3), torch.zeros(2, 4, 3, 2), "does not fit"),
    ],
)
def test_refusals(x, condition, message):
    with pytest.raises(ValueError, match=message):
        ops.gated_activation(x, condition)
