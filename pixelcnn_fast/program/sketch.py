"""What need not be computed where nobody looks at its values: it costs no more than its shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.ops.library import Pair
from pixelcnn_fast.ops.masked_conv2d.op import like_result
from pixelcnn_fast.program.dispatch_mode import DispatchMode

aten = torch.ops.aten


class Sketching(DispatchMode):
    """Computes no more than the shapes of products, and of what is made of them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = None if kwargs else sketched(func, args)
        return func(*args, **(kwargs or {})) if found is None else found


def sketched(func: Any, args: Sequence[Any]) -> Tensor | None:
    """Zeros in place of what a call gives, laid out as it would be; None for calls that it does not know."""
    if func is torch.ops.pixelcnn_fast.masked_conv2d.default:
        return _of_masked_convolution(*args)
    if (size := _SIZES.get(func)) is None or (found := size(*args)) is None:
        return None
    if func is aten.convolution.default and any(map(_is_channels_last, args[:2])):
        n, channels, *pixels = found
        return _zeros([n, *pixels, channels], args[0]).movedim(-1, 1)
    return _zeros(found, args[0])


def _zeros(size: Sequence[int], like: Tensor) -> Tensor:
    """As torch.zeros, but takes no memory until something is written there, where NumPy asks for it."""
    if like.device.type != "cpu":
        return like.new_zeros(size)
    return torch.from_numpy(np.zeros(math.prod(size) * like.itemsize, np.uint8)).view(like.dtype).view(size)


def _of_masked_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    padding: Pair,
    dilation: Pair,
    backend: str,
    dense_gradient: bool = False,
    *layout: Any,
) -> Tensor:
    like = like_result(x, weight, padding, dilation, *layout)
    return _zeros([like.numel()], like).as_strided(like.shape, like.stride())


def size_of_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *_: Any,
) -> list[int] | None:
    """[N, O, H', W'], or None if it is none of maps."""
    if transposed or x.dim() != 4:
        return None
    axes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return [
        len(x),
        len(weight),
        *((n + 2 * pad - by * (k - 1) - 1) // step + 1 for n, k, step, pad, by in axes),
    ]


def _is_channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.shape[3] > 1 and x.stride(1) < x.stride(3)


def _alike(x: Any, *others: Any) -> list[int] | None:
    """The size of what has a dense tensor's layout and dtype, whatever it is combined with."""
    if not isinstance(x, Tensor) or not x.is_contiguous() or not x.is_floating_point():
        return None
    tensors = [y for y in others if isinstance(y, Tensor)]
    sizes = [(1,) * (x.dim() - y.dim()) + y.shape for y in tensors if y.dim() <= x.dim()]
    fits = all(b in (1, a) for size in sizes for a, b in zip(x.shape, size, strict=True))
    is_plain = all(y.dtype in (x.dtype, torch.bool) for y in tensors)
    return list(x.shape) if len(sizes) == len(tensors) and fits and is_plain else None


_SIZES: dict[Any, Callable[..., list[int] | None]] = {
    aten.convolution.default: size_of_convolution,
    aten.mm.default: lambda a, b: [len(a), b.shape[1]],
    aten.addmm.default: lambda c, a, b: [len(a), b.shape[1]],
    aten.bmm.default: lambda a, b: [*a.shape[:2], b.shape[2]],
    aten.baddbmm.default: lambda c, a, b: [*a.shape[:2], b.shape[2]],
    **dict.fromkeys(
        (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.masked_fill.Scalar, aten._softmax.default),
        _alike,
    ),
}
