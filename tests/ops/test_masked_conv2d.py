from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.native import native, required
from pixelcnn_fast.nn import MaskedConv2d, raster_mask
from tests.needs import EACH_ISA, instruction_set, needs_native
from tests.tolerances import assert_right

FORMATS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other column": lambda x: torch.stack([x, x], -1).flatten(3)[..., ::2],
    "cut out": lambda x: F.pad(x, (1, 2, 3, 1)).to(memory_format=torch.channels_last)[:, :, 3:-1, 1:-2],
}


class Inputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    mask: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(*(t.to(dtype) for t in self))


def problem(
    n: int,
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int],
    height: int,
    width: int,
    seed: int = 0,
    mask: Tensor | None = None,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((n, channels_in, height, width), (channels_out, channels_in, *kernel), (channels_out,))
    )
    if mask is None:
        mask = raster_mask(kernel[0], kernel[1], "B")
    return Inputs(x, weight, bias, mask.expand_as(weight).contiguous())


@needs_native
@pytest.mark.parametrize("size", [(2, 4, 6, 5), (1, 4, 6, 5), (2, 1, 6, 5), (3, 4, 1, 1), (2, 4, 5, 1)])
def test_the_result_is_laid_out_as_pytorch_lays_it_out(size: tuple[int, ...]) -> None:
    weight = torch.randn(3, size[1], 3, 3)
    for order in itertools.permutations(range(4)):
        x = torch.randn([size[axis] for axis in order]).permute([order.index(axis) for axis in range(4)])
        got, expected = ops.masked_conv2d(x, weight, None, torch.ones(1)), F.conv2d(x, weight, padding=1)
        assert got.stride() == expected.stride(), x.stride()
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "size", [(9, 7), (4, 8), (5, 6), (1, 100), (48, 1)]
)  # whole vectors of pixels, and not
def test_one_tap_into_planes(isa, layout, dtype, size):
    """Where a result is stored channel by channel, output channels are the rows of the product."""
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1
    generator = torch.Generator().manual_seed(2)
    ones = torch.randint(0, 2, (31, 5, 1, 1), generator=generator)  # a mask of some channels
    for mask, kernel in ((ones, (1, 1)), (centre, (3, 3)), (ones * centre, (3, 3))):
        inputs = problem(3, 5, 31, kernel, size[0], size[1], mask=mask)
        low = inputs.to(dtype)
        low = low._replace(x=FORMATS[layout](low.x))
        more = torch.randn(2, 31, generator=generator, dtype=torch.float64)
        for scale, shift in ((None, None), more):
            for activation in ("none", "relu"):
                how: dict[str, Any] = {"scale": scale, "shift": shift, "activation": activation}
                exact = ops.masked_conv_block(*inputs, **how, backend="reference")
                how |= {k: v.to(dtype) for k, v in how.items() if isinstance(v, Tensor)}
                with instruction_set(isa):
                    got = ops.masked_conv_block(*low, **how, result_format=torch.contiguous_format)
                assert got.is_contiguous()
                assert_right(got, ops.masked_conv_block(*low, **how, backend="reference"), exact)


def run(function, inputs: Inputs, dtype, layout="contiguous", **how):
    """Result and gradients of a fixed weighting of the result, which is laid out as x, all in ``dtype``.
    Channels-last weights go with channels-last images, as in a model that was converted."""
    *leaves, mask = inputs
    x, weight, bias = (t.to(dtype, copy=True).requires_grad_() for t in leaves)
    of_weight = FORMATS[layout if layout == "channels_last" else "contiguous"]
    y = function(FORMATS[layout](x), of_weight(weight), bias, of_weight(mask.to(dtype)), **how)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    y.backward(FORMATS[layout](grad))
    return [y.detach(), x.grad, weight.grad, bias.grad]


def plain(x, weight, bias, mask, padding="same", dilation=1):
    return F.conv2d(x, weight * mask, bias, padding=padding, dilation=dilation)


