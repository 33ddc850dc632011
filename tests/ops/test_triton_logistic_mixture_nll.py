"""The Triton likelihood under mixtures of logistics against the published formula and float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.ops.logistic_mixture_nll import reference
from tests.tiers import few
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("poisoned_memory")

from pixelcnn_fast.ops.logistic_mixture_nll import triton as mixture  # noqa: E402

# Images, colours, height, width, components, channels for each of these, levels.
SIZES = [(2, 3, 9, 8, 3, 10, 256), (1, 1, 1, 1, 1, 3, 2), (2, 1, 5, 1, 2, 4, 65536), (1, 3, 7, 5, 11, 10, 3)]
LAYOUTS = [
    ("contiguous", torch.float32),
    ("channels last", torch.bfloat16),
    ("cropped", torch.float16),
    ("contiguous", torch.bfloat16),
    ("channels last", torch.float32),
]
CASES = [(SIZES[(k + i) % len(SIZES)], *each) for k in range(len(SIZES)) for i, each in enumerate(LAYOUTS)]


def drawn(size: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n, colours, height, width, components, of_one, levels = size
    x = 2 * torch.randn(n, of_one * components, height, width, dtype=torch.float64)
    x = x.to(dtype).to(DEVICE)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "cropped":
        x = F.pad(x, (1, 1, 1, 1), value=torch.nan)[:, :, 1:-1, 1:-1]
    values = torch.randint(levels, (n, colours, height, width), device=DEVICE)
    values[:, :, 0, ::3] = 0
    values[:, :, -1, 1::3] = levels - 1
    return x, values


def check(x: Tensor, values: Tensor, components: int, levels: int) -> Tensor:
    """-> the gradient"""
    grad = torch.randn(len(x), device=DEVICE)
    nll, log_sum_exp = mixture.forward(x, values, components, levels)
    found = mixture.backward(grad, x, values, log_sum_exp, components, levels)
    how = values, components, levels
    plain, exact = (reference.logistic_mixture_nll(given, *how) for given in (x, x.double()))
    assert_as_exact_as_plain(nll, plain[0], exact[0])
    assert_as_exact_as_plain(log_sum_exp.float(), plain[1].float(), exact[1])
    exact_gradient = reference.gradient(grad.double(), x.double(), *how)
    assert_as_exact_as_plain(found, reference.gradient(grad, x, *how), exact_gradient)
    return found


@pytest.mark.parametrize(("size", "layout", "dtype"), few(CASES, len(LAYOUTS)), ids=str)
def test_forward_and_backward(size: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    x, values = drawn(size, layout, dtype)
    grad = check(x, values, size[4], size[6])
    if min(size) > 1:
        assert grad.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("levels", few([256, 3, 65536], 1))
def test_every_mean_and_scale(levels: int) -> None:
    """Of a single component: far from the level and near it, where its mass is small, and below the least scale."""
    means, log_scales = torch.linspace(-3, 3, 47), torch.linspace(-9.1, 14, 29)
    grid = torch.stack(torch.meshgrid(means, log_scales, indexing="ij")).to(DEVICE)
    parameters = torch.cat([torch.zeros_like(grid[:1]), grid]).expand(3, -1, -1, -1).contiguous()
    values = torch.tensor([0, levels // 2, levels - 1], device=DEVICE)[:, None, None, None]
    check(parameters, values.expand(-1, 1, *grid.shape[1:]).contiguous(), 1, levels)


def test_what_is_no_number_or_level_stays_in_its_image() -> None:
    channels = torch.tensor([0, 3, 7, 10, 19])
    size = (len(channels) + 4, 3, 2, 3, 2, 10, 16)
    x, values = drawn(size, "contiguous", torch.float32)
    expected = mixture.forward(x, values, 2, 16)[0]
    x[torch.arange(len(channels)), channels, 1, 1] = torch.nan
    values[-4, 0, 0, 0], values[-3, 1, 1, 2], values[-2, 2, 1, 1] = -1, 16, 300
    x[-1, 1] = -torch.inf  # the second component is off
    nll, log_sum_exp = mixture.forward(x, values, 2, 16)
    assert nll[:-1].isnan().all() and expected.isfinite().all()
    grad = mixture.backward(torch.ones_like(nll), x, values, log_sum_exp, 2, 16)[-1]
    alone = mixture.forward(x[-1:, ::2], values[-1:], 1, 16)[0]
    exact = reference.logistic_mixture_nll(x[-1:, ::2].double(), values[-1:], 1, 16)[0]
    assert_as_exact_as_plain(nll[-1:], alone, exact)
    assert grad.isfinite().all() and not grad[1::2].any()


def test_no_image_and_refusal() -> None:
    x, values = drawn((0, 3, 4, 4, 2, 10, 256), "contiguous", torch.float32)
    nll, log_sum_exp = mixture.forward(x, values, 2, 256)
    assert nll.shape == (0,) and log_sum_exp.shape == (0, 2, 4, 4)
    assert mixture.backward(nll, x, values, log_sum_exp, 2, 256).shape == x.shape
    with pytest.raises(TypeError, match="float64.*reference"):
        mixture.forward(x.double(), values, 2, 256)
