"""Masked 2-D convolution: arguments, gradients, backends."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.library import Pair, RawTensor, address, computed, define, memory_format, pooled, raw
from pixelcnn_fast.ops.masked_conv2d import reference

Padding = int | Pair | Literal["same", "valid"]


# -- what the compiled module reads by name


class MaskedWeight(NamedTuple):
    weight: RawTensor
    mask: RawTensor


class Geometry(NamedTuple):
    padding: Pair
    dilation: Pair


class Epilogue(NamedTuple):
    """What follows a convolution: addresses of vectors, 0 for none, and a residual map."""

    bias: int = 0
    scale: int = 0
    shift: int = 0
    condition: int = 0
    residual: RawTensor | None = None
    activation: str | None = None
    alpha: float = 1.0


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: Padding = "same",
    dilation: int | Pair = 1,
    backend: str = "auto",
    dense_gradient: bool = False,
    result_format: torch.memory_format | None = None,
    size: Pair | None = None,
) -> Tensor:
    """Masked 2-D convolution, stride 1: only live taps are computed, forward and backward.

    x: [N, I, H, W], any strides; weight: [O, I, kH, kW]; mask: of that shape, or one that is expanded to it;
    bias: [O] or None -> [N, O, H', W'], in ``result_format``, or as x is laid out. Weights
    where the mask is 0 take no part and get a gradient of exactly 0; with
    ``dense_gradient`` the weight's gradient is that without a mask, which PyTorch gives if
    the mask was multiplied into the weight's own memory.
    size: (H', W'); the padding is then that above and to the left, where it may be negative,
    as many zeros as are needed follow on the other sides, and kH and kW may be even.
    backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError if shapes, dtypes or devices do not fit, kH or kW is even, or the
    backend can't compute it. Source: van den Oord et al. 2016, "Pixel Recurrent Neural
    Networks", section 3.4.
    """
    padding, dilation = geometry(weight, padding, dilation)
    check_masked_conv2d(x, weight, bias, mask, padding, dilation, is_window=size is not None)
    return _forward(x, weight, bias, mask, padding, dilation, backend, dense_gradient, result_format, size)


def geometry(weight: Tensor, padding: Padding, dilation: int | Pair) -> tuple[Pair, Pair]:
    """Padding and dilation as pairs (vertical, horizontal)."""
    dilation = _pair(dilation)
    if padding == "same":
        return (dilation[0] * (weight.shape[2] // 2), dilation[1] * (weight.shape[3] // 2)), dilation
    if padding == "valid":
        return (0, 0), dilation
    if isinstance(padding, str):
        raise ValueError(f"padding is {padding!r}: expected 'same', 'valid' or numbers")
    return _pair(padding), dilation


def _pair(x: int | tuple[int, ...]) -> Pair:
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


def check_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: Pair,
    dilation: Pair,
    is_window: bool = False,
) -> None:
    """Raises ValueError, naming the argument, if they do not fit together. is_window: whether
    the result has a size of its own."""
    size, kernel = x.shape, weight.shape
    if len(size) != 4 or len(kernel) != 4 or size[1] != kernel[1]:
        raise ValueError(
            f"x {list(size)} does not fit weight {list(kernel)}: expected [N, I, H, W] and [O, I, kH, kW]"
        )
    if mask.shape != kernel and not expands(mask, kernel):
        raise ValueError(f"mask {list(mask.shape)} can't be expanded to the weight's shape {list(kernel)}")
    if not is_window and (kernel[2] % 2 == 0 or kernel[3] % 2 == 0):
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
        if (pad < 0 and not is_window) or step < 1:
            raise ValueError(f"padding {padding}, dilation {dilation}: expected 0 or more, 1 or more")
        if not is_window and size[axis + 2] + 2 * pad < step * (kernel[axis + 2] - 1) + 1:
            raise ValueError(
                f"x {list(size)}: its {side}, padded by {pad}, is smaller than the dilated kernel"
            )


def expands(mask: Tensor, kernel: torch.Size) -> bool:
    """Whether a mask can be expanded to a kernel's shape."""
    own = mask.shape[::-1]
    return len(own) <= len(kernel) and all(a in (1, b) for a, b in zip(own, kernel[::-1], strict=False))


def result_size(x: Tensor, weight: Tensor, padding: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    (n, _, height, width), (out, _, rows, columns) = x.shape, weight.shape
    height += 2 * padding[0] - dilation[0] * (rows - 1)
    width += 2 * padding[1] - dilation[1] * (columns - 1)
    return n, out, height, width


def like_result(
    x: Tensor,
    weight: Tensor,
    padding: Pair,
    dilation: Pair,
    result_format: torch.memory_format | None = None,
    size: Pair | None = None,
) -> Tensor:
    """An empty result; size: (H', W'), if padding below and to the right differs."""
    n, out, *whole = result_size(x, weight, padding, dilation)
    shape = (n, out, *(whole if size is None else size))
    layout = memory_format(x) if result_format is None else result_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


# -- computing


def _compute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: Pair,
    dilation: Pair,
    backend: str,
    dense_gradient: bool = False,
    result_format: torch.memory_format | None = None,
    size: Pair | None = None,
) -> Tensor:
    backend = choose(backend, x.device, x.dtype)
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        return triton.forward(
            x, weight, bias, mask, dilation, padding, result_format=result_format, size=size
        )
    mask = mask_like(mask, weight)
    if backend == "reference":
        y = reference.masked_conv2d(x, weight, bias, mask, padding, dilation, size)
        return y.contiguous(memory_format=memory_format(x) if result_format is None else result_format)
    out = pooled(like_result(x, weight, padding, dilation, result_format, size))
    if not out.numel():
        return out
    bias = computed(bias)
    required().masked_conv2d(
        raw(x),
        MaskedWeight(raw(weight), raw(mask)),
        Geometry(padding, dilation),
        Epilogue(address(bias)),
        raw(out),
        torch.get_num_threads(),
    )
    return out


