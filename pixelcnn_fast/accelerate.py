"""Makes a model that you already have faster, in place, and can undo it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from functools import partial
from types import NoneType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import DiagonalLSTM, MaskedConv2d, ResidualBlock, RowLSTM
from pixelcnn_fast.rewriting.backend import Backend, Mode, shared
from pixelcnn_fast.rewriting.recompile_limit import warns_at_recompile_limit
from pixelcnn_fast.rewriting.report import Report
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.contents import SWAPPED_FROM, Contents


class Accelerated:
    """What ``accelerated`` returns. After a call, ``print`` it to see what was rewritten, or left and why."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Makes the model, or the function, what it was; parameters stay as they are now."""
        while self._undo:
            self._undo.pop()()

    def __str__(self) -> str:
        return str(self.report)


_handles: WeakKeyDictionary[Any, Accelerated] = WeakKeyDictionary()
Target = TypeVar("Target", bound=Callable[..., Any])


def accelerated(target: nn.Module | Callable[..., Any]) -> Accelerated:
    """The handle of what ``accelerate`` has returned, with its ``report`` and ``undo()``.

    Raises ValueError for anything else, such as a copy, which is a plain one.
    """
    found = _handles.get(target) if callable(target) else None
    if found is None:
        raise ValueError(f"{_name(target)} is not accelerated: pass what accelerate() has returned")
    return found


def accelerate(target: Target, mode: Mode = "eager", live_gradients: bool = False) -> Target:
    """Lets a model compute its masked convolutions, gates and losses by this library's
    operators, in training and inference -> the model itself; for a function that calls
    models, such as a training step, one in its place.

        model = accelerate(model)
        ...
        print(accelerated(model))  # what was rewritten, and what was left and why, once it was called
        accelerated(model).undo()

    The model is compiled in place: the operators are put into the graph that PyTorch
    captures of its ``forward``. Results are the plain model's up to rounding, whatever else
    it does and however it changes later: parameters, state_dict keys, type and hooks stay,
    and masks may change. NaN or infinity that only masked weights meet may stay without
    effect. Hooks put on parts of a model after its first call need
    ``torch._dynamo.config.skip_nnmodule_hook_guards = False``, as with ``torch.compile``; a
    warning says so. Copies and pickles of the model are plain ones. Where ``torch.compile``
    knows no ``isolate_recompiles``, models of a class share what PyTorch compiles for one
    function at most, and handles with equal settings share a report.
    mode: 'eager' needs no compiler; 'inductor' also compiles the rest of the graph, as ``torch.compile`` does.
    live_gradients: weights that the model masks in place (``weight.data *= mask``) get
    gradients of zero where they are masked, which is faster. By default they get what plain
    PyTorch gives them.
    Raises TypeError unless it is a module or a function, ValueError for an unknown mode and if it is compiled already.
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
    known = _handles.get(target)
    if known is not None and known._undo:
        raise ValueError(f"{_name(target)} is accelerated already: accelerated(it).undo() comes first")
    if isinstance(target, nn.Module) and target._compiled_call_impl is not None:
        raise ValueError(f"{_name(target)} is compiled already: build it without compile()")
    # Where PyTorch counts compilations for each backend, a model gets one for itself.
    backend = Backend(mode, live_gradients) if _isolated() else shared(mode, live_gradients)
    if (reason := _why_not_compiled()) is not None:
        return _swapped_by_type(target, reason)
    handle = Accelerated(backend.report)
    inner = target._call_impl if isinstance(target, nn.Module) else target
    compiled: Any = torch.compile(inner, backend=backend, **_isolated())
    warning = warns_at_recompile_limit(
        compiled, backend.report, target, lambda model: Contents(model).modules.values(), mode == "inductor"
    )
    if not isinstance(target, nn.Module):
        return _function(target, warning, handle)
    target._compiled_call_impl = _NotCopied(warning)
    handle._undo.append(partial(_uncompile, ref(target), ref(target._compiled_call_impl)))
    _handles[target] = handle
    return target


class _NotCopied(partial[Any]):
    """It is None in copies and pickles of the module that holds it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return NoneType, ()


def _uncompile(module: Callable[[], nn.Module | None], compiled: Callable[[], object]) -> None:
    found = module()
    if found is not None and found._compiled_call_impl is compiled():
        del found._compiled_call_impl


def _function(target: Target, fast: Callable[..., Any], handle: Accelerated) -> Target:
    serving = [fast]

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        return serving[0](*args, **kwargs)

    handle._undo.append(lambda: serving.__setitem__(0, target))
    _handles[call] = handle
    return cast(Target, call)


def _name(target: object) -> str:
    return getattr(target, "__name__", type(target).__name__)


@functools.cache
def _isolated() -> dict[str, Any]:
    """Without this, models of a class share the compilations that PyTorch allows a function."""
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


def _swapped_by_type(target: Target, reason: str) -> Target:
    handle = Accelerated(Report())
    text = f"PyTorch can't compile here ({reason}), so only this library's plain layers are swapped for its fast ones"
    handle.report.warnings.append(text)
    tell(text)
    if not isinstance(target, nn.Module):
        return _function(target, target, handle)
    for path, module in target.named_modules():
        original = type(module)
        if (fast := SWAPS.get(original)) is not None:
            module.__class__ = _subclass(fast, original)
            handle._undo.append(partial(_swap_back, ref(module), original))
            handle.report.rewritten[f"{original.__name__} → {fast.__name__}", path] += 1
    _handles[target] = handle
    return target


def _swap_back(module: Callable[[], nn.Module | None], original: type[nn.Module]) -> None:
    if (found := module()) is not None:
        found.__class__ = original


def _subclass(fast: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    def reduced(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        """Makes copies, and what comes out of a pickle, plain."""
        _, _, *state = cast(Any, object.__reduce_ex__(self, protocol))
        return object.__new__, (original,), *state

    methods = {name: getattr(fast, name) for name in ("forward", "recur") if hasattr(fast, name)}
    own = {"__reduce_ex__": reduced, "__module__": original.__module__, SWAPPED_FROM: original}
    return type(original.__name__, (original,), methods | own)
