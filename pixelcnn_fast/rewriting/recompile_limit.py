"""Warns when PyTorch stops compiling a model, or misses what changes in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from types import CellType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from pixelcnn_fast.rewriting.report import Report
from pixelcnn_fast.telling import tell

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
UNHEARD = (
    "parts of the model have got hooks since its first call, and PyTorch does not call these: set "
    "torch._dynamo.config.skip_nnmodule_hook_guards = False before the first call, or undo() and accelerate it again"
)

SHARED = (
    "tensors of the model have begun to share memory since its first call, which what Inductor has compiled does not "
    "see when one of them is written into: undo() and accelerate it again"
)


def warns_at_recompile_limit(
    compiled: Callable[..., Any],
    report: Report,
    target: Callable[..., Any],
    modules_of: Callable[[nn.Module], Iterable[nn.Module]],
    is_by_inductor: bool = False,
) -> Callable[..., Any]:
    """A function that calls the compiled one, and warns once if PyTorch stops compiling it,
    if parts of a model get hooks after the first call, and, with Inductor, if tensors begin
    to share memory.

    target: what was compiled. modules_of: all modules of a model, registered or not.
    """
    # Hooks and shared tensors of each model, at its last call.
    before = WeakKeyDictionary[nn.Module, tuple[int, int]]()
    # Parts of each model, at its first call.
    unregistered = WeakKeyDictionary[nn.Module, WeakSet[nn.Module]]()

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # within what somebody else compiles
            return compiled(*args, **kwargs)
        for model in _models(target, args, kwargs):
            if model not in unregistered:
                unregistered[model] = WeakSet({*modules_of(model)}.difference(model.modules()))
            parts = [*model.modules(), *unregistered[model]]
            now = _hooks(parts[model is target :]), _sharing_memory(parts) if is_by_inductor else 0
            hooks, shared = before.get(model, now)
            before[model] = now
            if now[0] > hooks and torch._dynamo.config.skip_nnmodule_hook_guards:
                _tell(report, UNHEARD)
            if now[1] > shared:
                _tell(report, SHARED)
        known = _compilations()
        try:
            return compiled(*args, **kwargs)
        finally:
            for function in _over_the_limit(known, _compilations()):
                _tell(
                    report,
                    f"PyTorch has stopped compiling {function}, which it has compiled too often: what is new from now "
                    "on runs as plain. Raise torch._dynamo.config.recompile_limit, or give it fewer different inputs",
                )

    return call


def _models(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[nn.Module]:
    """For a function, those that it was given, that it holds, and that are global."""
    if isinstance(target, nn.Module):
        yield target
        return
    function = inspect.unwrap(getattr(target, "__func__", target))
    names = getattr(getattr(function, "__code__", None), "co_names", ())
    known = getattr(function, "__globals__", {})
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if cell != CellType()]
    owner = getattr(target, "__self__", None)
    for each in (*args, *kwargs.values(), *held, *(known.get(name) for name in names), owner):
        if isinstance(each, nn.Module):
            yield each


def _hooks(parts: Sequence[nn.Module]) -> int:
    return sum(len(getattr(part, kind)) for part in parts for kind in HOOKS)


def _sharing_memory(parts: Sequence[nn.Module]) -> int:
    tensors = (x for part in parts for held in (part._parameters, part._buffers) for x in held.values())
    with suppress(RuntimeError, NotImplementedError):  # within torch.func, and of sparse ones
        found = [x.untyped_storage()._cdata for x in tensors if x is not None]
        return len(found) - len({*found})
    return 0


def _compilations() -> list[Any]:
    from torch._dynamo.utils import get_compilation_metrics

    return list(get_compilation_metrics())


def _over_the_limit(known: list[Any], now: list[Any]) -> Iterator[str]:
    last = known[-1] if known else None
    for failed in [*takewhile(lambda each: each is not last, now[::-1])][::-1]:
        if "limit" in str(failed.fail_reason):
            frame = str(failed.compile_id).partition("/")[0]
            alike = [each for each in now if each.co_name and str(each.compile_id).partition("/")[0] == frame]
            places = [f"'{each.co_name}' ({each.co_filename}:{each.co_firstlineno})" for each in alike]
            yield places[-1] if places else "a function"


def _tell(report: Report, text: str) -> None:
    if text not in report.warnings:
        report.warnings.append(text)
        tell(text)
