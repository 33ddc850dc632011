"""Runs a model in float64 although its code names other dtypes, so that rounding hides no mistake."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pixelcnn_fast.program.calls import leaves, map_leaves

CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as)


def computing(dtype: torch.dtype, own: torch.dtype) -> AbstractContextManager:
    """The context in which a model is run in ``dtype``, which is its own or float64."""
    return nullcontext() if dtype == own else InFloat64(own)


class InFloat64(TorchFunctionMode):
    """Makes calls compute in float64 that would compute in ``dtype``, the model's
    own, or in a wider one: those that name such a dtype (``x.float()``,
    ``torch.zeros(..., dtype=torch.float32)``), and those that get PyTorch's
    default (``torch.ones(3)``, ``images / 255`` of integers). A narrower dtype
    rounds, so it is left."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._replaced = no_narrower_than(dtype)

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is not Tensor.view:  # which reads the same bits as another dtype
            args = tuple(map(self._argument, args))
            kwargs = {name: self._argument(x) for name, x in (kwargs or {}).items()}
        output = func(*args, **(kwargs or {}))
        if not isinstance(output, Tensor) or output.dtype not in self._replaced:
            return output
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func in CASTS:
            return args[0].to(output.device, torch.float64)
        if any(x.is_floating_point() for x in tensors):
            return output
        if not tensors:
            return output.double()
        return func(*map_leaves(_as_float64, args), **map_leaves(_as_float64, kwargs or {}))

    def _argument(self, x: Any) -> Any:
        return torch.float64 if type(x) is torch.dtype and x in self._replaced else x


def no_narrower_than(dtype: torch.dtype) -> set[torch.dtype]:
    """The dtypes below float64 that hold every number of a dtype."""
    own, all_three = torch.finfo(dtype), (torch.bfloat16, torch.float16, torch.float32)
    return {
        each for each in all_three if torch.finfo(each).eps <= own.eps and torch.finfo(each).max >= own.max
    }


def _as_float64(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) else x
