"""Live taps are those of the mask in the kernel's shape, whatever its own."""

from __future__ import annotations

import pytest
import torch

from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.ops.masked_conv2d.taps import live_taps

B = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
ALL = tuple((i, j) for i in range(3) for j in range(3))


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 3, 3), (2, 1, 3, 3), (2, 4, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_masks_of_any_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = raster_mask(3, 3, "B").expand(shape).clone().to(dtype)
    assert live_taps(mask, (2, 4, 3, 3)) == B == live_taps(mask, (2, 4, 3, 3))
    mask[..., 0, 0] = 0
    assert live_taps(mask, (2, 4, 3, 3)) == B[1:]


def test_masks_of_channels_alone_and_those_of_inference_mode() -> None:
    assert live_taps(torch.ones(2, 4, 1, 1), (2, 4, 3, 3)) == ALL == live_taps(torch.ones(()), (2, 4, 3, 3))
    assert live_taps(torch.zeros(1), (2, 4, 3, 3)) == ()
    with torch.inference_mode():
        assert live_taps(raster_mask(3, 3, "B").expand(2, 4, 3, 3).clone(), (2, 4, 3, 3)) == B
