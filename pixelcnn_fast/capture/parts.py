"""A module's parts: its tensors by path, what else tells it from others, and a copy that has other tensors."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.private_copy import unwrapped
from pixelcnn_fast.program.calls import leaves

STANDARD = frozenset(vars(nn.Module()))  # the attributes that every module has


def parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The module and those in it, by paths that do not tell of wrappers; what is there twice has both."""
    module = unwrapped(module)
    yield path, module
    for name, child in module._modules.items():
        if child is not None:
            yield from parts(child, f"{path}.{name}" if path else name)


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, by path; what is tied has each of its names."""
    for path, each in parts(module):
        for held in (each._parameters, each._buffers):
            for name, x in held.items():
                if x is not None:
                    yield f"{path}.{name}" if path else name, x


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Those of ``named_tensors``, in another order, in less time."""
    found: list[Tensor | None] = []
    rest: list[nn.Module | None] = [module]
    while rest:
        if (each := rest.pop()) is not None:
            each = unwrapped(each)
            found += each._parameters.values()
            found += each._buffers.values()
            rest += each._modules.values()
    return [x for x in found if x is not None]


def attributes(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that are plain attributes, by path, also those in lists and dictionaries."""
    registered, found = {id(x) for _, x in named_tensors(module)}, {}
    for path, each in parts(module):
        for name, value in vars(each).items():
            if name not in STANDARD and isinstance(value, (Tensor, list, tuple, dict)):
                for number, x in enumerate(leaves(value)):
                    if isinstance(x, Tensor) and id(x) not in registered:
                        found[f"{path}:{name}:{number}"] = x
    return found


def settings(module: nn.Module) -> list[tuple[str, str, object]]:
    """Numbers, texts and functions that are plain attributes, or in lists, by path and name: two models of one class
    may differ in them, such as convolutions in their dilation."""
    kinds = (int, float, str, FunctionType, BuiltinFunctionType, type, NoneType)
    return [
        (path, name, value)
        for path, each in parts(module)
        for name, value in vars(each).items()
        if name not in STANDARD and all(isinstance(x, kinds) for x in leaves(value))
    ]


def structure(module: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[object, ...]:
    """What must be the same for a module to take another's weights: the types of its parts, and which of its tensors,
    by name, lie in the same memory."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, x in tensors.items():
        if x.numel() and x.device.type != "meta":
            by_storage[x.untyped_storage().data_ptr()].append((name, x))
    overlapping = []
    for held in by_storage.values():
        end, before = 0, ""
        spans = ((int(x.storage_offset()), span(x), name) for name, x in held) if len(held) > 1 else ()
        for start, length, name in sorted(spans):
            if start < end:
                overlapping.append((before, name))
            end, before = max(end, start + length), name
    return tuple((path, type(each)) for path, each in parts(module)), tuple(sorted(overlapping))


def span(x: Tensor) -> int:
    """How many elements of its storage a tensor spans."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def is_in_memory(x: Tensor) -> bool:
    """Whether a tensor's storage holds it; what shards models frees the memory of tensors that stay."""
    return not x.numel() or x.untyped_storage().nbytes() >= (x.storage_offset() + span(x)) * x.itemsize


def are_equal(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are the same: their dtype, device and shape, and bit by bit their numbers."""
    if (x.dtype, x.device, x.shape) != (y.dtype, y.device, y.shape) or not is_in_memory(x):
        return False
    return torch.equal(_bits(x), _bits(y))


def _bits(x: Tensor) -> Tensor:
    """What a tensor holds, as words if that goes, which takes half the time that numbers do."""
    x = x.detach().resolve_conj().contiguous().flatten()
    if x.storage_offset():
        x = x.clone()
    return x.view(torch.int64 if x.nbytes % 8 == 0 else torch.uint8)


def with_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy with other tensors, by name, in the place of its parameters, buffers and attributes.

    A tensor that is computed from others stays one, so that gradients go through it.
    """
    memo: dict[int, Any] = {}
    for name, x in (*named_tensors(module), *attributes(module).items()):
        if (other := tensors.get(name)) is not None:
            is_leaf = isinstance(x, nn.Parameter) and not other.requires_grad
            memo[id(x)] = nn.Parameter(other, requires_grad=x.requires_grad) if is_leaf else other
    return copy.deepcopy(module, memo)
