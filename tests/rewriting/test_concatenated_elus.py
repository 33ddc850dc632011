"""ELUs of x and -x, which become ``concat_elu``, and what only looks like them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.rewriting.networks import Programmed, check, compiled_copy, images, in_order, times
from tests.tiers import few

Program = Callable[[Any, Tensor], Tensor]


def concat_elu(x: Tensor, axis: int = 1) -> Tensor:
    return F.elu(torch.cat([x, -x], axis))


REWRITTEN: dict[str, Program] = {
    "as most write it": lambda m, x: concat_elu(m.conv(x)).mean(1),
    "twice": lambda m, x: m.wide(concat_elu(concat_elu(m.conv(x)[:, :1]))).mean(1),
    "in place": lambda m, x: (lambda y: F.elu(torch.cat([y, -y], 1), inplace=True))(m.conv(x)).mean(1),
    "before dropout": lambda m, x: F.dropout(concat_elu(m.conv(x)), 0.0, True).mean(1),
    "of the input": lambda m, x: concat_elu(x).mean(1),
    "methods": lambda m, x: (lambda y: F.elu(torch.cat((y, y.neg()), dim=-3)))(m.conv(x)).mean(1),
    "of a map that is written afterwards": lambda m, x: in_order(
        y := m.conv(x).clone(), z := concat_elu(y), y.detach().mul_(2), z.mean(1)
    ),
    "in a region without gradients": lambda m, x: in_order(
        y := m.conv(x),
        torch.set_grad_enabled(False),
        z := concat_elu(y),
        torch.set_grad_enabled(True),
        z * y.mean(),
    ).mean(1),
}
LEFT: dict[str, Program] = {
    "the other way round": lambda m, x: F.elu(torch.cat([-x, x], 1)),
    "of two maps": lambda m, x: F.elu(torch.cat([x, -2 * x], 1)),
    "of three": lambda m, x: F.elu(torch.cat([x, -x, x], 1)),
    "along rows": lambda m, x: concat_elu(x, 2),
    "another alpha": lambda m, x: F.elu(torch.cat([x, -x], 1), 0.5),
    "of a row of pixels": lambda m, x: F.elu(torch.cat([x[0], -x[0]], 1)),
    "whose parts are read elsewhere": lambda m, x: (lambda y: F.elu(y) + y)(torch.cat([x, -x], 1)),
    "whose negative is read elsewhere": lambda m, x: (lambda n: F.elu(torch.cat([x, n], 1))[:, :4] + n)(-x),
    "which is written": lambda m, x: in_order(y := concat_elu(x), y.detach().mul_(2), y),
    "of what is written between": lambda m, x: in_order(
        y := x.clone(), n := -y, y.detach().mul_(2), F.elu(torch.cat([y, n], 1))
    ),
    "partly without gradients": lambda m, x: in_order(
        torch.set_grad_enabled(False), n := -x, torch.set_grad_enabled(True), F.elu(torch.cat([x, n], 1))
    ),
    "before dropout in place": lambda m, x: F.dropout(concat_elu(x), 0.5, True, True) * 1,
}


@pytest.mark.parametrize("name", few(REWRITTEN, 7))
def test_computes_what_it_did(name: str) -> None:
    backend = check(Programmed(REWRITTEN[name]), images(5))
    assert times(backend, "concat_elu"), str(backend.report)


@pytest.mark.parametrize("name", LEFT)
def test_is_left(name: str) -> None:
    check_left(lambda m, x: LEFT[name](m, x) * 1)


def test_a_result_of_the_network_is_left() -> None:
    """The caller may write into it."""
    check_left(lambda m, x: concat_elu(x))


def check_left(program: Program) -> None:
    model, x = Programmed(program).double(), images(5).requires_grad_()
    fast, backend = compiled_copy(model)
    fast(x)  # compiling draws random numbers, too
    found = []
    for each in (fast, model):
        torch.manual_seed(0)
        found.append(torch.autograd.grad(each(x).square().sum(), x)[0])
    torch.testing.assert_close(*found)
    assert not backend.report.rewritten and not backend.report.warnings, str(backend.report)
