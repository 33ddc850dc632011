"""Says it when PyTorch's compiler leaves out what a model has become: PyTorch itself only logs it, or does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
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


def tell_of_recompile_limit(
    compiled: Callable[..., Any],
    report: Report,
    target: Callable[..., Any],
    modules_of: Callable[[nn.Module], Iterable[nn.Module]],
    is_by_inductor: bool = False,
) -> Callable[..., Any]:
    """The compiled function; if PyTorch gives up on it, or on a function that it calls, the report says so. target:
    what was compiled: if parts of a model get hooks after the first call, or tensors of it begin to share memory, that
    is said once. modules_of: a model's modules, registered or not."""
    before = WeakKeyDictionary[nn.Module, tuple[int, int]]()  # of each model, at the last call: ``_seen_of``
    unregistered = WeakKeyDictionary[nn.Module, WeakSet[nn.Module]]()  # its parts at the first call

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # within what somebody else compiles
            return compiled(*args, **kwargs)
        for model in _models(target, args, kwargs):
            if model not in unregistered:
                unregistered[model] = WeakSet({*modules_of(model)}.difference(model.modules()))
            parts = [*model.modules(), *unregistered[model]]
            now = _seen_of(parts, model is target, is_by_inductor)
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
            for function in _given_up(known, _compilations()):
                _tell(
                    report,
                    f"PyTorch has stopped compiling {function}, which it has compiled too often: what is new from now "
                    "on runs as plain. Raise torch._dynamo.config.recompile_limit, or give it fewer different inputs",
                )

    return call


def _models(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[nn.Module]:
    """The model that is called; for a function, those that it was given, that it holds, and that are global."""
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


def _seen_of(parts: Sequence[nn.Module], is_target: bool, is_by_inductor: bool) -> tuple[int, int]:
    """How many hooks the parts of a model have, the first of which is the model, and does not count if it is what
    PyTorch compiles; and for Inductor, how many of their tensors share memory with others."""
    hooks = sum(len(getattr(part, kind)) for part in parts[is_target:] for kind in HOOKS)
    tensors = (x for part in parts for held in (part._parameters, part._buffers) for x in held.values())
    places = []
    if is_by_inductor:
        with suppress(RuntimeError, NotImplementedError):  # of tensors within torch.func, and sparse ones
            places = [x.untyped_storage()._cdata for x in tensors if x is not None]
    return hooks, len(places) - len({*places})


def _compilations() -> list[Any]:
    """The last ones, as PyTorch keeps account of them, failed ones among them."""
    from torch._dynamo.utils import get_compilation_metrics

    return list(get_compilation_metrics())


def _given_up(known: list[Any], now: list[Any]) -> Iterator[str]:
    """The functions, by name, whose compilation has failed since, as there were too many."""
    if known and now and known[-1] is now[-1]:
        return
    last = next((at for at, each in enumerate(now) if known and each is known[-1]), -1)
    for failed in now[last + 1 :]:
        if "limit" in str(failed.fail_reason):
            frame = str(failed.compile_id).partition("/")[0]
            alike = [each for each in now if each.co_name and str(each.compile_id).partition("/")[0] == frame]
            yield (
                "a function"
                if not alike
                else (f"'{alike[-1].co_name}' ({alike[-1].co_filename}:{alike[-1].co_firstlineno})")
            )


def _tell(report: Report, text: str) -> None:
    if text not in report.warnings:
        report.warnings.append(text)
        tell(text)
