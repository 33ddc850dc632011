"""Large products by the library's own kernels, in what a check computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.native import native
from pixelcnn_fast.ops.library import Pair
from pixelcnn_fast.ops.masked_conv2d.op import masked_conv2d
from pixelcnn_fast.program.dispatch_mode import DispatchMode
from pixelcnn_fast.program.sketch import size_of_convolution

aten = torch.ops.aten
PRODUCTS = aten.mm.default, aten.matmul.default  # which PyTorch has not taken apart in inference mode
LARGE = 1 << 22  # multiply-adds, beside which the way to the kernel takes no time


class FastProducts(DispatchMode):
    """Within the context, large products and convolutions on the CPU take half of the time: PyTorch
    copies what each tap of a float64 convolution reads, and MKL leaves AMD's wide vectors unused."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = None
        if func in PRODUCTS and not kwargs:
            found = _product(*args)
        elif func is aten.convolution.default and not kwargs:
            found = _convolution(*args)
        return func(*args, **(kwargs or {})) if found is None else found


def _product(x: Tensor, weight: Tensor) -> Tensor | None:
    """x [M, I] @ weight [I, O], as the convolution of a map whose rows have one pixel."""
    if x.dim() != 2 or weight.dim() != 2:
        return None
    found = _dense(x.t()[None, ..., None], weight.t()[..., None, None], None, (0, 0), (1, 1), (len(x), 1))
    return None if found is None else found[0, ..., 0].t()


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    size = size_of_convolution(x, weight, bias, stride, padding, dilation, transposed)
    if size is None or x.dtype != torch.float64 or groups > 1 or {*stride} != {1}:
        return None
    (above, left), (down, across), (height, width) = padding, dilation, size[2:]
    return _dense(x, weight, bias, (above, left), (down, across), (height, width))


def _dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, dilation: Pair, size: Pair
) -> Tensor | None:
    """A convolution without a mask [N, O, *size], if the compiled module can compute it and it is large."""
    is_large = len(x) * size[0] * size[1] * weight.numel() >= LARGE
    if not is_large or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return None
    if x.dtype != weight.dtype or native() is None:
        return None
    mask, layout = torch.ones((), dtype=x.dtype).expand(weight.shape), torch.channels_last
    return masked_conv2d(
        x, weight, bias, mask, padding, dilation, "compiled", result_format=layout, size=size
    )