def assert_exact(got, inputs: Inputs, dtype, **how):
    expected = run(plain, inputs, dtype, **how)
    exact = run(plain, inputs, torch.float64, **how)
    for one, other, true in zip(got, expected, exact, strict=True):
        assert_right(one, other, true)


@needs_native
@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", FORMATS)
def test_equals_plain_torch(isa, dtype, layout):
    with instruction_set(isa):
        for sizes in [
            (2, 33, 5, (3, 3), 7, 5),
            (1, 1, 4, (7, 7), 1, 1),
            (3, 4, 33, (1, 5), 2, 9),
            (2, 3, 32, (1, 3), 4, 3),
            (1, 5, 3, (5, 1), 40, 3),
        ]:
            inputs = problem(*sizes)
            assert_exact(run(ops.masked_conv2d, inputs, dtype, layout, backend="compiled"), inputs, dtype)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("layout", FORMATS)
def test_bf16_is_summed_exactly_and_rounded_once(isa: str, layout: str) -> None:
    """Sums of small integers, which float32 holds in whatever order, but bf16 does not."""
    generator = torch.Generator().manual_seed(0)
    mask = raster_mask(3, 3, "B")
    for n, channels_in, channels_out, size in [(3, 180, 33, 7), (1, 3, 70, 1), (2, 45, 32, 34)]:
        weight = torch.randint(-3, 4, (channels_out, channels_in, 3, 3), generator=generator)
        x = torch.randint(-99, 100, (n, channels_in, size, size), generator=generator)
        grad = torch.randint(-9, 10, (n, channels_out, size, size), generator=generator)
        found = {}
        with instruction_set(isa):
            both: list[tuple[torch.dtype, Any]] = [
                (torch.float64, plain),
                (torch.bfloat16, ops.masked_conv2d),
            ]
            for dtype, function in both:
                leaves = [FORMATS[layout](x.to(dtype)).requires_grad_(), weight.to(dtype).requires_grad_()]
                y = function(*leaves, None, mask.expand_as(weight).to(dtype))
                found[dtype] = [y.detach(), *torch.autograd.grad(y, leaves, FORMATS[layout](grad.to(dtype)))]
            of_integers = (
                3 if required().multiplies_bf16() else 2
            )  # else weight gradients share products (neighbours.h)
        for got, exact in list(zip(found[torch.bfloat16], found[torch.float64], strict=True))[:of_integers]:
            assert torch.equal(got, exact.bfloat16())
        assert found[torch.float64][0].abs().max() > 256  # beyond which bf16 does not hold all integers


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 3),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
    size=st.tuples(st.integers(9, 20), st.integers(13, 21)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["same", "valid", (2, 1), 0]),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_geometry_and_any_mask(n, channels, kernel, size, dilation, padding, threads, seed):
    mask = (
        torch.rand(channels[1], channels[0], *kernel, generator=torch.Generator().manual_seed(seed)) < 0.4
    ).double()
    inputs = problem(n, channels[0], channels[1], kernel, size[0], size[1], seed, mask)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = run(
            ops.masked_conv2d, inputs, torch.float64, padding=padding, dilation=dilation, backend="compiled"
        )
    finally:
        torch.set_num_threads(before)
    assert_exact(got, inputs, torch.float64, padding=padding, dilation=dilation)
    assert (got[2][mask == 0] == 0).all()


@needs_native
@pytest.mark.parametrize("channels", [4, 48])
def test_gradients_of_maps_that_are_summed_in_parts(channels: int) -> None:
    """With taps above and below, which at the parts' edges read what belongs to others, or nothing."""
    inputs = problem(3, channels, channels, (3, 3), 31, 20, mask=torch.ones(3, 3))
    found = run(ops.masked_conv2d, inputs, torch.float64, "cut out", backend="compiled")
    assert_exact(found, inputs, torch.float64)


