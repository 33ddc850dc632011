"""The gates of Gated PixelCNN and PixelCNN++ in plain PyTorch."""

from __future__ import annotations

from torch import Tensor


def gated_activation(x: Tensor, condition: Tensor | None = None, linear: bool = False) -> Tensor:
    """x: [N, 2C, H, W]; condition: [N, 2C] or as x, added first, or None
    -> tanh(a) * sigmoid(b) [N, C, H, W], or a * sigmoid(b) if it is linear."""
    t, s = factors(x, condition, linear)
    return t * s


def factors(x: Tensor, condition: Tensor | None, linear: bool) -> tuple[Tensor, Tensor]:
    """tanh(a), or a, and sigmoid(b), [N, C, H, W] each."""
    if condition is not None:
        x = x + (condition if condition.dim() == 4 else condition[:, :, None, None])
    a, b = x.chunk(2, dim=1)
    return a if linear else a.tanh(), b.sigmoid()