def mask_like(mask: Tensor, weight: Tensor) -> Tensor:
    """The mask in the weight's dtype and shape."""
    return mask.to(weight.dtype).expand(weight.shape)


def _input_gradient(
    grad: Tensor,
    weight: Tensor,
    mask: Tensor,
    size: tuple[int, int, int, int],
    padding: Pair,
    dilation: Pair,
    backend: str,
    dense_gradient: bool = False,
    channels_last: bool = False,
) -> Tensor:
    backend = choose(backend, grad.device, grad.dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton

        return triton.input_gradient(grad, weight, mask, size, dilation, padding, layout)
    mask = mask_like(mask, weight)
    if backend == "reference":
        grad_x = reference.input_gradient(grad, weight * mask, size, padding, dilation)
        return grad_x.contiguous(memory_format=layout)
    grad_x = _like_input(grad, size, channels_last)
    if not grad.numel() or not grad_x.numel():
        return grad_x.zero_()
    grad_x = pooled(grad_x)
    required().masked_conv2d_input_gradient(
        raw(grad),
        MaskedWeight(raw(weight), raw(mask)),
        Geometry(padding, dilation),
        raw(grad_x),
        torch.get_num_threads(),
    )
    return grad_x


def _like_input(grad: Tensor, size: tuple[int, int, int, int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _weight_gradient(
    grad: Tensor, x: Tensor, mask: Tensor, padding: Pair, dilation: Pair, backend: str
) -> tuple[Tensor, Tensor]:
    backend, mask = choose(backend, x.device, x.dtype), mask.to(x.dtype)
    if backend == "compiled":
        weight, bias = _like_weight(x, mask)
        if not grad.numel():
            return weight.zero_(), bias.zero_()
        weight_gradient(grad, x, mask, padding, dilation, weight, bias)
        return weight, bias
    if backend == "triton":
        from pixelcnn_fast.ops.masked_conv2d import triton_weight_gradient as triton

        weight = triton.weight_gradient(grad, x, mask.shape, mask, dilation, padding)
    else:
        window = reference.window(x, mask, padding, dilation, grad.shape[2:])
        weight = conv2d_weight(window, mask.shape, grad, dilation=dilation)
    return (weight * mask).contiguous(), grad.sum((0, 2, 3))


def weight_gradient(
    grad: Tensor, x: Tensor, mask: Tensor, padding: Pair, dilation: Pair, weight: Tensor, bias: Tensor | None
) -> None:
    """Writes the compiled module's gradients into weight and bias, which are dense."""
    required().masked_conv2d_weight_gradient(
        raw(grad),
        raw(x),
        MaskedWeight(raw(mask), raw(mask)),
        Geometry(padding, dilation),
        address(weight),
        address(bias),
        torch.get_num_threads(),
    )


def _like_weight(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(mask.shape), x.new_empty(mask.shape[0])


# -- gradients; the signatures above have the types. The convolution is linear in x and in the weight, so what its
# gradients need for theirs are these ops again.


def _backward(grad, needed, x, weight, mask, padding, dilation, backend, dense_gradient):
    found, how = {}, (padding, dilation, backend, dense_gradient)
    if "x" in needed:
        found["x"] = _backward_input(grad, weight, mask, x.shape, *how, _is_last(x, weight))
    if needed & {"weight", "bias"}:
        found["weight"], found["bias"] = _gradients(grad, x, weight, mask, *how)
    return found


def _is_last(*tensors: Tensor) -> bool:
    """Whether PyTorch would lay a gradient out channels-last."""
    return any(memory_format(x) == torch.channels_last for x in tensors)


def _gradients(grad, x, weight, mask, padding, dilation, backend, dense_gradient):
    """Of weight and bias."""
    if not dense_gradient:
        return _backward_weight(grad, x, mask.expand_as(weight), padding, dilation, backend)
    if grad.shape[2:] != result_size(x, weight, padding, dilation)[2:]:
        x, padding = reference.window(x, weight, padding, dilation, grad.shape[2:]), (0, 0)
    how = ([1, 1], padding, dilation, False, [0, 0], 1, [False, True, True])
    return torch.ops.aten.convolution_backward(grad, x, weight, weight.shape[:1], *how)[1:]


def _backward_of_input_gradient(
    along, needed, grad, weight, mask, padding, dilation, backend, dense_gradient
):
    found, how = {}, (padding, dilation, backend, dense_gradient)
    if "grad" in needed:
        found["grad"] = _forward(along, weight, None, mask, *how, None, grad.shape[2:])
    if "weight" in needed:
        found["weight"] = _gradients(grad, along, weight, mask, *how)[0]
    return found


def _backward_of_weight_gradient(along, along_bias, needed, grad, x, mask, padding, dilation, backend):
    found, how = {}, (padding, dilation, backend, False)
    if "grad" in needed:
        found["grad"] = _forward(x, along, along_bias, mask, *how, None, grad.shape[2:])
    if "x" in needed:
        found["x"] = _backward_input(grad, along, mask, x.shape, *how, _is_last(x, along))
    return found


_forward = define("masked_conv2d", _compute, like_result, casts=("x", "weight", "bias"), backward=_backward)
_backward_input = define(
    "masked_conv2d_input_gradient", _input_gradient, _like_input, backward=_backward_of_input_gradient
)
_backward_weight = define(
    "masked_conv2d_weight_gradient", _weight_gradient, _like_weight, backward=_backward_of_weight_gradient
)
