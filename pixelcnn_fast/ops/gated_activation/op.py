"""The gate of Gated PixelCNN: schema, gradients, backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.gated_activation import reference
from pixelcnn_fast.ops.library import (
    NAME,
    address,
    define,
    dense,
    element,
    library,
    memory_format,
    pooled,
)


def gated_activation(x: Tensor, condition: Tensor | None = None, backend: str = "auto") -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves of the channels, one pass over memory forward and one backward.

    x: [N, 2C, H, W], any strides; condition: [N, 2C] or [N, 2C, H, W], added to x first, or None -> [N, C, H, W],
    channels-last where x is. backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError if the channels are odd, the condition does not fit, or the backend can't compute it.
    Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", equation 2.
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
    return _gate(x, condition, backend)


def _shape(x: Tensor, condition: Tensor | None) -> Any:
    module = required()
    kind = "none" if condition is None else "per_image" if condition.dim() == 2 else "per_pixel"
    n, channels, height, width = x.shape
    last = memory_format(x) == torch.channels_last
    return module.GateShape(n, channels // 2, height * width, last, getattr(module.GateCondition, kind))


def _as(x: Tensor, condition: Tensor | None) -> Tensor | None:
    """The condition, laid out like x."""
    if condition is None or condition.dim() == 2:
        return None if condition is None else condition.contiguous()
    return condition.contiguous(memory_format=memory_format(x))


def _compute(x, condition, backend):  # the schema has the types
    backend = choose(backend, x.device, x.dtype)
    if backend == "reference":
        return reference.gated_activation(x, condition).contiguous(memory_format=memory_format(x))
    x = dense(x)
    if backend == "triton":
        from pixelcnn_fast.ops.gated_activation import triton

        return triton.forward(x, condition)
    condition, out = _as(x, condition), pooled(_like_gate(x, condition, backend))
    required().gated_activation(
        element(x), _shape(x, condition), address(x), address(condition), address(out), torch.get_num_threads()
    )
    return out


def _like_gate(x, condition, backend):
    n, channels, height, width = x.shape
    return torch.empty(
        (n, channels // 2, height, width), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )


def _compute_gradient(grad, x, condition, backend):
    backend = choose(backend, x.device, x.dtype)
    if backend == "reference":
        total = (
            x if condition is None else x + (condition if condition.dim() == 4 else condition[:, :, None, None])
        )
        a, b = total.chunk(2, dim=1)
        t, s = a.tanh(), b.sigmoid()
        halves = torch.cat([grad * s * (1 - t * t), grad * t * s * (1 - s)], dim=1)
        return halves.contiguous(memory_format=memory_format(x))
    x = dense(x)
    grad = grad.contiguous(memory_format=memory_format(x))
    if backend == "triton":
        from pixelcnn_fast.ops.gated_activation import triton

        return triton.backward(grad, x, condition)
    condition, grad_x = _as(x, condition), pooled(_like_x(grad, x, condition, backend))
    required().gated_activation_gradient(
        element(x),
        _shape(x, condition),
        address(x),
        address(condition),
        address(grad),
        address(grad_x),
        torch.get_num_threads(),
    )
    return grad_x


def _like_x(grad, x, condition, backend):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


_gate = define("gated_activation(Tensor x, Tensor? condition, str backend) -> Tensor", _compute, _like_gate)
_gradient = define(
    "gated_activation_gradient(Tensor grad, Tensor x, Tensor? condition, str backend) -> Tensor",
    _compute_gradient,
    _like_x,
)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, condition, ctx.backend = inputs
    ctx.save_for_backward(x, condition)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, condition = ctx.saved_tensors
    grad_x = _gradient(grad, x, condition, ctx.backend)
    grad_condition = None
    if condition is not None and ctx.needs_input_grad[1]:
        grad_condition = grad_x if condition.dim() == 4 else grad_x.sum((2, 3))
    return grad_x, grad_condition, None


torch.library.register_autograd(f"{NAME}::gated_activation", _backward, setup_context=_save, lib=library)


def _save_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad, x, condition, _ = inputs
    ctx.save_for_backward(grad, x, condition)


def _backward_of_gradient(ctx: Any, along: Tensor) -> tuple:
    """In plain PyTorch, which can go on differentiating it."""
    grad, x, condition = ctx.saved_tensors
    total = x if condition is None else x + (condition if condition.dim() == 4 else condition[:, :, None, None])
    (a, b), (along_a, along_b) = total.chunk(2, 1), along.chunk(2, 1)
    t, s = a.tanh(), b.sigmoid()
    of_t, of_s = 1 - t * t, s * (1 - s)
    of_grad = along_a * s * of_t + along_b * t * of_s
    of_a = grad * of_t * (along_b * of_s - 2 * along_a * s * t)
    of_b = grad * of_s * (along_a * of_t + along_b * t * (1 - 2 * s))
    of_x = torch.cat([of_a, of_b], 1)
    of_condition = None
    if condition is not None:
        of_condition = of_x if condition.dim() == 4 else of_x.sum((2, 3))
    return of_grad, of_x, of_condition, None


torch.library.register_autograd(
    f"{NAME}::gated_activation_gradient", _backward_of_gradient, setup_context=_save_gradient, lib=library
)
