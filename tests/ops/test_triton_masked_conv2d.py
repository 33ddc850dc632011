"""The Triton convolutions against plain torch and float64."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.tiers import few, tiered
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import exact_float32, poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("exact_float32", "poisoned_memory")

from pixelcnn_fast.ops.masked_conv2d import triton as masked_conv2d  # noqa: E402
from pixelcnn_fast.ops.masked_conv2d.triton_weight_gradient import weight_gradient  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MASK_A_7x7 = tuple((i, j) for i in range(7) for j in range(7) if 7 * i + j < 24)
MASK_B_3x3 = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
PIXELWISE = ((0, 0),)
ROW_A = ((0, 0), (0, 1))
EMPTY_ROW = ((0, 2), (2, 0), (2, 1))

# x's shape, output channels, kernel, taps, dilation, padding. The interpreter's tiles are 256 pixels, 32 channels.
CASES = {
    "mask B, several tiles": ((2, 33, 11, 13), 40, (3, 3), MASK_B_3x3, (1, 1), (1, 1)),
    "mask A 7x7": ((2, 3, 7, 5), 17, (7, 7), MASK_A_7x7, (1, 1), (3, 3)),
    "1x1, several shares of the weight gradient": ((4, 5, 17, 16), 3, (1, 1), PIXELWISE, (1, 1), (0, 0)),
    "one pixel": ((2, 33, 1, 1), 2, (3, 3), MASK_B_3x3, (1, 1), (1, 1)),
    "1x5 row, cropped output": ((2, 4, 5, 9), 6, (1, 5), ROW_A, (1, 1), (0, 0)),
    "fewer rows, wider ones, several steps": ((3, 4, 12, 13), 6, (3, 5), ROW_A, (1, 1), (0, 3)),
    "dilation, wide padding, a row without taps": ((1, 4, 6, 9), 6, (5, 3), EMPTY_ROW, (2, 3), (5, 4)),
    "no live tap": ((2, 4, 6, 9), 6, (3, 3), (), (1, 1), (1, 1)),
    "no image": ((0, 4, 6, 9), 6, (3, 3), MASK_B_3x3, (1, 1), (1, 1)),
}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(DEVICE)


def mask_of(taps, kernel, *channels: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """[*channels, *kernel]"""
    mask = torch.zeros(*channels, *kernel, device=DEVICE, dtype=dtype)
    for i, j in taps:
        mask[..., i, j] = 1
    return mask


def strided(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels last":
        return x.to(memory_format=torch.channels_last)
    if layout == "view":
        wide = x.new_full((*x.shape[:3], 2 * x.shape[3] + 1), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    return x


def through_data(weight: torch.nn.Parameter) -> None:
    weight.data.neg_()


def by_a_fused_optimizer(weight: torch.nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=1, fused=True).step()


@pytest.mark.parametrize("write", [through_data, by_a_fused_optimizer])
def test_weights_are_read_at_each_call(write):
    """PyTorch counts no version for these writes, so what was packed of a version can't be kept."""
    x, weight = random(1, 2, 3, 4), torch.nn.Parameter(random(3, 2, 3, 3))
    arguments = None, mask_of(MASK_B_3x3, (3, 3)), (1, 1), (1, 1)
    with torch.no_grad():
        before = masked_conv2d.forward(x, weight, *arguments)
    write(weight)
    with torch.no_grad():
        after = masked_conv2d.forward(x, weight, *arguments)
        fresh = masked_conv2d.forward(x, weight.detach().clone(), *arguments)
    assert torch.equal(after, fresh) and not torch.equal(after, before)


