"""Says it when PyTorch's compiler leaves out what a model has become: PyTorch itself only logs it, or does not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CellType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pixelcnn_fast.rewriting.report import Report
from pixelcnn_fast.telling import tell

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
UNHEARD = (
    "parts of the model have got hooks since its first call, and PyTorch does not call these: set "
    "torch._dynamo.config.skip_nnmodule_hook_guards = False before the first call, or undo() and accelerate it again"
)


def tells_of_giving_up(
    compiled: Callable[..., Any], report: Report, target: Callable[..., Any]
) -> Callable[..., Any]:
    """The compiled function; if PyTorch gives up on it, or on a function that it calls, the report says so. target:
    what was compiled: if parts of a model get hooks after the first call, that is said once."""
    hooks = WeakKeyDictionary[
        nn.Module, list[int]
    ]()  # how many the parts of each model had, at the last two calls

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # within what somebody else compiles
            return compiled(*args, **kwargs)
        for model in _models(target, args, kwargs):
            before_and_now = hooks[model] = [
                *hooks.get(model, [])[-1:],
                _hooks_in(model, of_parts=model is target),
            ]
            if before_and_now[-1] > before_and_now[0] and torch._dynamo.config.skip_nnmodule_hook_guards:
                _tell(report, UNHEARD)
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


def _hooks_in(model: nn.Module, of_parts: bool) -> int:
    """of_parts: of those alone, since PyTorch does call those of the model that it compiles."""
    return sum(len(getattr(part, kind)) for part in [*model.modules()][of_parts:] for kind in HOOKS)


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
