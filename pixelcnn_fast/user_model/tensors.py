"""Compares tensors by what is in memory, and copies modules with other tensors in place of their own."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Container, Mapping
from contextlib import nullcontext
from typing import Any
from weakref import ProxyTypes

import torch
from torch import Tensor, nn

from pixelcnn_fast.user_model.contents import Contents, NotPartOfModel
from pixelcnn_fast.user_model.random_state import random_state_kept


def overlapping(tensors: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The pairs of tensors, by name, that lie in the same memory."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, x in tensors.items():
        if x.numel() and x.device.type != "meta":
            by_storage[x.untyped_storage().data_ptr()].append((name, x))
    found = []
    for held in by_storage.values():
        end, before = 0, ""
        spans = ((int(x.storage_offset()), span(x), name) for name, x in held) if len(held) > 1 else ()
        for start, length, name in sorted(spans):
            if start < end:
                found.append((before, name))
            end, before = max(end, start + length), name
    return sorted(found)


def span(x: Tensor) -> int:
    """How many elements of its storage a tensor spans."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def is_in_memory(x: Tensor) -> bool:
    """Whether a tensor's storage still holds it: libraries that shard models free it."""
    if not x.numel() or x.device.type == "meta":
        return not x.numel()
    return x.untyped_storage().nbytes() >= (x.storage_offset() + span(x)) * x.itemsize


def are_equal(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have the same dtype, device, shape and bits."""
    if (x.dtype, x.device, x.shape) != (y.dtype, y.device, y.shape) or not is_in_memory(x):
        return False
    return torch.equal(_bits(x), _bits(y))


def are_as_good_as_equal(x: Tensor, y: Tensor) -> bool:
    """``are_equal``, but for the rounding of weights that were merged and taken apart again."""
    if not x.is_floating_point() or (x.dtype, x.device, x.shape) != (y.dtype, y.device, y.shape):
        return are_equal(x, y)
    if not x.numel() or not is_in_memory(x):
        return is_in_memory(x)
    least = 2 * torch.finfo(x.dtype).eps * float(y.abs().max())
    return bool(((x - y).abs() <= least).all()) or are_equal(x, y)


def _bits(x: Tensor) -> Tensor:
    """The content as integers, of eight bytes if possible, which are compared in half the time."""
    x = x.detach().resolve_conj().contiguous().flatten()
    if x.storage_offset():
        x = x.clone()
    return x.view(torch.int64 if x.nbytes % 8 == 0 else torch.uint8)


def unreached(result: Tensor, tensors: Mapping[str, Tensor]) -> list[str]:
    """The paths of trainable tensors that gradients of a result do not reach."""
    nodes, reached = [result.grad_fn], dict[object, object]()
    while nodes:
        if (node := nodes.pop()) is not None and node not in reached:
            reached[node] = getattr(node, "variable", None)
            nodes += [before for before, _ in node.next_functions]
    variables = {id(x) for x in reached.values()}
    return [path for path, x in tensors.items() if x.requires_grad and x.is_leaf and id(x) not in variables]


def with_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with other tensors, by path, in place of its own."""
    held = Contents(module)
    return duplicate(module, in_place_of(held.tensors, tensors), held)


def duplicate(
    module: nn.Module, memo: dict[int, Any] | None = None, held: Contents | None = None
) -> nn.Module:
    """A deep copy of a module. An attribute that leads to what can't be copied, such as a
    lock, but not to tensors, is shared. memo: as for ``copy.deepcopy``, with the copy's
    tensors; held: what the module holds."""
    held, memo = held or Contents(module), {} if memo is None else memo
    replaced = {path: memo[id(x)] for path, x in held.tensors.items() if id(x) in memo}
    for x, _ in held.others:
        if type(x) in ProxyTypes:  # which may be dead, and can't be asked for anything then
            memo[id(x)] = x
        elif isinstance(x, NotPartOfModel):
            memo[id(x)] = NotPartOfModel()
    before = dict(memo)
    try:
        may_draw = any(map(_copies_itself, held.modules.values()))  # weights, for modules that it makes
        with random_state_kept(held.device) if may_draw else nullcontext():
            copied = copy.deepcopy(module, memo)
    except Exception:
        owners = [owner for x, owner in held.others if type(x) not in ProxyTypes and _has_no_copies(x)]
        if not owners or not held.leading.isdisjoint(map(id, owners)) or hasattr(type(module), "__del__"):
            raise
        memo.clear()
        memo |= before | {id(owner): owner for owner in owners}
        copied = copy.deepcopy(module, memo)
    if replaced:
        _put_into(copied, replaced, known={id(x) for x in (*replaced.values(), *held.tensors.values())})
    return copied


def _put_into(copied: nn.Module, tensors: Mapping[str, Tensor], known: Container[int]) -> None:
    """Puts tensors, by path, in place of those that are not ``known``, by id: modules that
    copy themselves may not heed a memo. TorchScript's modules, and unregistered tensors,
    get the numbers only."""
    held = Contents(copied)
    own_tensors = [(path, x) for path, x in held.tensors.items() if path in tensors and id(x) not in known]
    others = {id(x): tensors[path] for path, x in own_tensors}
    for module in held.modules.values() if others else ():
        registered: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in () if isinstance(module, torch.jit.ScriptModule) else registered:
            own.update({name: others[id(x)] for name, x in own.items() if id(x) in others})
    for path, x in held.tensors.items():
        if id(x) in others:
            x.data = tensors[path].detach().to(x)


def _copies_itself(module: nn.Module) -> bool:
    """Whether the user's code decides how the module is copied."""
    methods = (
        getattr(type(module), name, None)
        for name in ("__deepcopy__", "__reduce__", "__reduce_ex__", "__setstate__")
    )
    owners = (getattr(method, "__module__", None) for method in methods)
    return any(owner is not None and owner.partition(".")[0] != "torch" for owner in owners)


def _has_no_copies(x: object) -> bool:
    try:
        return not hasattr(x, "__deepcopy__") and not x.__reduce_ex__(4)
    except Exception:
        return True


def in_place_of(own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[int, Any]:
    """A memo by which ``copy.deepcopy`` puts other tensors, by path, in place of a module's own."""
    memo: dict[int, Any] = {}
    for path, x in own.items():
        if (other := others.get(path)) is not None:
            is_leaf = isinstance(x, nn.Parameter) and not other.requires_grad
            memo[id(x)] = nn.Parameter(other, requires_grad=x.requires_grad) if is_leaf else other
    return memo
