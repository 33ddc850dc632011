"""Makes a model that you already have faster, in place, and can undo it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import DiagonalLSTM, MaskedConv2d, ResidualBlock, RowLSTM
from pixelcnn_fast.nn.recurrence import Recurrence
from pixelcnn_fast.rewriting.backend import Backend, Mode, shared
from pixelcnn_fast.rewriting.giving_up import tells_of_giving_up
from pixelcnn_fast.rewriting.report import Report
from pixelcnn_fast.telling import tell


class Accelerated:
    """What ``accelerate`` returns. Called, it calls the model or the function, as fast as it has become.

    ``print`` it, after the first calls, to see what was rewritten, and what was left and why.
    """

    def __init__(self, target: Callable[..., Any], report: Report) -> None:
        self.report = report
        self._target, self._fast = target, target
        self._swapped: list[tuple[nn.Module, type]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fast(*args, **kwargs)

    def undo(self) -> None:
        """Makes the model, or the function that this handle calls, what it was; parameters stay as they are now.
        A second call does nothing."""
        self._fast = self._target
        compiled = getattr(self._target, "_compiled_call_impl", None)
        if getattr(compiled, "handle", None) is self:
            del self._target._compiled_call_impl
        for module, original in self._swapped:
            module.__class__ = original
        self._swapped.clear()

    def __str__(self) -> str:
        return str(self.report)


def accelerate(
    target: nn.Module | Callable[..., Any], mode: Mode = "eager", live_gradients: bool = False
) -> Accelerated:
    """Lets a model compute its masked convolutions, gates and losses by this library's operators, in training and in
    inference.

        handle = accelerate(model)  # or step = accelerate(step), a function that calls models, such as a training step
        ...
        print(handle)  # what was rewritten, and what was left and why; it fills when the model is first called
        handle.undo()

    The model is compiled in place: PyTorch captures what its ``forward`` computes, and the operators are put into that
    graph. So results are the plain model's up to rounding, whatever else it does and however it changes later:
    parameters, state_dict keys, type and hooks stay, and masks may change. NaN or infinity that only masked weights
    meet may stay without effect. Hooks put on parts of a model after its first call need
    ``torch._dynamo.config.skip_nnmodule_hook_guards = False``, as with ``torch.compile``. Copies and pickles of the
    model are plain ones. Where ``torch.compile`` knows no ``isolate_recompiles``, models of a class share what PyTorch
    compiles for one function at most, and handles with the same settings share a report.
    mode: 'eager' needs no compiler; 'inductor' also compiles the rest of the graph, as ``torch.compile`` does.
    live_gradients: weights that the model masks in place (``weight.data *= mask``) get gradients of zero where they are
    masked, which is faster. By default they get what plain PyTorch gives them.
    Raises TypeError if the target is neither module nor function, ValueError for an unknown mode and for one that is
    compiled already.
    """
    if not callable(target) or isinstance(target, type):
        found = f"the class {target.__name__}" if isinstance(target, type) else type(target).__name__
        raise TypeError(f"target is {found}, expected a module or a function")
    modules = target._modules if isinstance(target, nn.Module) else {}
    if "_orig_mod" in modules or hasattr(target, "_torchdynamo_orig_callable"):
        raise ValueError(
            f"{type(target).__name__} is what torch.compile has returned: pass what it was given instead, and "
            "mode='inductor' for the same compiler"
        )
    if isinstance(target, nn.Module) and target._compiled_call_impl is not None:
        raise ValueError(
            f"{type(target).__name__} is compiled already: undo() the handle that accelerate has returned for it, or "
            "build it without compile()"
        )
    backend = _backend(mode, live_gradients)
    if (reason := _why_not_compiled()) is not None:
        return _swapped_by_type(target, reason)
    handle = Accelerated(target, backend.report)
    inner = target._call_impl if isinstance(target, nn.Module) else target
    compiled: Any = tells_of_giving_up(torch.compile(inner, backend=backend, **_isolated()), backend.report)
    if isinstance(target, nn.Module):
        compiled.handle = handle
        target._compiled_call_impl = compiled
    else:
        handle._fast = compiled
    return handle


def _backend(mode: Mode, live_gradients: bool) -> Backend:
    """A backend of its own, where PyTorch counts compilations for each; else one for all that are alike."""
    return Backend(mode, live_gradients) if _isolated() else shared(mode, live_gradients)


@functools.cache
def _isolated() -> dict[str, Any]:
    """Without it, all models of a class share the eight compilations that PyTorch allows a function."""
    known = inspect.signature(torch.compile).parameters
    return {"isolate_recompiles": True} if "isolate_recompiles" in known else {}


def _why_not_compiled() -> str | None:
    try:
        from torch._dynamo import config
        from torch._dynamo.eval_frame import check_if_dynamo_supported

        if config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
            return "TORCHDYNAMO_DISABLE=1 or TORCH_COMPILE_DISABLE=1 forbids it"
        check_if_dynamo_supported()
    except (RuntimeError, ImportError) as error:
        return str(error)
    return None


SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    reference.MaskedConv2d: MaskedConv2d,
    reference.VerticalConv2d: MaskedConv2d,
    reference.HorizontalConv2d: MaskedConv2d,
    reference.ResidualBlock: ResidualBlock,
    reference.RowLSTM: RowLSTM,
    reference.DiagonalLSTM: DiagonalLSTM,
}


def _swapped_by_type(target: nn.Module | Callable[..., Any], reason: str) -> Accelerated:
    """What is left to do where PyTorch can't capture graphs: this library's plain layers become its fast ones."""
    handle = Accelerated(target, Report())
    text = f"PyTorch can't compile here ({reason}), so only this library's plain layers are swapped for its fast ones"
    handle.report.warnings.append(text)
    tell(text)
    for path, module in target.named_modules() if isinstance(target, nn.Module) else ():
        if (fast := SWAPS.get(type(module))) is not None:
            handle._swapped.append((module, type(module)))
            module.__class__ = _subclass(fast, type(module))
            handle.report.rewritten[f"{handle._swapped[-1][1].__name__} → {fast.__name__}", path] += 1
    return handle


def _subclass(fast: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """A subclass of ``original`` with the forward of ``fast``: its instances are still instances of ``original``."""
    attributes = {"forward": fast.forward, "__module__": original.__module__, "mask_name": "mask"}
    if issubclass(fast, Recurrence):
        attributes["recur"] = fast.recur
    return type(original.__name__, (original,), attributes)