@pytest.mark.parametrize("backend", ["reference", pytest.param("compiled", marks=needs_native)])
def test_a_mask_scales(backend: str) -> None:
    mask = torch.rand(5, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = problem(2, 4, 5, (3, 3), 6, 5, mask=mask)
    assert_exact(run(ops.masked_conv2d, inputs, torch.float64, backend=backend), inputs, torch.float64)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nothing_live_gives_the_bias(backend):
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 5, mask=torch.zeros(3, 3))
    y = ops.masked_conv2d(x, weight, bias, mask, backend=backend)
    assert torch.equal(y, bias[None, :, None, None].expand_as(y))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_result_is_laid_out_as_x(layout):
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 5)
    y = ops.masked_conv2d(FORMATS[layout](x), weight, bias, mask)
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=format)
    other = ops.masked_conv2d(x, weight.to(memory_format=torch.channels_last), bias, mask)
    if native():
        assert torch.equal(y, other)
    else:  # PyTorch's convolution sums in another order for another layout of the weights
        assert_right(other, y, y)


@pytest.mark.parametrize("size", [(1, 0), (0, 4)])
def test_gradients_of_padding_alone(size: tuple[int, int]) -> None:
    """An image without pixels, whose result has some."""
    x, weight = torch.zeros(2, 16, *size, requires_grad=True), torch.rand(5, 16, 3, 1, requires_grad=True)
    bias = torch.rand(5, requires_grad=True)
    result = ops.masked_conv2d(x, weight, bias, torch.ones_like(weight), padding=2)
    of_x, of_weight, of_bias = torch.autograd.grad(result.sum(), (x, weight, bias))
    assert of_x.shape == x.shape and not of_weight.any()
    assert of_bias.tolist() == [result[:, 0].numel()] * 5


def test_dead_weights_do_not_matter_and_inputs_are_not_written():
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 5)
    copies = [t.clone() for t in (x, weight, bias, mask)]
    expected = ops.masked_conv2d(x, weight, bias, mask)
    assert all(torch.equal(a, b) for a, b in zip((x, weight, bias, mask), copies, strict=True))
    assert torch.equal(ops.masked_conv2d(x, weight + 1e6 * (1 - mask), bias, mask), expected)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_each_gradient_may_be_asked_for_alone(wanted: tuple[int, ...]) -> None:
    x, weight, bias, mask = problem(2, 2, 3, (3, 3), 4, 3)
    of = [(x, weight, bias)[at].requires_grad_() for at in wanted]
    found, expected = (
        torch.autograd.grad(f(x, weight, bias, mask).square().sum(), of) for f in (ops.masked_conv2d, plain)
    )
    torch.testing.assert_close(found, expected)


def test_vectors_may_have_gaps() -> None:
    x, weight, _, mask = problem(2, 3, 4, (3, 3), 5, 6)
    spread = torch.randn(3, 4, 2, dtype=torch.float64)[..., 0], torch.randn(4, 2, dtype=torch.float64).mT
    found, expected = (
        ops.masked_conv_block(x, weight, bias, mask, scale, shift, condition)
        for (bias, scale, shift), condition in (spread, [x.contiguous() for x in spread])
    )
    assert torch.equal(found, expected)


def test_functional_transforms_are_right_or_refused():
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 6)

    def convolved(x, weight):
        return ops.masked_conv2d(x, weight, bias, mask)

    for transform in (torch.func.grad, torch.func.jacrev):
        with pytest.raises(NotImplementedError, match="does not work within torch.func.grad, vjp and jacrev"):
            transform(lambda weight: convolved(x, weight).sum())(weight)
    with pytest.warns(UserWarning, match="performance drop"):
        found = torch.func.vmap(convolved, in_dims=(0, None))(x[:, None], weight)
    assert torch.equal(found[:, 0], convolved(x, weight))
    layer = MaskedConv2d(3, 4, 3, mask_type="A").to(x)
    other = {name: p.detach().clone().add_(1).requires_grad_() for name, p in layer.named_parameters()}
    found = torch.func.functional_call(layer, other, (x,))
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(other[name])
    gradients = (
        torch.autograd.grad(y.square().sum(), of)
        for y, of in ((found, list(other.values())), (layer(x), list(layer.parameters())))
    )
    assert all(map(torch.equal, *gradients))


