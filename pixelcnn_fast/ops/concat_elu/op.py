"""The activation of PixelCNN++: arguments, gradients, backends."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.native import required
from pixelcnn_fast.ops.backend import choose
from pixelcnn_fast.ops.concat_elu import reference
from pixelcnn_fast.ops.library import address, define, memory_format, pooled, raw


def concat_elu(x: Tensor, backend: str = "auto") -> Tensor:
    """elu(x) and elu(-x), one after the other, in one pass over memory forward and one backward.

    x: [N, C, H, W], any strides -> [N, 2C, H, W], channels-last where x is.
    backend: 'auto', 'compiled', 'triton' or 'reference'.
    Raises ValueError unless x has four axes, and if the backend can't compute it.
    Source: Shang et al. 2016, "Understanding and Improving Convolutional Neural Networks via
    Concatenated Rectified Linear Units", with ELUs as in Salimans et al. 2017, "PixelCNN++".
    """
    if x.dim() != 4:
        raise ValueError(f"x is {list(x.shape)}: expected [N, C, H, W]")
    return _concat_elu(x, backend)


def _compute(x: Tensor, backend: str) -> Tensor:
    backend, layout = choose(backend, x.device, x.dtype), memory_format(x)
    if backend == "reference":
        return reference.concat_elu(x).contiguous(memory_format=layout)
    x = x.contiguous(memory_format=layout)
    if backend == "triton":
        from pixelcnn_fast.ops.concat_elu import triton

        return triton.forward(x)
    out = pooled(_like_result(x))
    channels_last = layout == torch.channels_last
    required().concat_elu(raw(x), channels_last, address(out), torch.get_num_threads())
    return out


def _like_result(x: Tensor) -> Tensor:
    return _of_channels(2 * x.shape[1], x)


def _compute_gradient(grad: Tensor, y: Tensor, backend: str) -> Tensor:
    backend, layout = choose(backend, y.device, y.dtype), memory_format(y)
    if backend == "reference":
        return reference.gradient(grad, y).contiguous(memory_format=layout)
    grad, y = grad.contiguous(memory_format=layout), y.contiguous(memory_format=layout)
    if backend == "triton":
        from pixelcnn_fast.ops.concat_elu import triton

        return triton.backward(grad, y)
    grad_x = pooled(_like_x(y))
    channels_last = layout == torch.channels_last
    required().concat_elu_gradient(
        raw(y), channels_last, address(grad), address(grad_x), torch.get_num_threads()
    )
    return grad_x


def _like_x(y: Tensor) -> Tensor:
    return _of_channels(y.shape[1] // 2, y)


def _of_channels(channels: int, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    shape = (n, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def _backward(grad, needed, y, backend):
    return {"x": _gradient(grad, y, backend)}


def _backward_of_gradient(along, needed, grad, y):
    """In plain PyTorch, which can go on differentiating it."""
    both = torch.cat([along, -along], dim=1)
    return {"grad": both * reference.slope(y), "y": both * grad * (y <= 0)}


_concat_elu = define("concat_elu", _compute, _like_result, backward=_backward, results=["y"])
_gradient = define("concat_elu_gradient", _compute_gradient, _like_x, backward=_backward_of_gradient)
