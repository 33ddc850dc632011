"""Negative log-likelihood under a mixture of logistics: arguments, gradients, backends."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import address, define, pooled, raw
from pixelcnn_fast.ops.logistic_mixture_nll import reference


def logistic_mixture_nll(
    parameters: Tensor, values: Tensor, components: int, levels: int = 256, backend: str = "auto"
) -> Tensor:
    """Negative log-likelihood of each image in nats; nothing of the size [N, C, H, W, K] is stored.

    parameters: [N, P, H, W], any strides, with P = 10K for three colours (C = 3), each of
    which depends on the ones before it in the pixel, and 3K or 4K for one; K: ``components``.
    values: [N, C, H, W] integers in 0...levels-1 -> [N], in float32, or in float64 for
    float64 parameters. ``reference.py`` has the order of the channels and the formula, of
    which PixelCNN++ has published the limits: log-scales count as at least -7, and where a
    component gives a level at most 1e-5, its density there stands for that, so that the
    probabilities of 256 levels sum to 1 only to within 1.4e-5. backend: 'auto', 'compiled',
    'triton' or 'reference'. Raises ValueError if shapes, dtypes or devices do not fit, or the
    backend can't compute it, and on the CPU for values out of range; elsewhere the result is
    undefined.
    """
    if components < 1 or levels < 2:
        raise ValueError(f"{components} components, {levels} levels: expected at least 1 and 2")
    n, channels, *size = parameters.shape if parameters.dim() == 4 else (0, 0)
    colours = {10 * components: 3, 3 * components: 1, 4 * components: 1}.get(channels)
    if colours is None or values.shape != (n, colours, *size):
        raise ValueError(
            f"parameters {list(parameters.shape)} of {components} components do not fit values "
            f"{list(values.shape)}: expected [N, {10 * components}, H, W] and [N, 3, H, W], or "
            f"[N, {3 * components} or {4 * components}, H, W] and [N, 1, H, W]"
        )
    if not parameters.is_floating_point() or values.is_floating_point() or values.dtype == torch.bool:
        raise ValueError(
            f"parameters are {parameters.dtype}, values {values.dtype}: expected floating point and integers"
        )
    if values.device != parameters.device:
        raise ValueError(
            f"values are on {values.device}, parameters on {parameters.device}: move one of them"
        )
    return _nll(parameters, values.long(), components, levels, backend)[0]


def _compute(
    parameters: Tensor, values: Tensor, components: int, levels: int, backend: str
) -> tuple[Tensor, Tensor]:
    backend = choose(backend, parameters.device, parameters.dtype)
    if backend == "reference":
        return reference.logistic_mixture_nll(parameters, values, components, levels)
    values = values.contiguous()
    if backend == "triton":
        from pixelcnn_fast.ops.logistic_mixture_nll import triton

        return triton.forward(parameters, values, components, levels)
    nll, log_sum_exp = _like_results(parameters)
    in_range = required().logistic_mixture_nll(
        raw(parameters),
        address(values),
        components,
        levels,
        address(nll),
        address(log_sum_exp),
        torch.get_num_threads(),
    )
    if not in_range:
        raise reference.out_of_range(values, levels)
    return nll, log_sum_exp


def _like_results(parameters: Tensor) -> tuple[Tensor, Tensor]:
    n, _, *size = parameters.shape
    dtype = torch.promote_types(parameters.dtype, torch.float32)
    nll = torch.empty(n, dtype=dtype, device=parameters.device)
    return nll, torch.empty((n, 2, *size), dtype=torch.float64, device=parameters.device)


def _compute_gradient(
    grad: Tensor,
    parameters: Tensor,
    values: Tensor,
    log_sum_exp: Tensor,
    components: int,
    levels: int,
    backend: str,
) -> Tensor:
    backend = choose(backend, parameters.device, parameters.dtype)
    of_parameters = torch.empty_like(parameters)
    if backend == "reference":
        return of_parameters.copy_(reference.gradient(grad, parameters, values, components, levels))
    values, grad = values.contiguous(), grad.contiguous()
    if backend == "triton":
        from pixelcnn_fast.ops.logistic_mixture_nll import triton

        return triton.backward(grad, parameters, values, log_sum_exp, components, levels)
    of_parameters = pooled(of_parameters)
    required().logistic_mixture_nll_gradient(
        raw(parameters),
        address(values),
        components,
        levels,
        address(log_sum_exp),
        address(grad),
        raw(of_parameters),
        torch.get_num_threads(),
    )
    return of_parameters


def _backward(grad, needed, parameters, values, log_sum_exp, components, levels, backend):
    return {"parameters": _gradient(grad, parameters, values, log_sum_exp, components, levels, backend)}


def _backward_of_gradient(along, needed, grad, parameters, values, components, levels):
    """What depends on the log-sum-exps is counted with the parameters, from which they come."""

    def gradient(grad: Tensor, parameters: Tensor) -> Tensor:
        return reference.gradient(grad, parameters, values, components, levels)

    of_grad, of_parameters = torch.func.vjp(gradient, grad, parameters)[1](along)
    return {"grad": of_grad, "parameters": of_parameters, "log_sum_exp": None}


_nll = define(
    "logistic_mixture_nll", _compute, _like_results, backward=_backward, results=("nll", "log_sum_exp")
)
_gradient = define(
    "logistic_mixture_nll_gradient",
    _compute_gradient,
    lambda parameters: torch.empty_like(parameters),
    backward=_backward_of_gradient,
)