def test_autocast_computes_as_convolutions_do():
    x, weight, bias, mask = inputs = problem(2, 3, 4, (3, 3), 5, 6).to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = ops.masked_conv2d(x, weight, bias, mask), plain(x, weight, bias, mask)
    assert got.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(got, ops.masked_conv2d(*inputs.to(torch.bfloat16)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(2, 4, 5, 5)), "does not fit weight"),
        (dict(mask=torch.ones(2, 3, 3)), "mask .* can't be expanded"),
        (dict(bias=torch.zeros(5)), "bias"),
        (dict(weight=torch.zeros(4, 3, 2, 3), mask=torch.zeros(4, 3, 2, 3)), "odd sizes"),
        (dict(x=torch.zeros(2, 3, 5, 5, dtype=torch.bfloat16)), "convert one"),
        (dict(bias=torch.zeros(4, dtype=torch.float64)), "bias is torch.float64, x is torch.float32"),
        (dict(mask=torch.ones(4, 3, 3, 3, device="meta")), "mask is on meta, x is on cpu"),
        (dict(padding=-1), "padding"),
        (dict(padding=(0, -1)), "padding"),
        (dict(dilation=0), "dilation"),
        (dict(dilation=(1, 9), padding=0), "its width, padded by 0, is smaller than the dilated kernel"),
        (dict(padding="full"), "padding"),
        (dict(dilation=9, padding=0), "smaller than the dilated kernel"),
        (dict(backend="cudnn"), "expected 'auto'"),
        (dict(backend="triton"), "cuda tensors"),
        (dict(x=torch.zeros(2, 3, 5, 5, device="meta")), "is on"),
    ],
)
def test_refusals(change, message):
    arguments: dict[str, Any] = dict(
        x=torch.zeros(2, 3, 5, 5), weight=torch.zeros(4, 3, 3, 3), bias=None, mask=torch.ones(4, 3, 3, 3)
    )
    with pytest.raises(ValueError, match=message):
        ops.masked_conv2d(**(arguments | change))


