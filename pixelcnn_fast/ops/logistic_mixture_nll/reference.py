"""Negative log-likelihood of levels under a mixture of logistics in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_LOG_SCALE = -7.0
LEAST_MASS = 1e-5  # of a level under one component; below, the density stands for it


def logistic_mixture_nll(
    parameters: Tensor, values: Tensor, components: int, levels: int
) -> tuple[Tensor, Tensor]:
    """parameters: [N, P, H, W]; values: [N, C, H, W] int64, 0...levels-1
    -> nats [N], in float32, or float64 for float64 parameters; the logs of the sums of exp(logits), and
    of exp(logits) times what the components give to the pixel, [N, 2, H, W], in float64.

    With K components, channel k of ``parameters`` is a logit; channel K + 3K c + K p + k is,
    of colour c, the mean (p = 0), the log-scale (1) or the coefficient (2) before its tanh.
    A single colour has no coefficients, or does not use them. Raises ValueError for values
    out of range, but only on the CPU. Source: Salimans et al. 2017, "PixelCNN++: Improving
    the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications",
    section 2; the limits are those of its published code.
    """
    if values.device.type == "cpu" and not bool(((values >= 0) & (values < levels)).all()):
        raise out_of_range(values, levels)
    wide = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
    logits = wide[:, :components].movedim(1, -1)  # [N, H, W, K]
    of_colours = wide[:, components:].unflatten(1, (values.shape[1], -1, components)).movedim(3, -1)
    means, log_scales, *coefficients = of_colours.unbind(2)  # [N, C, H, W, K] each
    x = (2 * values.to(wide) / (levels - 1) - 1)[..., None]
    if values.shape[1] == 3:
        k, y = coefficients[0].tanh().unbind(1), x.unbind(1)
        steps = [torch.zeros_like(k[0]), k[0] * y[0], k[1] * y[0] + k[2] * y[1]]
        means = means + torch.stack(steps, 1)
    # Not clamp_min, whose gradient at the limit depends on PyTorch's version.
    log_scales = torch.where(log_scales < LEAST_LOG_SCALE, LEAST_LOG_SCALE, log_scales)
    centred, inverse, half = x - means, torch.exp(-log_scales), 1 / (levels - 1)
    plus, mid, minus = (inverse * (centred + shift) for shift in (half, 0, -half))
    mass = plus.sigmoid() - minus.sigmoid()
    density = F.logsigmoid(mid) + F.logsigmoid(-mid) - log_scales - math.log((levels - 1) / 2)
    inside = torch.where(mass > LEAST_MASS, mass.clamp_min(1e-12).log(), density)
    below_highest = torch.where(values[..., None] == levels - 1, F.logsigmoid(-minus), inside)
    log_mass = torch.where(values[..., None] == 0, F.logsigmoid(plus), below_highest)
    log_sum_exp = torch.stack([logits.logsumexp(-1), (logits + log_mass.sum(1)).logsumexp(-1)], 1).double()
    nll = (log_sum_exp[:, 0] - log_sum_exp[:, 1]).flatten(1).sum(1)
    return nll.to(wide.dtype), log_sum_exp


def gradient(grad: Tensor, parameters: Tensor, values: Tensor, components: int, levels: int) -> Tensor:
    """grad: of the nats, [N]; the rest as above -> that of the parameters."""

    def nats(parameters: Tensor) -> Tensor:
        return logistic_mixture_nll(parameters, values, components, levels)[0]

    return torch.func.vjp(nats, parameters)[1](grad)[0]


def out_of_range(values: Tensor, levels: int) -> ValueError:
    """What to raise for values that are not all in 0...levels-1."""
    return ValueError(f"values span {int(values.min())}...{int(values.max())}, expected 0...{levels - 1}")
