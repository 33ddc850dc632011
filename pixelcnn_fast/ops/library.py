"""Registers ops with PyTorch, and hands tensors to the compiled module."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Collection
from inspect import Parameter, Signature, signature
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pixelcnn_fast.native import native, required

NAME = "pixelcnn_fast"
library = torch.library.Library(NAME, "DEF")

Pair = tuple[int, int]
# Its address, the number of its dtype, then its sizes, then its strides.
RawTensor = tuple[int, ...]


def define(
    name: str,
    compute: Callable,
    fake: Callable,
    casts: Collection[str] = (),
    backward: Callable | None = None,
    results: Collection[str] = (),
) -> Callable[..., Any]:
    """Registers an op -> a function that calls it, with arguments by position.

    compute: the op for CPU and CUDA tensors, whose typed signature becomes the schema. The
    others name those of its arguments that they read. fake: the results, empty, from shapes
    alone. casts: the tensors that autocast converts to its dtype, as it does for convolutions.
    backward: (gradients of the first results, needed, **arguments)
    -> the gradients by the arguments' names; needed: the names of those that are
    asked for. results: the names of the results, where ``backward`` reads some as
    it reads arguments; those whose gradients it does not take have none. Where
    PyTorch would add nothing to ``compute``, the function bypasses the dispatcher,
    which takes longer than a small op itself.
    """
    declared = _signature(compute)
    names = list(declared.parameters)
    if isinstance(compute, functools.partial):
        compute = _by_position(compute)
    library.define(f"{name}{_schema(declared)}", tags=(torch.Tag.needs_fixed_stride_order,))
    for key in ("CPU", "CUDA"):
        library.impl(name, compute, key)
    torch.library.register_fake(f"{NAME}::{name}", _by_name(fake, declared), lib=library)
    overload = getattr(getattr(torch.ops, NAME), name).default
    if casts:
        positions = [names.index(cast) for cast in casts]
        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            library.impl(name, _autocast(overload, device, key, positions), key)
    if backward is not None:
        _register_backward(name, declared, backward, list(results))

    def call(*args: Any) -> Any:
        if _bare(args):
            return compute(*args)
        _check_no_transform(name, args)
        return overload(*args)

    return call


def _signature(function: Callable) -> Signature:
    """With its types evaluated, and without the arguments that a partial function fixes."""
    known, fixed = signature(function, eval_str=True), getattr(function, "keywords", ())
    left = (each for each in known.parameters.values() if each.name not in fixed)
    return known.replace(parameters=[each.replace(kind=each.POSITIONAL_OR_KEYWORD) for each in left])


def _schema(declared: Signature) -> str:
    arguments = []
    for argument in declared.parameters.values():
        default = "" if argument.default is argument.empty else f"={argument.default}"
        arguments.append(f"{_schema_type(argument.annotation)} {argument.name}{default}")
    return f"({', '.join(arguments)}) -> {_schema_type(declared.return_annotation)}"


def _schema_type(annotation: Any) -> str:
    """A tuple of numbers is SymInt[...], for sizes that are unknown while PyTorch compiles."""
    parts = typing.get_args(annotation)
    if type(None) in parts:
        return f"{_schema_type(parts[0])}?"
    if parts and parts[0] is int:
        return f"SymInt[{len(parts)}]"
    if parts:
        return f"({', '.join(map(_schema_type, parts))})"
    return "MemoryFormat" if annotation is torch.memory_format else annotation.__name__


def _by_name(function: Callable, declared: Signature) -> Callable:
    """Called like ``declared`` -> hands on, by name, the arguments that the function takes."""
    read = [name for name in _signature(function).parameters if name in declared.parameters]

    def call(*args: Any, **kwargs: Any) -> Any:
        given = declared.bind(*args, **kwargs)
        given.apply_defaults()
        return function(**{name: given.arguments[name] for name in read})

    return call


def _by_position(function: functools.partial) -> Callable:
    """One argument is fixed by name; the others are given by position."""
    ((name, value),) = function.keywords.items()
    at, whole = list(signature(function.func).parameters).index(name), function.func
    return lambda *args: whole(*args[:at], value, *args[at:])


def _register_backward(name: str, declared: Signature, backward: Callable, results: list[str]) -> None:
    names, parameters = list(declared.parameters), list(_signature(backward).parameters)
    differentiable = parameters.index("needed")
    read = parameters[differentiable + 1 :]
    others = [each for each in read if each in names and not _is_tensor(declared.parameters[each])]
    tensors = [each for each in read if each not in others]
    at_tensors, at_others = ([(names + results).index(each) for each in part] for part in (tensors, others))

    def save(ctx: Any, inputs: tuple, output: Any) -> None:
        known = inputs
        if results:
            outputs = output if isinstance(output, tuple) else (output,)
            known += outputs
            ctx.mark_non_differentiable(*outputs[differentiable:])
            ctx.set_materialize_grads(False)  # else zeros would be made for them
        ctx.save_for_backward(*[known[i] for i in at_tensors])
        ctx.others = [known[i] for i in at_others]

    def run(ctx: Any, *gradients: Tensor | None) -> tuple:
        given = gradients[:differentiable]
        if all(gradient is None for gradient in given):
            return (None,) * len(names)
        # PyTorch leaves out last arguments that have their default.
        needed = set(compress(names, ctx.needs_input_grad))
        saved = zip(tensors + others, (*ctx.saved_tensors, *ctx.others), strict=True)
        found = backward(*given, needed, **dict(saved))
        return tuple([found[each] if each in needed else None for each in names])

    torch.library.register_autograd(f"{NAME}::{name}", run, setup_context=save, lib=library)


def _is_tensor(argument: Parameter) -> bool:
    return argument.annotation in (Tensor, Tensor | None)


def differentiable_once(name: str) -> None:
    """Makes the backward of a backward an error: PyTorch would leave second derivatives out."""

    def backward(*_: Any) -> None:
        raise NotImplementedError(
            f"{NAME}::{name} has no gradients of its own, so there are no second derivatives: for gradient penalties, "
            "use the plain layers of pixelcnn_fast.models.reference"
        )

    torch.library.register_autograd(f"{NAME}::{name}", backward, lib=library)


# Within a backward of many gradients at once.
is_batched = torch._C._functorch.is_legacy_batchedtensor

PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _bare(args: tuple) -> bool:
    """Whether nothing else takes part: no compiler, mode, transform, autocast or gradient."""
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


def have_tangents(args: tuple) -> bool:
    """Within a level of forward-mode derivatives."""
    return any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args)


def _check_no_transform(name: str, args: tuple) -> None:
    """PyTorch would take the tangents of a result for zero, and of other transforms its
    error would ask for a method that only the library could write."""
    if torch.compiler.is_compiling():
        return
    if forward_ad._current_level >= 0 and have_tangents(args):
        raise NotImplementedError(
            f"{NAME}::{name} has no forward-mode derivative (jvp, jacfwd, hessian): take the gradient backwards, or "
            "use the plain layers of pixelcnn_fast.models.reference"
        )
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(transform.key() == torch._C._functorch.TransformType.Grad for transform in transforms):
        raise NotImplementedError(
            f"{NAME}::{name} does not work within torch.func.grad, vjp and jacrev: call it with "
            "torch.func.functional_call and take torch.autograd.grad, or use the plain layers of "
            "pixelcnn_fast.models.reference"
        )


def _autocast(overload: torch._ops.OpOverload, device: str, key: str, casts: list[int]) -> Callable:
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        lowered = list(args)
        for i in casts:
            x = args[i]  # by autocast's rule, all but float64
            if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64:
                lowered[i] = x.to(dtype)
        if len({lowered[i].dtype for i in casts if isinstance(lowered[i], Tensor)}) > 1:
            raise ValueError(
                f"{overload}: under autocast, float64 tensors stay as they are and the others become {dtype}: "
                "convert one"
            )
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return overload(*lowered)

    return cast


# -- tensors for the compiled module


@functools.cache
def _element(dtype: torch.dtype) -> int:
    return int(required().Element.__members__[str(dtype).removeprefix("torch.")])


POOLED = 2**21  # bytes from which a result's memory is kept for later ones


def pooled(empty: Tensor) -> Tensor:
    """A result that is still to be written, [...] without gaps -> in its place, if it is
    large, one in memory that earlier results have left: the system clears new memory, which
    takes as long as computing."""
    if empty.device.type != "cpu" or empty.nbytes < POOLED or native() is None:
        return empty
    storage = torch.frombuffer(required().Block(empty.nbytes), dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=empty.dtype).set_(storage, 0, empty.shape, empty.stride())


def raw(x: Tensor) -> RawTensor:
    """The tensor as the compiled module takes it."""
    return x.data_ptr(), _element(x.dtype), *x.shape, *x.stride()


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def computed(x: Tensor | None) -> Tensor | None:
    """The vector, made dense, in the dtype that sums are computed in: float64 for float64, else float32."""
    if x is None:
        return None
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


def memory_format(x: Tensor) -> torch.memory_format:
    """The memory format of a result that follows x [N, C, H, W], by PyTorch's own rule:
    channels-last if strides grow from channels to columns, rows and images. Where strides
    fit both formats, for example with one pixel, it is contiguous."""
    sizes, strides = x.shape, x.stride()
    least = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least or strides[1] == 0:
            return torch.contiguous_format
        if axis == 0 and least == strides[1]:
            return torch.contiguous_format
        least = strides[axis] * sizes[axis]
    return torch.channels_last
