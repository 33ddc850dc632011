"""Masked 2-D convolution: schema, gradients, backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import (
    NAME,
    address,
    as_map,
    computed,
    define,
    element,
    library,
    memory_format,
    pooled,
)
from pixelcnn_fast.ops.masked_conv2d import reference

Padding = int | tuple[int, int] | Literal["same", "valid"]


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: Padding = "same",
    dilation: int | tuple[int, int] = 1,
    backend: str = "auto",
    dense_gradient: bool = False,
    result_format: torch.memory_format | None = None,
) -> Tensor:
    """Masked 2-D convolution, stride 1: only live taps are computed, forward and backward.

    x: [N, I, H, W], any strides; weight: [O, I, kH, kW]; mask: of that shape, or one that is expanded to it;
    bias: [O] or None -> [N, O, H', W'], in ``result_format``, or as x is laid out. Weights where the
    mask is 0 take no part and get a gradient of exactly 0; with ``dense_gradient`` the weight's gradient is that of the
    convolution without a mask, which is what PyTorch gives if the mask was multiplied into the weight's own memory.
    backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError if shapes, dtypes or devices do not fit, kH or kW is even, or the backend can't compute it.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.4.
    """
    padding, dilation = geometry(weight, padding, dilation)
    check_masked_conv2d(x, weight, bias, mask, padding, dilation)
    return _forward(x, weight, bias, mask, padding, dilation, backend, dense_gradient, result_format, None)


def geometry(
    weight: Tensor, padding: Padding, dilation: int | tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding and dilation as pairs (vertical, horizontal)."""
    dilation = _pair(dilation)
    if padding == "same":
        return (dilation[0] * (weight.shape[2] // 2), dilation[1] * (weight.shape[3] // 2)), dilation
    if padding == "valid":
        return (0, 0), dilation
    if isinstance(padding, str):
        raise ValueError(f"padding is {padding!r}: expected 'same', 'valid' or numbers")
    return _pair(padding), dilation


def _pair(x: int | tuple[int, ...]) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


def check_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    """Raises ValueError, naming the argument, if the arguments do not fit together."""
    size, kernel = x.shape, weight.shape
    if len(size) != 4 or len(kernel) != 4 or size[1] != kernel[1]:
        raise ValueError(
            f"x {list(size)} does not fit weight {list(kernel)}: expected [N, I, H, W] and [O, I, kH, kW]"
        )
    if mask.shape != kernel and not expands(mask, kernel):
        raise ValueError(f"mask {list(mask.shape)} can't be expanded to the weight's shape {list(kernel)}")
    if kernel[2] % 2 == 0 or kernel[3] % 2 == 0:
        raise ValueError(f"kernel {kernel[2]}x{kernel[3]}: a masked kernel needs odd sizes")
    if bias is not None and bias.shape != kernel[:1]:
        raise ValueError(f"bias {list(bias.shape)} does not fit weight {list(kernel)}: expected [O]")
    dtype, device = x.dtype, x.device
    for name, other in (("weight", weight), ("bias", bias), ("mask", mask)):
        if other is None:
            continue
        if other.dtype != dtype and name != "mask" and not torch.is_autocast_enabled(device.type):
            raise ValueError(f"{name} is {other.dtype}, x is {dtype}: convert one of them")
        if other.device != device:
            raise ValueError(f"{name} is on {other.device}, x is on {device}: move one of them")
    for axis, side in ((0, "height"), (1, "width")):
        pad, step = padding[axis], dilation[axis]
        if pad < 0 or step < 1:
            raise ValueError(f"padding {padding}, dilation {dilation}: expected 0 or more, 1 or more")
        if size[axis + 2] + 2 * pad < step * (kernel[axis + 2] - 1) + 1:
            raise ValueError(f"x {list(size)}: its {side}, padded by {pad}, is smaller than the dilated kernel")


def expands(mask: Tensor, kernel: torch.Size) -> bool:
    """Whether a mask can be expanded to a kernel's shape."""
    own = mask.shape[::-1]
    return len(own) <= len(kernel) and all(a in (1, b) for a, b in zip(own, kernel[::-1], strict=False))


def result_size(
    x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    (n, _, height, width), (out, _, rows, columns) = x.shape, weight.shape
    height += 2 * padding[0] - dilation[0] * (rows - 1)
    width += 2 * padding[1] - dilation[1] * (columns - 1)
    return n, out, height, width


def like_result(
    x: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    dilation: tuple[int, int],
    result_format: torch.memory_format | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:
    """An empty tensor for the result; size: (H', W'), if padding below and to the right differs."""
    n, out, *whole = result_size(x, weight, padding, dilation)
    shape = (n, out, *(whole if size is None else size))
    layout = memory_format(x) if result_format is None else result_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


# -- computing


def _compute(  # the schema has the types
    x, weight, bias, mask, padding, dilation, backend, dense_gradient=False, result_format=None, size=None
):
    backend = choose(backend, x.device, x.dtype)
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        return triton.forward(x, weight, bias, mask, dilation, padding, result_format, size)
    if backend == "reference":
        y = reference.masked_conv2d(x, weight, bias, mask_like(mask, weight), padding, dilation, size)
        return y if result_format is None else y.contiguous(memory_format=result_format)
    mask = mask_like(mask, weight)
    out = pooled(
        _like_forward(x, weight, bias, mask, padding, dilation, backend, dense_gradient, result_format, size)
    )
    if not out.numel():
        return out
    bias = computed(bias)
    required().masked_conv2d(
        element(x),
        as_map(x),
        as_map(weight),
        as_map(mask),
        padding,
        dilation,
        address(bias),
        as_map(out),
        torch.get_num_threads(),
    )
    return out


def mask_like(mask: Tensor, weight: Tensor) -> Tensor:
    """The mask in the weight's dtype and shape."""
    return mask.to(weight.dtype).expand(weight.shape)


def _input_gradient(
    grad, weight, mask, size, padding, dilation, backend, dense_gradient=False, channels_last=False
):
    backend = choose(backend, grad.device, grad.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        return triton.input_gradient(grad, weight, mask, size, dilation, padding, layout)
    mask = mask_like(mask, weight)
    if backend == "reference":
        grad_x = reference.input_gradient(grad, weight * mask, size, padding, dilation)
        return grad_x.contiguous(memory_format=layout)
    empty = _like_input(grad, weight, mask, size, padding, dilation, backend, dense_gradient, channels_last)
    if not grad.numel():
        return empty.zero_()
    grad_x = pooled(empty)
    required().masked_conv2d_input_gradient(
        element(grad),
        as_map(grad),
        as_map(weight),
        as_map(mask),
        padding,
        dilation,
        as_map(grad_x),
        torch.get_num_threads(),
    )
    return grad_x


def _like_input(
    grad, weight, mask, size, padding, dilation, backend, dense_gradient=False, channels_last=False
):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _weight_gradient(grad, x, mask, padding, dilation, backend):
    backend, mask = choose(backend, x.device, x.dtype), mask.to(x.dtype)
    if backend == "reference":
        window = reference.window(x, mask, padding, dilation, grad.shape[2:])
        weight = conv2d_weight(window, mask.shape, grad, dilation=dilation)
        return (weight * mask).contiguous(), grad.sum((0, 2, 3))
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        weight = triton.weight_gradient(grad, x, mask.shape, mask, dilation, padding)
        return (weight * mask).contiguous(), grad.sum((0, 2, 3))
    weight, bias = _like_weight(grad, x, mask, padding, dilation, backend)
    if not grad.numel():
        return weight.zero_(), bias.zero_()
    required().masked_conv2d_weight_gradient(
        element(x),
        as_map(grad),
        as_map(x),
        as_map(mask),
        padding,
        dilation,
        address(weight),
        address(bias),
        torch.get_num_threads(),
    )
    return weight, bias


def _like_weight(grad, x, mask, padding, dilation, backend):
    return x.new_empty(mask.shape), x.new_empty(mask.shape[0])


def _like_forward(
    x, weight, bias, mask, padding, dilation, backend, dense_gradient=False, result_format=None, size=None
):
    return like_result(x, weight, padding, dilation, result_format, size)


_forward = define(
    "masked_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor mask, SymInt[2] padding, SymInt[2] dilation, "
    "str backend, bool dense_gradient=False, MemoryFormat? result_format=None, SymInt[2]? size=None) -> Tensor",
    _compute,
    _like_forward,
    casts=(0, 1, 2),
)
_backward_input = define(
    "masked_conv2d_input_gradient(Tensor grad, Tensor weight, Tensor mask, SymInt[4] size, SymInt[2] padding, "
    "SymInt[2] dilation, str backend, bool dense_gradient=False, bool channels_last=False) -> Tensor",
    _input_gradient,
    _like_input,
)
_backward_weight = define(
    "masked_conv2d_weight_gradient(Tensor grad, Tensor x, Tensor mask, SymInt[2] padding, SymInt[2] dilation, "
    "str backend) -> (Tensor, Tensor)",
    _weight_gradient,
    _like_weight,
)


# -- gradients


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, mask, *ctx.how, ctx.dense, _, _ = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, mask)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, mask = ctx.saved_tensors
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = _backward_input(grad, weight, mask, x.shape, *ctx.how, ctx.dense, _is_last(x, weight))
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_weight, grad_bias = _gradients(ctx, grad, x, weight, mask)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, *7 * (None,)


def _is_last(*tensors: Tensor) -> bool:
    """Whether PyTorch would lay a gradient out channels-last."""
    return any(memory_format(x) == torch.channels_last for x in tensors)


def _gradients(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of weight and bias."""
    if not ctx.dense:
        return _backward_weight(grad, x, mask.expand_as(weight), *ctx.how)
    padding, dilation, _ = ctx.how
    if grad.shape[2:] != result_size(x, weight, padding, dilation)[2:]:
        x, padding = reference.window(x, weight, padding, dilation, grad.shape[2:]), (0, 0)
    how = ([1, 1], padding, dilation, False, [0, 0], 1, [False, True, True])
    return torch.ops.aten.convolution_backward(grad, x, weight, weight.shape[:1], *how)[1:]


# The convolution is linear in x and in the weight, so what its gradients need for theirs are these ops again.


def _save_input_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    grad, weight, mask, _, *ctx.how, ctx.dense, _ = inputs
    ctx.save_for_backward(grad, weight, mask)


def _backward_of_input_gradient(ctx: Any, along: Tensor) -> tuple:
    grad, weight, mask = ctx.saved_tensors
    of_grad = (
        _forward(along, weight, None, mask, *ctx.how, ctx.dense, None, grad.shape[2:])
        if ctx.needs_input_grad[0]
        else None
    )
    of_weight = _gradients(ctx, grad, along, weight, mask)[0] if ctx.needs_input_grad[1] else None
    return of_grad, of_weight, *7 * (None,)


def _save_weight_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    grad, x, mask, *ctx.how = inputs
    ctx.save_for_backward(grad, x, mask)


def _backward_of_weight_gradient(ctx: Any, along: Tensor, along_bias: Tensor) -> tuple:
    grad, x, mask = ctx.saved_tensors
    of_grad = (
        _forward(x, along, along_bias, mask, *ctx.how, False, None, grad.shape[2:])
        if ctx.needs_input_grad[0]
        else None
    )
    of_x = (
        _backward_input(grad, along, mask, x.shape, *ctx.how, False, _is_last(x, along))
        if ctx.needs_input_grad[1]
        else None
    )
    return of_grad, of_x, *4 * (None,)


for name, backward, save in (
    ("masked_conv2d", _backward, _save),
    ("masked_conv2d_input_gradient", _backward_of_input_gradient, _save_input_gradient),
    ("masked_conv2d_weight_gradient", _backward_of_weight_gradient, _save_weight_gradient),
):
    torch.library.register_autograd(f"{NAME}::{name}", backward, setup_context=save, lib=library)
