"""The Triton categorical likelihood against plain torch and float64."""

import pytest
import torch
from torch.nn import functional as F

from tests.tiers import few
from tests.tolerances import assert_as_exact_as_plain
from tests.triton_device import poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("poisoned_memory")

from pixelcnn_fast.ops.categorical_nll import triton as categorical_nll  # noqa: E402


def make_logits(size: tuple[int, int, int, int, int], layout: str, dtype: torch.dtype) -> torch.Tensor:
    """[N, C, H, W, L], as a model gives them: a view of a feature map with C * L channels."""
    n, channels, height, width, levels = size
    x = 3 * torch.randn(n, channels * levels, height, width, dtype=torch.float64).to(dtype).to(DEVICE)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "levels first":  # channel l * C + c
        return x.unflatten(1, (levels, channels)).permute(0, 2, 3, 4, 1)
    elif layout == "cropped":
        x = F.pad(x, (1, 1, 1, 1), value=torch.nan)[:, :, 1:-1, 1:-1]
    return x.unflatten(1, (channels, levels)).permute(0, 1, 3, 4, 2)


def plain(logits, levels):
    per_sub_pixel = F.cross_entropy(logits.flatten(0, -2), levels.flatten(), reduction="none")
    return per_sub_pixel.view(logits.shape[0], -1).sum(1)


def with_gradient(logits, levels, grad):
    logits = logits.detach().requires_grad_()
    nll = plain(logits, levels)
    return nll.detach(), torch.autograd.grad(nll, logits, grad)[0]


LAYOUTS = [
    ("contiguous", torch.float32),
    ("cropped", torch.float16),
    ("channels last", torch.bfloat16),
    ("contiguous", torch.bfloat16),
    ("channels last", torch.float16),
    ("levels first", torch.float32),
]
SIZES = [(2, 1, 1, 1, 33), (1, 2, 5, 1, 2), (2, 3, 9, 8, 150)]
CASES = [(size, *layout) for size in SIZES for layout in LAYOUTS]


@pytest.mark.parametrize(("size", "layout", "dtype"), few(CASES, len(CASES) - 3), ids=str)
def test_forward_and_backward(size, layout, dtype):
    logits = make_logits(size, layout, dtype)
    levels = torch.randint(size[-1], size[:-1], device=DEVICE)
    levels[0, 0, 0, 0] = size[-1] - 1
    grad = torch.randn(size[0], device=DEVICE)
    nll, logsumexp = categorical_nll.forward(logits, levels)
    grad_logits = categorical_nll.backward(grad, logits, levels, logsumexp)
    exact = with_gradient(logits.double(), levels, grad.double())
    assert_as_exact_as_plain(nll, plain(logits.float(), levels), exact[0])
    assert_as_exact_as_plain(logsumexp.float(), logits.float().logsumexp(-1), logits.double().logsumexp(-1))
    assert_as_exact_as_plain(grad_logits, with_gradient(logits.float(), levels, grad)[1].to(dtype), exact[1])
    if min(size) > 1:
        assert grad_logits.stride() == torch.empty_like(logits).stride()


def test_extreme_logits_and_levels():
    logits = torch.zeros(5, 1, 1, 2, 70, device=DEVICE)
    logits[0, ..., 3] = 1e4
    logits[1, ..., :69] = -torch.inf
    logits[2, ..., 0, 5] = torch.nan
    logits[3] = -torch.inf
    levels = torch.tensor([3, 69, 3, 3, 70], device=DEVICE)[:, None, None, None].expand(-1, 1, 1, 2)
    nll, logsumexp = categorical_nll.forward(logits, levels)
    assert nll[:2].tolist() == [0, 0]
    assert nll.isnan().tolist() == [False, False, True, True, True]
    grad = categorical_nll.backward(torch.ones(5, device=DEVICE), logits, levels, logsumexp)
    assert not grad[:2].any()


def test_no_image_and_refusal():
    logits, levels = (
        torch.zeros(0, 3, 4, 4, 256, device=DEVICE),
        torch.zeros(0, 3, 4, 4, dtype=torch.int64, device=DEVICE),
    )
    nll, logsumexp = categorical_nll.forward(logits, levels)
    assert nll.shape == (0,) and logsumexp.shape == levels.shape
    assert categorical_nll.backward(nll, logits, levels, logsumexp).shape == logits.shape
    with pytest.raises(TypeError, match="float64.*reference"):
        categorical_nll.forward(logits.double(), levels)
