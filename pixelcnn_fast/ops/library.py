"""Registration of the ops with PyTorch, and how tensors are handed to the compiled module."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pixelcnn_fast.native import native, required

NAME = "pixelcnn_fast"
library = torch.library.Library(NAME, "DEF")

Map = tuple[int, tuple[int, ...], tuple[int, ...]]


def define(schema: str, compute: Callable, fake: Callable, casts: tuple[int, ...] = ()) -> Callable[..., Any]:
    """Registers an op: ``compute`` for CPU and CUDA tensors, ``fake`` for shapes alone -> a function that calls it.

    casts: positions of the tensors that autocast converts to its dtype, as it does for convolutions.
    Where PyTorch would add nothing to ``compute``, the function bypasses the dispatcher, which takes longer than a
    small op itself.
    """
    name = schema.partition("(")[0]
    library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    for key in ("CPU", "CUDA"):
        library.impl(name, compute, key)
    torch.library.register_fake(f"{NAME}::{name}", fake, lib=library)
    overload = getattr(getattr(torch.ops, NAME), name).default
    if casts:
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            library.impl(name, _autocast(overload, device, key, casts), key)

    def call(*args: Any) -> Any:
        if _bare(args):
            return compute(*args)
        _check_no_tangent(name, args)
        _check_no_transform(name)
        return overload(*args)

    return call


def differentiable_once(name: str) -> None:
    """Of an op that computes gradients: says in the backward of a backward that there is none. PyTorch would leave
    second derivatives out."""

    def backward(*_: Any) -> None:
        raise NotImplementedError(
            f"{NAME}::{name} has no gradients of its own, so there are no second derivatives: for gradient penalties, "
            "use the plain layers of pixelcnn_fast.models.reference"
        )

    torch.library.register_autograd(f"{NAME}::{name}", backward, lib=library)


is_batched = torch._C._functorch.is_legacy_batchedtensor  # within a backward of many gradients at once

PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _bare(args: tuple) -> bool:
    """Whether nothing else takes part in a call: no compiler, mode, transform, autocast or gradient."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_any_autocast_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    gradients = torch.is_grad_enabled()
    for x in args:
        if not isinstance(x, Tensor):
            continue
        if type(x) not in PLAIN or (gradients and x.requires_grad) or x.is_neg() or is_batched(x):
            return False
    return True


def _check_no_tangent(name: str, args: tuple) -> None:
    """PyTorch would take the tangents of a result for zero."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    if have_tangents(args):
        raise NotImplementedError(
            f"{NAME}::{name} has no forward-mode derivative (jvp, jacfwd, hessian): take the gradient backwards, or "
            "use the plain layers of pixelcnn_fast.models.reference"
        )


def have_tangents(args: tuple) -> bool:
    """Within a level of forward-mode derivatives."""
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args)


def _check_no_transform(name: str) -> None:
    """PyTorch's own error would ask for a method that only the library could write."""
    if torch.compiler.is_compiling():
        return
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(transform.key() == torch._C._functorch.TransformType.Grad for transform in transforms):
        raise NotImplementedError(
            f"{NAME}::{name} does not work within torch.func.grad, vjp and jacrev: call it with "
            "torch.func.functional_call and take torch.autograd.grad, or use the plain layers of "
            "pixelcnn_fast.models.reference"
        )


def _autocast(overload: torch._ops.OpOverload, device: str, key: str, casts: tuple[int, ...]) -> Callable:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        lowered = [_lowered(x, dtype) if i in casts else x for i, x in enumerate(args)]
        if len({lowered[i].dtype for i in casts if isinstance(lowered[i], Tensor)}) > 1:
            raise ValueError(
                f"{overload}: under autocast, float64 tensors stay as they are and the others become {dtype}: "
                "convert one"
            )
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return overload(*lowered)

    return cast


def _lowered(x: Any, dtype: torch.dtype) -> Any:
    """Autocast's rule: all floating-point tensors but those in float64 are converted."""
    eligible = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if eligible else x


# -- tensors for the compiled module


@functools.cache
def _elements() -> dict[torch.dtype, Any]:
    kinds = required().Element
    return {torch.float32: kinds.float32, torch.float64: kinds.float64, torch.bfloat16: kinds.bfloat16}


def element(x: Tensor) -> Any:
    """The compiled module's name for the dtype of x."""
    return _elements()[x.dtype]


POOLED = 2**21  # bytes from which a result's memory is kept for later results


def pooled(empty: Tensor) -> Tensor:
    """A result that is still to be written, [...] without gaps -> in its place, if it is large, one in memory that
    earlier results have left: new memory is cleared by the system, which takes as long as computing."""
    if empty.device.type != "cpu" or empty.nbytes < POOLED or native() is None:
        return empty
    storage = torch.frombuffer(required().Block(empty.nbytes), dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=empty.dtype).set_(storage, 0, empty.shape, empty.stride())


def as_map(x: Tensor) -> Map:
    return x.data_ptr(), tuple(x.shape), x.stride()


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def computed(x: Tensor | None) -> Tensor | None:
    """The vector, made dense, in the dtype that sums are computed in: float64 for float64, else float32."""
    if x is None:
        return None
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of a result that follows x [N, C, H, W], by PyTorch's own rule: channels-last if the strides
    of x grow from channels to columns, rows and images. Where one memory is both, as of one pixel, it is contiguous."""
    sizes, strides = x.shape, x.stride()
    least = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least or strides[1] == 0:
            return torch.contiguous_format
        if axis == 0 and least == strides[1]:
            return torch.contiguous_format
        least = strides[axis] * sizes[axis]
    return torch.channels_last


def dense(x: Tensor) -> Tensor:
    """x without gaps in its memory format, copied if need be."""
    return x.contiguous(memory_format=memory_format(x))
