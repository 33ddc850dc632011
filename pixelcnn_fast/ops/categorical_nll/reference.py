"""Negative log-likelihood under categorical logits in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def categorical_nll(logits: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """logits: [N, C, H, W, L]; levels: [N, C, H, W] int64 -> nats [N], log of the sum of exp [N, C, H, W].

    The first in float32, or in float64 for float64 logits; the second in float64.
    """
    log_sum_exp = logits.double().logsumexp(-1)
    of_levels = logits.gather(-1, levels[..., None])[..., 0]
    nll = (log_sum_exp - of_levels).flatten(1).sum(1)
    return nll.to(torch.promote_types(logits.dtype, torch.float32)), log_sum_exp
