"""Notices that a model's weights have changed since a sampler was built from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from weakref import ref

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.parts import are_equal, named_tensors, span, tensors

LOOKED_AT = 16  # elements of each tensor


class Changes:
    """Whether a model's parameters and buffers are what they were.

    Versions alone do not tell: fused optimizers, and writes through ``.data``, leave them as they were. So a few
    elements of each tensor are looked at, too; where only its memory or its version are others, all of them.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """weights: what they are now, by name, in tensors of their own."""
        self._weights = weights
        self._looks = looks = _Looks(tensors(model))
        self._model = ref(model, lambda _: looks.forget())

    @property
    def model(self) -> nn.Module | None:
        """The model, if it is still there."""
        return self._model()

    def __bool__(self) -> bool:
        """Whether there are any. A model that is gone does not change."""
        if (model := self._model()) is None:
            return False
        if self._looks.tell_no_change(tensors(model)):
            return False
        present, known = dict(named_tensors(model)), self._weights
        if present.keys() == known.keys() and all(are_equal(x, known[name]) for name, x in present.items()):
            self._looks.take(tensors(model))
            return False
        return True


class _Looks:
    """Where each of some tensors is, its version, and some of its elements.

    Samplers look before each call, so views of these elements are kept, but only as long as the model is there: they
    keep its memory.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        self.take(given)

    @torch.no_grad()
    def take(self, given: Sequence[Tensor]) -> None:
        views: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        for x in given:
            views[x.dtype, x.device].append(_some_of(x))
        self._views, self._marks = list(views.values()), [*map(_mark, given)]
        self._elements = _bits(self._views)

    def tell_no_change(self, given: Sequence[Tensor]) -> bool:
        if len(given) != len(self._marks):
            return False
        are_there = all(_mark(x) == mark for x, mark in zip(given, self._marks, strict=True))
        return are_there and torch.equal(_bits(self._views), self._elements)

    def forget(self) -> None:
        self._views = []


def _mark(x: Tensor) -> tuple[object, ...]:
    return x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype, x.shape, x.stride()


def _some_of(x: Tensor) -> Tensor:
    """A view of elements from all over a tensor. The step is odd, so that they are not all of one tap of a kernel."""
    x = x.data  # torch.utils.swap_tensors refuses a parameter that there are views of
    stride = 1
    if x.numel() and span(x) != x.numel():  # it has gaps: elements along its longest side
        longest = max(range(x.dim()), key=lambda d: x.shape[d])
        for d in reversed(range(x.dim())):
            x = x if d == longest else x.select(d, x.shape[d] // 2)
        stride = x.stride(0)
    step = x.numel() // LOOKED_AT | 1
    return x.as_strided((-(-x.numel() // step),), (step * stride,), x.storage_offset())


@torch.no_grad()
def _bits(views: Sequence[Sequence[Tensor]]) -> Tensor:
    """What views of several types hold, as bits, so that NaN equals itself."""
    alike = [torch.cat([*each]).to("cpu", torch.float64) for each in views]
    return torch.cat([torch.empty(0, dtype=torch.float64), *alike]).view(torch.int64)
