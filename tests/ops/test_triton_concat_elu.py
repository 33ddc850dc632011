"""The Triton concatenated ELU against plain torch and float64."""

import pytest
import torch

from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("poisoned_memory")

from pixelcnn_fast.ops.concat_elu import op  # noqa: E402
from pixelcnn_fast.ops.concat_elu.reference import concat_elu as plain  # noqa: E402


@pytest.fixture(autouse=True)
def triton_computes(monkeypatch):
    """On the CPU, too, in its interpreter."""
    monkeypatch.setattr(op, "choose", lambda backend, *_: backend)


def with_gradient(x, grad):
    x = x.detach().requires_grad_()
    out = plain(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        (torch.contiguous_format, torch.float32),
        (torch.contiguous_format, torch.bfloat16),
        (torch.channels_last, torch.float32),
        (torch.channels_last, torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 33, 7, 5), (3, 33, 1, 1), (2, 3, 31, 25), (0, 2, 3, 3)], ids=str)
def test_forward_and_backward(shape, layout, dtype):
    x = (3 * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype).contiguous(memory_format=layout)
    grad = torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(x)
    out = op._compute(x, "triton")
    grad_x = op._compute_gradient(grad, out, "triton")
    assert out.shape == grad.shape and grad_x.shape == x.shape
    if not x.numel():
        return
    assert out.is_contiguous(memory_format=layout) and grad_x.is_contiguous(memory_format=layout)
    exact = with_gradient(x.double(), grad.double())
    for got, plain_value, exact_value in zip((out, grad_x), with_gradient(x, grad), exact, strict=True):
        assert_as_exact_as_plain(got, plain_value, exact_value)


def test_far_values_and_nan():
    x = torch.tensor([-1e4, 0.0, 1e4, torch.nan], device=DEVICE).view(1, 4, 1, 1)
    torch.testing.assert_close(op._compute(x, "triton"), plain(x), equal_nan=True)


def test_float64_is_refused():
    with pytest.raises(TypeError, match="float64.*reference"):
        op._compute(torch.zeros(1, 2, 3, 3, dtype=torch.float64, device=DEVICE), "triton")