def test_a_backend_asked_for_by_name_never_falls_back(monkeypatch):
    x, weight, bias, mask = problem(1, 2, 2, (3, 3), 4, 4)
    monkeypatch.setenv("PIXELCNN_FAST_NATIVE", "0")
    ops.masked_conv2d(x, weight, bias, mask)
    with pytest.raises(ValueError, match="PIXELCNN_FAST_NATIVE=0 is set"):
        ops.masked_conv2d(x, weight, bias, mask, backend="compiled")


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("size", [(1, 3), (3, 3), (3, 5)])
def test_what_a_tap_does_not_read_has_no_part(isa: str, size: tuple[int, int]) -> None:
    """To the last bit, though neighbouring taps are taken together: of later pixels, of what is beside the kernel, and,
    where channels have an order, of later channels of the pixel itself. Nor does it get a gradient."""
    generator = torch.Generator().manual_seed(0)
    channels, height, width = 48, 5, 7
    x, weight = (
        torch.randn(n, generator=generator).view(shape)
        for n, shape in (
            (channels * height * width, (1, channels, height, width)),
            (channels * channels * size[0] * size[1], (channels, channels, *size)),
        )
    )
    order = torch.arange(channels) % 3
    mask = raster_mask(*size, "B").expand_as(weight).clone()
    mask[:, :, size[0] // 2, size[1] // 2] = (order[:, None] >= order).float()
    with instruction_set(isa):
        for row, column, channel in ((2, 3, 17), (0, 0, 1), (4, 6, 44)):
            leaf = x.clone().requires_grad_()
            out = ops.masked_conv2d(leaf, weight, None, mask)
            (grad,) = torch.autograd.grad(out[0, channel, row, column], leaf)
            read = torch.zeros(channels, height, width, dtype=torch.bool)
            for ky in range(size[0]):
                for kx in range(size[1]):
                    at = row + ky - size[0] // 2, column + kx - size[1] // 2
                    if 0 <= at[0] < height and 0 <= at[1] < width:
                        read[:, at[0], at[1]] |= mask[channel, :, ky, kx] != 0
            assert not grad[0][~read].any()
            other = torch.where(read, x, torch.randn(x.shape, generator=generator))
            found = ops.masked_conv2d(other, weight, None, mask)[0, channel, row, column]
            assert torch.equal(found, out[0, channel, row, column].detach())


def assert_equal_derivatives(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """The first, and those of a gradient penalty."""
    results = []
    for y in (found, expected):
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        results.append((*first, *torch.autograd.grad(penalty, inputs)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 3, 3), (5, 1, 3, 3), (5, 4, 3, 3)])
@pytest.mark.parametrize("dense", [False, True])
def test_masks_that_are_expanded_and_dense_gradients(shape: tuple[int, ...], dense: bool) -> None:
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    mask = raster_mask(3, 3, "B").double().expand(shape)
    masked = weight.detach() * mask  # in place
    used = masked.requires_grad_() if dense else weight
    expected = F.conv2d(x, used if dense else used * mask, bias, padding=1)
    found = ops.masked_conv2d(x, used, bias, mask, dense_gradient=dense)
    torch.testing.assert_close(found, expected)
    assert_equal_derivatives(found, expected, x, used, bias)


WINDOWS = {  # padding above and to the left, kernel, dilation, size of the result for a map of 6x5
    "cropped below": ((2, 1), (2, 3), 1, (6, 5)),
    "cropped to the right": ((0, 3), (1, 3), 1, (6, 5)),
    "shifted down": ((1, 0), (1, 1), 1, (6, 5)),
    "cropped above": ((-2, -1), (3, 3), 1, (3, 2)),
    "beyond its end": ((1, 1), (3, 3), 2, (9, 8)),
    "all outside": ((-7, 0), (1, 1), 1, (2, 2)),
    "shifted to the right": ((0, 1), (1, 1), 1, (6, 5)),
    "one tap": ((0, 0), (1, 1), 1, (6, 5)),
    "one tap, beyond its end": ((0, 0), (1, 1), 1, (8, 5)),
    "one tap, cropped to the right": ((0, 0), (1, 1), 1, (6, 3)),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["reference", pytest.param("compiled", marks=needs_native)])
@pytest.mark.parametrize("channels", [3, 44])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name: str, channels: int, backend: str, layout: str) -> None:
    padding, kernel, dilation, size = WINDOWS[name]
    torch.manual_seed(0)
    x = FORMATS[layout](torch.randn(2, channels, 6, 5, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(44, channels, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(44, dtype=torch.float64, requires_grad=True)
    mask = (torch.rand(1, 1, *kernel) < 0.8).double()
    mask[..., -1, -1] = 1
    far = F.pad(x, 4 * [20])[:, :, 20 - padding[0] :, 20 - padding[1] :]
    expected = F.conv2d(far, weight * mask, bias, dilation=dilation)[:, :, : size[0], : size[1]]
    found = ops.masked_conv2d(x, weight, bias, mask, padding, dilation, backend, size=size)
    torch.testing.assert_close(found, expected)
    assert_equal_derivatives(found, expected, x, weight, bias)


@pytest.mark.parametrize("name", WINDOWS)
def test_dense_gradients_of_windows(name: str) -> None:
    """Which are all gradients, where nothing is masked."""
    padding, kernel, dilation, size = WINDOWS[name]
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64, requires_grad=True)
    found, expected = (
        torch.autograd.grad(
            torch.ops.pixelcnn_fast.masked_conv2d.default(
                x, weight, None, torch.ones(1), padding, (dilation, dilation), "auto", dense, None, size
            ).sum(),
            weight,
        )
        for dense in (True, False)
    )
    torch.testing.assert_close(found, expected)


def test_many_gradients_at_once() -> None:
    x, weight = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    mask = raster_mask(3, 3, "B").double()
    found = torch.autograd.functional.jacobian(
        lambda x: ops.masked_conv2d(x, weight, None, mask), x, vectorize=True
    )
    expected = torch.autograd.functional.jacobian(lambda x: F.conv2d(x, weight * mask, padding=1), x)
    torch.testing.assert_close(found, expected)
