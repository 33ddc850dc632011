from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import ops
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_the_terms_one_by_one(dtype, channels_last):
    inputs, extra = problem(2, 5, 33, (3, 3), 7, 5), terms(2, 33, 7, 5)
    for present in itertools.product([False, True], repeat=4):
        chosen = Terms(*(t if use else None for t, use in zip(extra, present, strict=True)))
        low, low_terms = inputs.to(dtype), chosen.to(dtype)
        if channels_last:
            low = low._replace(x=low.x.to(memory_format=torch.channels_last))
            if low_terms.residual is not None:
                residual = low_terms.residual.to(memory_format=torch.channels_last)
                low_terms = low_terms._replace(residual=residual)
        got = ops.masked_conv_block(*low, *low_terms, "relu")
        expected = ops.masked_conv_block(*low, *low_terms, "relu", backend="reference")
        exact = ops.masked_conv_block(*inputs, *chosen, "relu", backend="reference")
        assert_right(got, expected, exact)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    inputs, extra = problem(2, 5, 8, (1, 3), 4, 6), terms(2, 8, 4, 6)
    got, expected = (
        ops.masked_conv_block(*inputs, *extra, activation, alpha=0.3, backend=backend)
        for backend in ("auto", "reference")
    )
    assert (got - expected).abs().max() < 1e-12


def test_registration_and_refusals():
    x, weight, bias, mask = problem(2, 3, 4, (3, 3), 5, 6).to(torch.float32)
    extra = terms(2, 4, 5, 6).to(torch.float32)
    args = (x, weight, bias, mask, *extra, "relu", 1.0, (1, 1), (1, 1), "auto")
    torch.library.opcheck(torch.ops.pixelcnn_fast.masked_conv_block.default, args)
    with pytest.raises(ValueError, match="no gradient"):
        ops.masked_conv_block(x.clone().requires_grad_(), weight, bias, mask)
    for name, bad in dict(scale=(5,), shift=(2, 4), condition=(1, 4), residual=(2, 4, 5, 5)).items():
        wrong: dict[str, Any] = {name: torch.zeros(bad)}
        with pytest.raises(ValueError, match=name):
            ops.masked_conv_block(x, weight, bias, mask, **wrong)
    with pytest.raises(ValueError, match="activation"):
        ops.masked_conv_block(x, weight, bias, mask, activation="gelu?")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS.keys() - {"none"}))
def test_activations_are_the_steps_of_that_name(activation):
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    alpha = 0.3 if KINDS[activation].alpha else 1.0
    assert torch.equal(ACTIVATIONS[activation](x, alpha), FORMULAS[activation](x, alpha))