@pytest.mark.parametrize("dtype", few(DTYPES, 1), ids=str)
@pytest.mark.parametrize("name", tiered(CASES, lambda name: name != "mask A 7x7"))
def test_forward_and_both_gradients(name, dtype):
    shape, out_channels, kernel, taps, dilation, padding = CASES[name]
    layout = {torch.float32: "channels last", torch.bfloat16: "contiguous", torch.float16: "view"}[dtype]
    x = strided(random(*shape, dtype=dtype), layout)
    weight, bias = random(out_channels, shape[1], *kernel, dtype=dtype), random(out_channels, dtype=dtype)
    channels = {torch.float32: (out_channels, shape[1]), torch.bfloat16: (), torch.float16: (1, shape[1])}[
        dtype
    ]
    mask = mask_of(taps, kernel, *channels, dtype=torch.bool if channels else dtype)

    out = masked_conv2d.forward(x, weight, bias, mask, dilation, padding)
    how = (1, padding, dilation)
    live = mask.expand(weight.shape).to(dtype)
    given, weight = weight, weight * live
    exact = F.conv2d(x.double(), weight.double(), bias.double(), *how)
    grad = strided(random(*exact.shape, dtype=dtype), layout)
    grad_x = masked_conv2d.input_gradient(grad, given, mask, x.shape, dilation, padding)
    grad_weight = weight_gradient(grad, x, weight.shape, mask, dilation, padding)

    is_last = layout == "channels last" and x.numel() > 0
    format = torch.channels_last if is_last else torch.contiguous_format
    assert out.is_contiguous(memory_format=format) and grad_x.is_contiguous(memory_format=format)
    assert not grad_weight[live == 0].any()
    if not out.numel():
        assert out.shape == exact.shape and grad_x.shape == x.shape and not grad_weight.any()
        return
    assert_as_exact_as_plain(out, F.conv2d(x, weight, bias, *how), exact)
    plain, exact = (
        conv2d_input(x.shape, w, g, *how) for w, g in ((weight, grad), (weight.double(), grad.double()))
    )
    assert_as_exact_as_plain(grad_x, plain, exact)
    plain, exact = (
        conv2d_weight(inputs, weight.shape, g, *how) * live
        for inputs, g, live in ((x, grad, live), (x.double(), grad.double(), live.double()))
    )
    assert_as_exact_as_plain(grad_weight, plain, exact)


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "elu": lambda x: F.elu(x, 0.3),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation):
    dtype = DTYPES[list(ACTIVATIONS).index(activation) % 3]
    x = strided(random(2, 5, 7, 5, dtype=dtype), "channels last" if activation == "relu" else "contiguous")
    mask = mask_of(MASK_B_3x3, (3, 3), dtype=dtype)
    weight, bias, residual, condition = (
        random(9, 5, 3, 3, dtype=dtype),
        random(9, dtype=dtype),
        random(2, 9, 7, 5, dtype=dtype),
        random(2, 9, dtype=dtype),
    )
    residual = strided(residual, "view")
    how = (mask, (1, 1), (1, 1), activation, 0.3)

    def plain(x, weight, bias, residual, condition):
        return ACTIVATIONS[activation](
            F.conv2d(x, weight, bias, padding=1) + condition[..., None, None] + residual
        )

    out = masked_conv2d.forward(x, weight, bias, *how, residual, condition)
    without = masked_conv2d.forward(x, weight, None, *how)
    weight = weight * mask
    arguments = (x, weight, bias, residual, condition)
    exact = plain(*(tensor.double() for tensor in arguments))
    assert_as_exact_as_plain(out, plain(*arguments), exact)
    exact = ACTIVATIONS[activation](F.conv2d(x.double(), weight.double(), padding=1))
    assert_as_exact_as_plain(without, ACTIVATIONS[activation](F.conv2d(x, weight, padding=1)), exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_is_not_hidden_and_does_not_spread(activation):
    x = random(1, 2, 5, 5)
    x[0, 1, 2, 2] = torch.nan
    weight = torch.ones(2, 2, 3, 3, device=DEVICE)
    mask = mask_of(MASK_B_3x3, (3, 3))
    out = masked_conv2d.forward(x, weight, None, mask, (1, 1), (1, 1), activation)
    expected = torch.zeros(5, 5, dtype=torch.bool, device=DEVICE)
    expected[2, 2:4] = expected[3, 1:4] = True
    assert torch.equal(out[0, 0].isnan(), expected)


def test_the_same_bits_every_time():
    x, grad = random(4, 5, 17, 16), random(4, 3, 17, 16)
    first, second = (
        weight_gradient(grad, x, (3, 5, 1, 1), mask_of(PIXELWISE, (1, 1)), (1, 1), (0, 0)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_refusals_name_cause_and_remedy():
    x, weight, mask = random(1, 2, 5, 5), random(3, 2, 3, 3), mask_of(MASK_B_3x3, (3, 3))
    with pytest.raises(TypeError, match="float64.*reference"):
        masked_conv2d.forward(x.double(), weight.double(), None, mask, (1, 1), (1, 1))
    with pytest.raises(TypeError, match="one dtype.*convert"):
        masked_conv2d.forward(x, weight.half(), None, mask, (1, 1), (1, 1))
    with pytest.raises(ValueError, match="larger than the input.*pad by more"):
        masked_conv2d.forward(x, weight, None, mask, (3, 3), (0, 0))
    huge = x[:, :1, :1, :1].expand(2**10, 2, 2**10, 2**10)
    with pytest.raises(ValueError, match=r"2\^30.*split the batch"):
        masked_conv2d.forward(huge, weight, None, mask, (1, 1), (0, 0), size=(5, 5))
    with pytest.raises(ValueError, match=r"2\^30.*split the batch"):
        weight_gradient(x, huge, weight.shape, mask, (1, 1), (1, 1))


@pytest.mark.parametrize("channels", [(), (1, 1), (4, 1), (1, 2), (4, 2)])
def test_live_taps_are_those_of_any_channel(channels):
    mask = mask_of(EMPTY_ROW, (3, 3), *channels, dtype=torch.float32)
    found = masked_conv2d.live_taps(mask, (3, 3))
    assert tuple(map(tuple, found.nonzero().tolist())) == EMPTY_ROW
    if channels:
        mask[-1, -1, 1, 1] = -0.5
        assert masked_conv2d.live_taps(mask, (3, 3))[1, 1]
    assert masked_conv2d.live_taps(torch.ones(*channels[:1], 1, 1, 1, device=DEVICE), (3, 3)).all()
    assert not masked_conv2d.live_taps(torch.zeros((), device=DEVICE), (3, 3)).any()


def test_a_mask_scales_and_channels_have_their_own():
    x, weight = random(2, 3, 5, 5), random(4, 3, 3, 3)
    mask = random(4, 3, 3, 3) * (random(4, 3, 3, 3) > 0.5)
    how = ((1, 1), (1, 1))
    exact = F.conv2d(x.double(), (weight * mask).double(), None, 1, 1)
    plain = F.conv2d(x, weight * mask, None, 1, 1)
    assert_as_exact_as_plain(masked_conv2d.forward(x, weight, None, mask, *how), plain, exact)
