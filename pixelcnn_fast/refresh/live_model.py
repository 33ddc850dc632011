"""Notices that a model has changed since a sampler was built from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from weakref import ref

import torch
from torch import Tensor, nn

from pixelcnn_fast.refresh.snapshot import Snapshot
from pixelcnn_fast.user_model.contents import Contents, are_same
from pixelcnn_fast.user_model.private_copy import changes_with_its_mode
from pixelcnn_fast.user_model.tensors import is_in_memory, span

LOOKED_AT = 1024  # elements of each tensor


class LiveModel:
    """The user's own model, held weakly, and what it was like when a sampler was built from it.

    Versions alone do not tell: fused optimizers, and writes through ``.data``, leave them.
    So a few elements of each tensor are looked at, too. If any of this is not what it was,
    everything is compared with the snapshot.
    """

    def __init__(self, model: nn.Module, snapshot: Snapshot) -> None:
        now, self._snapshot = Contents(model), snapshot
        becoming = now.tensors if changes_with_its_mode(now) else ()  # what eval mode makes its weights of
        self._paths = {*snapshot.weights, *becoming}
        self._looks = looks = [_Look(now, self._of(now))]  # one while it is of use, as it keeps memory
        self._model = ref(model, lambda _: looks.clear())

    @property
    def model(self) -> nn.Module | None:
        """None if it is gone."""
        return self._model()

    def has_changed(self) -> bool:
        """Whether the model is not what it was. One that is gone does not change."""
        if (model := self._model()) is None:
            return False
        now = Contents(model)
        if any(look.tells_no_change(now, self._of(now)) for look in self._looks):
            return False
        look = _Look(now, self._of(now))  # before all is compared: another thread may write
        if self._snapshot.is_still(model):
            self._looks[:] = [look]
            return False
        self._looks.clear()
        return True

    def _of(self, held: Contents) -> list[Tensor]:
        """The tensors that matter, and those that a forward has made and kept."""
        known = self._snapshot.model.paths  # of the tensors of which it is known whether they matter
        found = [x for path, x in held.tensors.items() if path in self._paths or path not in known]
        return found + self._snapshot.behaviour.outside


class _Look:
    """A model as it was looked at: each tensor's place, version and some
    elements, and what else there is. Views of these keep memory that the model
    gives up until the next look."""

    @torch.no_grad()
    def __init__(self, held: Contents, tensors: Sequence[Tensor]) -> None:
        self._settings = held.settings
        views: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
        self._marks = []
        for x in tensors:
            self._marks.append(_mark(x))
            if x.numel() and is_in_memory(x):
                views[x.dtype, x.device] += _some_of(x)
        self._views = list(views.values())
        self._elements = _bits(self._views)

    def tells_no_change(self, now: Contents, present: Sequence[Tensor]) -> bool:
        if len(present) != len(self._marks) or not are_same(now.settings, self._settings):
            return False
        are_there = all(_mark(x) == mark for x, mark in zip(present, self._marks, strict=True))
        return are_there and torch.equal(_bits(self._views), self._elements)


def _mark(x: Tensor) -> tuple[object, ...]:
    return x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype, x.shape, x.stride()


def _some_of(x: Tensor) -> list[Tensor]:
    """Views of some elements, in odd steps, lest they all belong to one tap of a kernel."""
    x = x.data  # torch.utils.swap_tensors refuses a parameter that there are views of
    if x.is_complex():
        x = torch.view_as_real(x.conj() if x.is_conj() else x)
    step = x.numel() // LOOKED_AT | 1
    chosen, first = torch.arange(0, x.numel(), step), int(x.storage_offset())
    if span(x) == x.numel():
        return [x.as_strided((len(chosen),), (step,), first)]
    at = torch.stack(torch.unravel_index(chosen, x.shape), 1) @ torch.tensor(x.stride())  # it has gaps
    return [x.as_strided((1,), (1,), first + place) for place in at.tolist()]


@torch.no_grad()
def _bits(views: Sequence[Sequence[Tensor]]) -> Tensor:
    """The contents of views as bits, so that NaN equals itself. Each list holds views of one type."""
    alike = [torch.cat([*each]).cpu() for each in views]
    words = [x.double().view(torch.int64) if x.is_floating_point() else x.long() for x in alike]
    return torch.cat([torch.empty(0, dtype=torch.int64), *words])
