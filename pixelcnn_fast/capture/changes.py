"""Notices that a model's weights have changed since a sampler was built from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from weakref import ref

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.parts import are_equal, named_tensors

LOOKED_AT = 16  # elements of each tensor


class Changes:
    """Whether a model's parameters and buffers are what they were.

    Versions alone do not tell: fused optimizers, and writes through ``.data``, leave them as they were. So a few
    elements of each tensor are looked at, too; where only its memory or its version are others, all of them.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """weights: what they are now, by name, in tensors of their own."""
        self._model, self._weights = ref(model), weights
        self._marks, self._elements = _looked_at(model)

    @property
    def model(self) -> nn.Module | None:
        """The model, if it is still there."""
        return self._model()

    def __bool__(self) -> bool:
        """Whether there are any. A model that is gone does not change."""
        if (model := self._model()) is None:
            return False
        marks, elements = _looked_at(model)
        if marks == self._marks and torch.equal(elements, self._elements):
            return False
        present = dict(named_tensors(model))
        known = self._weights
        if present.keys() == known.keys() and all(are_equal(x, known[name]) for name, x in present.items()):
            self._marks, self._elements = marks, elements
            return False
        return True


@torch.no_grad()
def _looked_at(model: nn.Module) -> tuple[list[tuple[int, int]], Tensor]:
    """Where each tensor is and its version; and some of their elements, as bits, so that NaN equals itself."""
    marks: list[tuple[int, int]] = []
    elements: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for _, x in named_tensors(model):
        marks.append((x.data_ptr(), 0 if x.is_inference() else x._version))
        elements[x.dtype, x.device].append(_some_of(x))
    alike = [torch.cat(each).to("cpu", torch.float64) for each in elements.values()]
    return marks, torch.cat([torch.empty(0, dtype=torch.float64), *alike]).view(torch.int64)


def _some_of(x: Tensor) -> Tensor:
    """Elements from all over a tensor. The step is odd, so that they are not all of one tap of a kernel."""
    step = x.numel() // LOOKED_AT | 1
    count = -(-x.numel() // step)
    if x.is_contiguous():
        return x.as_strided((count,), (step,), x.storage_offset())
    return x.reshape(-1)[::step]
