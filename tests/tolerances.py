"""The one rule for closeness: an error against float64 of at most twice that of plain torch in the same dtype."""

import torch
from torch import Tensor


def assert_as_exact_as_plain(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """got and plain: the same quantity in one dtype; exact: in float64. NaN fails; so do zeros and flipped signs."""
    assert got.dtype == plain.dtype and exact.dtype == torch.float64
    assert got.shape == plain.shape == exact.shape
    assert torch.isfinite(got).all()
    allowed = 2 * (plain.double() - exact).abs().max() + 4 * torch.finfo(got.dtype).eps * exact.abs().max()
    assert (got.double() - exact).abs().max() <= allowed


def assert_right(got: Tensor, plain: Tensor, exact: Tensor) -> None:
    """As above; in float64, where nothing is more exact, up to rounding."""
    if got.dtype == torch.float64:
        assert_identical_up_to_rounding(got, exact)
    else:
        assert_as_exact_as_plain(got, plain, exact)


def assert_identical_up_to_rounding(got: Tensor, expected: Tensor) -> None:
    """Two float64 computations of the same thing in different orders."""
    assert got.dtype == expected.dtype == torch.float64 and got.shape == expected.shape
    assert torch.isfinite(got).all()
    assert (
        (got - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max())) if got.numel() else True
    )
