from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.ops.masked_conv_block.reference import ACTIVATIONS
from pixelcnn_fast.program.formulas import FORMULAS
from pixelcnn_fast.program.steps import KINDS
from tests.ops.test_masked_conv2d import problem
from tests.tolerances import assert_right


class Terms(NamedTuple):
    scale: Tensor | None
    shift: Tensor | None
    condition: Tensor | None
    residual: Tensor | None

    def to(self, dtype: torch.dtype) -> Terms:
        return Terms(*(None if t is None else t.to(dtype) for t in self))


def terms(n: int, channels: int, height: int, width: int, seed: int = 1) -> Terms:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((channels,), (channels,), (n, channels), (n, channels, height, width))
    return Terms(*(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes))


def on_both(*given: Any, **how: Any) -> list[Tensor]:
    """What the compiled op computes, and what the reference does."""
    block: Any = ops.masked_conv_block
    return [block(*given, **how, backend=backend) for backend in ("auto", "reference")]


DOWN_TO_THE_LEFT = torch.tensor(
    [[0.0, 1, 1], [0, 1, 0], [1, 0, 0]]
)  # the last taps read nothing for the last row


# 33 and 64 output channels: maps that have to be padded for the products, and not; 48 input channels: taps in pairs.
@pytest.mark.parametrize("mask", [raster_mask(3, 3, "B"), DOWN_TO_THE_LEFT], ids=["B", "below"])
@pytest.mark.parametrize(("channels_in", "channels_out"), [(5, 33), (5, 64), (48, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_the_terms_one_by_one(dtype, channels_last, channels_in, channels_out, mask):
    inputs = problem(2, channels_in, channels_out, (3, 3), 7, 5, mask=mask)
    extra = terms(2, channels_out, 7, 5)
    for present in itertools.product([False, True], repeat=4):
        chosen = Terms(*(t if use else None for t, use in zip(extra, present, strict=True)))
        low, low_terms = inputs.to(dtype), chosen.to(dtype)
        if channels_last:
            low = low._replace(x=low.x.to(memory_format=torch.channels_last))
            if low_terms.residual is not None:
                residual = low_terms.residual.to(memory_format=torch.channels_last)
                low_terms = low_terms._replace(residual=residual)
        for activation in ("none", "relu", "silu"):
            got, expected = on_both(*low, **low_terms._asdict(), activation=activation)
            exact = ops.masked_conv_block(*inputs, *chosen, activation, backend="reference")
            assert_right(got, expected, exact)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("term", ["condition", "residual", None])
def test_one_tap_takes_each_term(term: str | None, activation: str) -> None:
    """Which is computed in another way where it comes alone."""
    centre = F.pad(torch.ones(1, 1), (1, 1, 1, 1))
    inputs, extra = problem(2, 5, 8, (3, 3), 7, 5, mask=centre), terms(2, 8, 7, 5)
    given = {} if term is None else {term: getattr(extra, term)}
    torch.testing.assert_close(*on_both(*inputs, **given, activation=activation))


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_sums_in_parts_end_once(activation: str) -> None:
    """Those over many bf16: the residual is added, and relu taken, in the end."""
    inputs, residual = problem(1, 261, 32, (3, 3), 3, 4), terms(1, 32, 3, 4).residual
    assert residual is not None
    how: dict[str, Any] = dict(residual=99 * residual, activation=activation)
    _, exact = on_both(*inputs, **how)
    found, plain = on_both(*inputs.to(torch.bfloat16), **how | dict(residual=how["residual"].bfloat16()))
    assert_right(found, plain, exact)


@pytest.mark.parametrize("channels", [5, 64])
def test_maps_may_be_cut_out_of_larger_ones(channels: int) -> None:
    x, weight, bias, mask = problem(2, 4, channels, (3, 3), 7, 5)
    residual = terms(2, channels, 7, 5).residual
    assert residual is not None
    x, residual = (
        F.pad(part, (1, 2, 3, 1), value=torch.nan).to(memory_format=torch.channels_last)[:, :, 3:-1, 1:-2]
        for part in (x, residual)
    )
    torch.testing.assert_close(*on_both(x, weight, bias, mask, residual=residual))


@pytest.mark.parametrize("channels", [5, 32])
def test_relu_keeps_nan(channels):
    x, weight, bias, mask = problem(1, 3, channels, (3, 3), 6, 5).to(torch.float32)
    x[0, 0, 2, 1] = torch.nan
    got = ops.masked_conv_block(x, weight, bias, mask, activation="relu")
    reached = F.conv2d(x[:, :1].isnan().float(), mask[:, :1], padding=1) > 0  # live taps read it
    assert torch.equal(got.isnan(), reached)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_result_is_in_the_format_asked_for(backend, layout):
    for channels in (1, 4):
        inputs = problem(2, channels, 6, (3, 3), 5, 4).to(torch.float32)
        got = ops.masked_conv_block(*inputs, backend=backend, result_format=layout)
        assert got.is_contiguous(memory_format=layout)
        assert torch.equal(got, ops.masked_conv_block(*inputs, backend=backend))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    inputs, extra = problem(2, 5, 8, (1, 3), 4, 6), terms(2, 8, 4, 6)
    got, expected = on_both(*inputs, **extra._asdict(), activation=activation, alpha=0.3)
    assert (got - expected).abs().max() < 1e-12


def test_registration_and_refusals():
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 6).to(torch.float32)
    extra = terms(2, 4, 5, 6).to(torch.float32)
    args = (x, weight, bias, mask, *extra, "relu", 1.0, (1, 1), (1, 1), "auto")
    for given in (args, (*args, torch.channels_last)):
        torch.library.opcheck(torch.ops.pixelcnn_fast.masked_conv_block.default, given)
    tensors: list[Any] = [x, weight, bias, mask, *extra]
    for index, tensor in enumerate(tensors):
        if tensor is not mask:
            needing = [*tensors[:index], tensor.clone().requires_grad_(), *tensors[index + 1 :]]
            with pytest.raises(ValueError, match="no gradient"):
                ops.masked_conv_block(*needing)
    for name, bad in dict(scale=(5,), shift=(2, 4), condition=(1, 4), residual=(2, 4, 5, 5)).items():
        wrong: dict[str, Any] = {name: torch.zeros(bad)}
        with pytest.raises(ValueError, match=name):
            ops.masked_conv_block(x, weight, bias, mask, **wrong)
    for dtype in (torch.bfloat16, torch.float64):
        with pytest.raises(ValueError, match=f"residual is {dtype}, x is torch.float32"):
            ops.masked_conv_block(x, weight, bias, mask, residual=torch.zeros(2, 4, 5, 6, dtype=dtype))
    for name in ("scale", "residual"):
        elsewhere: dict[str, Any] = {
            name: torch.zeros((4,) if name == "scale" else (2, 4, 5, 6), device="meta")
        }
        with pytest.raises(ValueError, match=f"{name} is on meta, x is on cpu"):
            ops.masked_conv_block(x, weight, bias, mask, **elsewhere)
    with pytest.raises(ValueError, match="activation"):
        ops.masked_conv_block(x, weight, bias, mask, activation="gelu?")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS.keys() - {"none"}))
def test_activations_are_the_steps_of_that_name(activation):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    alpha = 0.3 if KINDS[activation].alpha else 1.0
    assert torch.equal(ACTIVATIONS[activation](x, alpha), FORMULAS[activation](x, alpha))


def test_autocast_lowers_what_convolutions_read_and_the_residual() -> None:
    inputs, extra = problem(2, 3, 4, (3, 3), 5, 6).to(torch.float32), terms(2, 4, 5, 6).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = ops.masked_conv_block(*inputs, *extra)
    low = extra._replace(residual=terms(2, 4, 5, 6).to(torch.bfloat16).residual)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, ops.masked_conv_block(*inputs.to(torch.bfloat16), *low))


def test_no_image() -> None:
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 6)
    assert ops.masked_conv_block(x[:0], weight, bias, mask).shape == (0, 4, 5, 6)
