"""The Triton gated activation against plain torch and float64."""

import pytest
import torch

from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("poisoned_memory")

from pixelcnn_fast.ops.gated_activation import op as gate_op  # noqa: E402
from pixelcnn_fast.ops.gated_activation.reference import gated_activation as plain  # noqa: E402

SHAPES = [(2, 66, 7, 5), (3, 2, 1, 1), (2, 6, 31, 25)]


@pytest.fixture(autouse=True)
def triton_computes(monkeypatch):
    """On the CPU, too, in its interpreter."""
    monkeypatch.setattr(gate_op, "choose", lambda backend, *_: backend)


def forward(x, condition, linear=False):
    return gate_op._compute(x, condition, "triton", linear)


def backward(grad, x, condition, linear=False):
    return gate_op._compute_gradient(grad, x, condition, "triton", linear)


def with_gradient(function, x, condition, grad, linear):
    x = x.detach().requires_grad_()
    out = function(x, condition, linear)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("contiguous", torch.float32),
        ("contiguous", torch.bfloat16),
        ("channels last", torch.float32),
        ("channels last", torch.float16),
        ("view", torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("condition_dims", [None, 2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("linear", [False, True])
def test_forward_and_backward(linear, shape, condition_dims, layout, dtype):
    x = 4 * torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "view":
        x = torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0]
    condition = condition_dims and torch.randn(shape[:condition_dims]).to(x)
    grad = torch.randn(shape[0], shape[1] // 2, *shape[2:]).to(x)
    out = forward(x, condition, linear)
    grad_x = backward(grad, x, condition, linear)
    format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    assert out.is_contiguous(memory_format=format) and grad_x.is_contiguous(memory_format=format)
    doubled = condition.double() if condition_dims else None
    exact = with_gradient(plain, x.double(), doubled, grad.double(), linear)
    for got, plain_value, exact_value in zip(
        (out, grad_x), with_gradient(plain, x, condition, grad, linear), exact, strict=True
    ):
        assert_as_exact_as_plain(got, plain_value, exact_value)


def test_saturation_nan_and_no_image():
    x = torch.tensor([-1e4, -0.0, 1e4, torch.nan, 1.0, 1e4, 1e4, 1e4, 1e4, -1e4], device=DEVICE)
    out = forward(x.view(1, 10, 1, 1), None).flatten()
    assert out[:3].tolist() == [-1, 0, 1] and out[3].isnan() and out[4] == 0
    grad = backward(torch.ones(1, 5, 1, 1, device=DEVICE), x.view(1, 10, 1, 1), None).flatten()
    assert grad.isnan().nonzero().flatten().tolist() == [3, 8]
    empty = torch.empty(0, 4, 3, 3, device=DEVICE)
    assert forward(empty, None).shape == (0, 2, 3, 3)
    assert backward(empty[:, :2], empty, None).shape == empty.shape


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64.*reference"):
        forward(torch.zeros(1, 2, 3, 3, dtype=torch.float64, device=DEVICE), None)
