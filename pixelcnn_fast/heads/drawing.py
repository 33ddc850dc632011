"""Drawing levels from logits and noise, with temperature, top-k and top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.heads.options import SamplingOptions


def draw(logits: Tensor, noise: Tensor, options: SamplingOptions) -> Tensor:
    """The smallest level k with u < cdf_k; the last possible one if rounding leaves none.

    logits: [..., L]; noise: u in [0, 1), [...] -> levels [...], int64. Sums are in float64.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    weights = ((logits - logits.amax(-1, keepdim=True)) / options.temperature).exp().double()
    if options.top_k is not None or options.top_p is not None:
        weights = weights * _possible(logits, weights, options)
    cumulative = weights.cumsum(-1)
    target = noise.double()[..., None] * cumulative[..., -1:]
    last = (weights > 0).double().cumsum(-1).argmax(-1)
    return (cumulative <= target).sum(-1).minimum(last)


def _possible(logits: Tensor, weights: Tensor, options: SamplingOptions) -> Tensor:
    """bool [..., L]: which levels may be drawn."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(-1, order)
    if options.top_k is not None:
        ranked[..., options.top_k :] = 0
    kept = ranked > 0
    # A top_p of 1 also keeps levels too unlikely to change the sum.
    if options.top_p is not None and options.top_p < 1:
        sums = ranked.cumsum(-1)
        kept[..., 1:] &= sums[..., :-1] < options.top_p * sums[..., -1:]
    return torch.zeros_like(kept).scatter(-1, order, kept)
