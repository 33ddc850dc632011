"""What is computed with a convolution in inference, and what isn't."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.rewriting.networks import Programmed, compiled_copy, images, times


def masked(m: Any, x: Tensor) -> Tensor:
    return m.convolved(x, m.weight * m.mask)


def added_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.norm(masked(m, x))
    y += x
    return F.relu(y, inplace=True)


def added_to_the_input(m: Any, x: Tensor) -> Tensor:
    z = x * 2
    z += m.norm(masked(m, x))
    return F.relu(z) * z


def residual_written(m: Any, x: Tensor) -> Tensor:
    y, z = m.norm(masked(m, x)), x * 2
    y = y + z
    z.add_(5)
    return F.relu(y) + z


def statistics_written(m: Any, x: Tensor) -> Tensor:
    y = masked(m, x)
    m.norm.running_mean.add_(0.1)
    return m.norm(y)


def bias_written(m: Any, x: Tensor) -> Tensor:
    y = masked(m, x)
    m.conv.bias.data.add_(0.1)
    return m.norm(y)


def of_the_batch(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(masked(m, x), None, None, training=True)


def with_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return F.relu(masked(m, x))


BLOCKS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "norm": (lambda m, x: m.norm(masked(m, x)), ["convolution, norm"]),
    "norm and relu": (lambda m, x: F.relu(m.norm(masked(m, x))), ["convolution, norm, relu"]),
    "everything": (lambda m, x: (m.norm(masked(m, x)) + x).relu(), ["convolution, norm, sum, relu"]),
    "the other way round": (
        lambda m, x: torch.tanh(x + m.norm(masked(m, x))),
        ["convolution, norm, sum, tanh"],
    ),
    "added in place": (added_in_place, ["convolution, norm, sum, relu"]),
    "added to the input": (added_to_the_input, ["convolution, norm"]),
    "residual written": (residual_written, []),
    "statistics written": (statistics_written, []),
    "bias written": (bias_written, []),
    "elu": (lambda m, x: F.elu(masked(m, x), 0.3), ["convolution, elu"]),
    "elu of a keyword": (lambda m, x: F.elu(masked(m, x), alpha=0.3), ["convolution, elu"]),
    "leaky": (lambda m, x: F.leaky_relu(masked(m, x)), ["convolution, leaky_relu"]),
    "norm without a scale, and leaky by keyword": (
        lambda m, x: F.leaky_relu(
            F.batch_norm(masked(m, x), m.norm.running_mean, m.norm.running_var, bias=m.norm.bias),
            negative_slope=0.3,
        ),
        ["convolution, norm, leaky_relu"],
    ),
    "silu": (lambda m, x: F.silu(masked(m, x)), ["convolution, silu"]),
    "sigmoid": (lambda m, x: masked(m, x).sigmoid(), ["convolution, sigmoid"]),
    "softplus": (lambda m, x: F.softplus(masked(m, x)), []),
    "without parameters": (
        lambda m, x: F.batch_norm(masked(m, x), m.norm.running_mean, m.norm.running_var, eps=0.1),
        ["convolution, norm"],
    ),
    "statistics of the batch": (of_the_batch, []),
    "statistics of the batch, which are kept": (
        lambda m, x: F.batch_norm(masked(m, x), m.norm.running_mean, m.norm.running_var, training=True),
        [],
    ),
    "read twice": (lambda m, x: (lambda y: F.relu(m.norm(y)) + y)(masked(m, x)), []),
    "norm read twice": (lambda m, x: (lambda y: F.relu(y) + y)(m.norm(masked(m, x))), ["convolution, norm"]),
    "sum of another shape": (lambda m, x: F.relu(masked(m, x) + x[:, :1]), []),
    "sum with itself": (lambda m, x: (lambda y: y + y)(masked(m, x)), []),
    "scaled sum": (lambda m, x: torch.add(masked(m, x), x, alpha=2), []),
    "norm of the weight": (lambda m, x: F.relu(F.batch_norm(x, m.norm.running_mean, m.norm.running_var)), []),
    "with gradients": (with_gradients, []),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    program, expected = BLOCKS[name]
    plain: Any = Programmed(program).double().eval()
    plain.norm.running_mean.normal_()
    plain.norm.running_var.uniform_(0.5, 2)
    fast, backend = compiled_copy(plain)
    with torch.no_grad():
        got, result = fast(images()), plain(images())
    torch.testing.assert_close(got, result)
    assert got.stride() == result.stride()
    found = [
        what.removesuffix(" → masked_conv_block") for what, _ in backend.report.rewritten if "block" in what
    ]
    assert found == expected, str(backend.report)
    assert times(backend, "masked_conv2d") == (name != "norm of the weight")
