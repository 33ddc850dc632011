"""Says it when PyTorch's compiler leaves out what a model has become: PyTorch itself only logs it, or does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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
    compiled: Callable[..., Any], report: Report, module: nn.Module | None = None
) -> Callable[..., Any]:
    """The compiled function; if PyTorch gives up on it, or on a function that it calls, the report says so. module:
    what it calls, if that is one: if parts of it get hooks after the first call, that is said once."""
    hooks: list[int] = []  # how many parts had, at the last two calls

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # within what somebody else compiles
            return compiled(*args, **kwargs)
        if module is not None:
            hooks[:] = [*hooks[-1:], _hooks_of_parts(module)]
            if hooks[-1] > hooks[0] and torch._dynamo.config.skip_nnmodule_hook_guards:
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


def _hooks_of_parts(module: nn.Module) -> int:
    return sum(len(getattr(part, kind)) for part in module.modules() if part is not module for kind in HOOKS)


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
