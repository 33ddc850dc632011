import pytest
import torch

from pixelcnn_fast import ops
from pixelcnn_fast.ops.concat_elu import reference
from tests.needs import EACH_ISA, instruction_set
from tests.tolerances import assert_right

SHAPES = [(2, 33, 7, 5), (1, 33, 1, 1), (0, 4, 3, 3), (3, 5, 40, 33)]


def run(function, x, dtype, layout=torch.contiguous_format):
    """Result and gradient, in ``dtype``."""
    x = x.to(dtype, copy=True).contiguous(memory_format=layout).requires_grad_()
    y = function(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return y.detach(), torch.autograd.grad(y, x, grad.to(dtype))[0]


@pytest.mark.parametrize("isa", EACH_ISA or [""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_plain_torch(isa, dtype, layout):
    with instruction_set(isa):
        for shape in SHAPES:
            x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            got = run(ops.concat_elu, x, dtype, layout)
            plain, exact = (run(reference.concat_elu, x, d) for d in (dtype, torch.float64))
            assert got[0].shape == plain[0].shape
            for one, other, true in zip(got, plain, exact, strict=True):
                assert not one.numel() or one.is_contiguous(memory_format=layout)
                if one.numel():
                    assert_right(one, other, true)


def test_far_values_zero_and_nan():
    x = torch.tensor([1e4, -1e4, 0.0, -0.0, float("inf"), -float("inf"), float("nan")]).view(1, 1, 1, 7)
    got, expected = (run(f, x, x.dtype) for f in (ops.concat_elu, reference.concat_elu))
    torch.testing.assert_close(got[0], expected[0], equal_nan=True)
    torch.testing.assert_close(got[1][..., :-1], expected[1][..., :-1])
    assert got[1][..., -1].isnan()


def test_a_map_with_gaps():
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    for part in (x[:, 1:5], x[..., ::2], x.to(memory_format=torch.channels_last)[:, :, 1:, 2:]):
        assert_right(ops.concat_elu(part), *2 * [reference.concat_elu(part)])


def test_refusals():
    with pytest.raises(ValueError, match=r"x is \[2, 3\]: expected \[N, C, H, W\]"):
        ops.concat_elu(torch.zeros(2, 3))
