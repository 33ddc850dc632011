"""The gates of Gated PixelCNN and PixelCNN++: arguments, gradients, backends."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.gated_activation import reference
from pixelcnn_fast.ops.library import RawTensor, address, define, memory_format, pooled, raw


def gated_activation(
    x: Tensor, condition: Tensor | None = None, backend: str = "auto", linear: bool = False
) -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves of the channels, one pass over memory forward and one backward.

    x: [N, 2C, H, W], any strides; condition: [N, 2C] or [N, 2C, H, W], added to x first, or None
    -> [N, C, H, W], channels-last where x is. backend: 'auto', 'compiled', 'triton' or 'reference'.
    linear: a * sigmoid(b) instead.
    Raises ValueError if the channels are odd, the condition does not fit, or the backend
    can't compute it. Source: van den Oord et al. 2016, "Conditional Image Generation with
    PixelCNN Decoders", equation 2; the linear gate: Salimans et al. 2017, "PixelCNN++".
    """
    if x.dim() != 4 or x.shape[1] % 2:
        raise ValueError(f"x is {list(x.shape)}: expected [N, 2C, H, W], an even number of channels")
    if condition is not None:
        if condition.shape not in (x.shape, x.shape[:2]):
            raise ValueError(
                f"condition {list(condition.shape)} does not fit x: expected [N, 2C] = {list(x.shape[:2])} or "
                f"[N, 2C, H, W] = {list(x.shape)}"
            )
        if condition.dtype != x.dtype or condition.device != x.device:
            raise ValueError(
                f"condition is {condition.dtype} on {condition.device}, x is {x.dtype} on {x.device}: convert one"
            )
    return _gate(x, condition, backend, linear)


def _compute(x: Tensor, condition: Tensor | None, backend: str, linear: bool = False) -> Tensor:
    backend = choose(backend, x.device, x.dtype)
    if backend == "reference":
        return reference.gated_activation(x, condition, linear).contiguous(memory_format=memory_format(x))
    x, condition = _laid_out(x, condition)
    if backend == "triton":
        from pixelcnn_fast.ops.gated_activation import triton

        return triton.forward(x, condition, linear)
    out = pooled(_like_result(x))
    required().gated_activation(*_arguments(x, condition, linear), address(out), torch.get_num_threads())
    return out


def _like_result(x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    shape = (n, channels // 2, height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _laid_out(x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
    layout = memory_format(x)
    if condition is not None:
        of_condition = layout if condition.dim() == 4 else torch.contiguous_format
        condition = condition.contiguous(memory_format=of_condition)
    return x.contiguous(memory_format=layout), condition


def _arguments(x: Tensor, condition: Tensor | None, linear: bool) -> tuple[RawTensor, bool, bool, bool, int]:
    of_pixels = condition is not None and condition.dim() == 4
    return raw(x), memory_format(x) == torch.channels_last, linear, of_pixels, address(condition)


def _compute_gradient(
    grad: Tensor, x: Tensor, condition: Tensor | None, backend: str, linear: bool = False
) -> Tensor:
    backend = choose(backend, x.device, x.dtype)
    if backend == "reference":
        t, s = reference.factors(x, condition, linear)
        halves = torch.cat([grad * s * _slope(t, linear), grad * t * s * (1 - s)], dim=1)
        return halves.contiguous(memory_format=memory_format(x))
    x, condition = _laid_out(x, condition)
    grad = grad.contiguous(memory_format=memory_format(x))
    if backend == "triton":
        from pixelcnn_fast.ops.gated_activation import triton

        return triton.backward(grad, x, condition, linear)
    given, grad_x = _arguments(x, condition, linear), pooled(_like_x(x))
    required().gated_activation_gradient(*given, address(grad), address(grad_x), torch.get_num_threads())
    return grad_x


def _slope(t: Tensor, linear: bool) -> Tensor | int:
    """The derivative of tanh(a), or of a, where that is t."""
    return 1 if linear else 1 - t * t


def _like_x(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _backward(grad, needed, x, condition, backend, linear):
    return _by_that_of_the_sum(_gradient(grad, x, condition, backend, linear), needed, condition)


def _by_that_of_the_sum(grad: Tensor, needed: set[str], condition: Tensor | None) -> dict[str, Tensor]:
    """The gradients of x and of the condition."""
    of_images = "condition" in needed and condition is not None and condition.dim() == 2
    return {"x": grad, "condition": grad.sum((2, 3)) if of_images else grad}


def _backward_of_gradient(along, needed, grad, x, condition, linear):
    """In plain PyTorch, which can go on differentiating it."""
    (t, s), (along_a, along_b) = reference.factors(x, condition, linear), along.chunk(2, 1)
    of_t, of_s = _slope(t, linear), s * (1 - s)
    of_grad = along_a * s * of_t + along_b * t * of_s
    of_a = grad * of_t * (along_b * of_s - (0 if linear else 2 * along_a * s * t))
    of_b = grad * of_s * (along_a * of_t + along_b * t * (1 - 2 * s))
    return {"grad": of_grad, **_by_that_of_the_sum(torch.cat([of_a, of_b], 1), needed, condition)}


_gate = define("gated_activation", _compute, _like_result, backward=_backward)
_gradient = define("gated_activation_gradient", _compute_gradient, _like_x, backward=_backward_of_gradient)
