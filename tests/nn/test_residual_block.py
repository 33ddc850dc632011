from __future__ import annotations

import pytest
import torch

from pixelcnn_fast.nn import ResidualBlock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_same_dtype_with_and_without_gradients(dtype: torch.dtype) -> None:
    """A residual in float32 makes the sum float32, as in plain PyTorch."""
    torch.manual_seed(0)
    block, x = ResidualBlock(4, 4).eval(), torch.randn(2, 4, 6, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = block(x)
        with torch.no_grad():
            without = block(x)
    assert without.dtype == with_gradients.dtype == dtype
    torch.testing.assert_close(without, with_gradients.detach(), atol=0.05, rtol=0.05)
