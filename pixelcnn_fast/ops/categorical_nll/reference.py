"""Negative log-likelihood under categorical logits in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

NO_LEVEL = -(2**31)  # none is ignored


def categorical_nll(logits: Tensor, levels: Tensor, ignored: int = NO_LEVEL) -> tuple[Tensor, Tensor]:
    """logits: [N, C, H, W, L]; levels: [N, C, H, W] int64, left out where they are ``ignored``
    -> nats [N], in float32, or float64 for float64 logits; log of the sum of exp [N, C, H, W], in float64.

    Raises ValueError for levels out of range, but only on the CPU: on CUDA the check would wait for the GPU.
    """
    count = logits.shape[-1]
    if levels.device.type == "cpu" and not bool(
        ((levels >= 0) & (levels < count) | (levels == ignored)).all()
    ):
        raise out_of_range(levels[levels != ignored], count)
    log_sum_exp = logits.double().logsumexp(-1)
    index, is_kept = kept(levels, ignored)
    nll = (log_sum_exp[..., None] - logits.gather(-1, index)).where(is_kept, 0).flatten(1).sum(1)
    return nll.to(torch.promote_types(logits.dtype, torch.float32)), log_sum_exp


def kept(levels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """The levels, as an index of logits [N, C, H, W, 1], and which of them are not ignored."""
    is_kept = levels[..., None] != ignored
    return levels[..., None].where(is_kept, 0), is_kept


def out_of_range(levels: Tensor, count: int) -> ValueError:
    """What to raise for levels that are not all in 0...count-1."""
    return ValueError(f"levels span {int(levels.min())}...{int(levels.max())}, expected 0...{count - 1}")
