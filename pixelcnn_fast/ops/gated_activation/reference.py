"""The gate of Gated PixelCNN in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def gated_activation(x: Tensor, condition: Tensor | None = None) -> Tensor:
    """x: [N, 2C, H, W]; condition: [N, 2C] or as x, added first, or None -> tanh(a) * sigmoid(b) [N, C, H, W]."""
    t, s = factors(x, condition)
    return t * s


def factors(x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """tanh(a) and sigmoid(b), [N, C, H, W] each."""
    if condition is not None:
        x = x + (condition if condition.dim() == 4 else condition[:, :, None, None])
    a, b = x.chunk(2, dim=1)
    return a.tanh(), b.sigmoid()
