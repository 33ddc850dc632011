"""Makes recorded calls again on other examples, as the model does or with features in float64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Recording
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import (
    Call,
    Memory,
    View,
    flat,
    for_images,
    leaves,
    map_leaves,
    needed,
    unread,
)
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH, Conditioning
from pixelcnn_fast.user_model.float64 import no_narrower_than


class NotInFloat64(Unsupported):
    """The recorded calls can't be made in float64."""


class Replay:
    """Makes the calls of a recording again. as_is: the calls whose results capture takes as recorded."""

    def __init__(self, recording: Recording, as_is: Set[Call], dtype: torch.dtype) -> None:
        """dtype: the model's own."""
        self._recording, self._as_is, self._result = recording, as_is, recording.outputs[0]
        self._calls = needed(recording.calls, [self._result.slot])
        self._unread = unread(self._calls, [self._result.slot])
        self._exactly = [call for call in self._calls if call not in as_is]
        self._constants, self._recorded = self._of_batches()
        self._replaced = no_narrower_than(dtype)

    @torch.no_grad()
    def __call__(self, images: Tensor, given: Conditioning) -> Tensor:
        """images: [n, C, H, W] as the model takes them -> what the model returns."""
        memory = self._memory(images, given)
        for call, gone in zip(self._calls, self._unread, strict=True):
            memory.run(call)
            memory.forget(gone)
        return memory.tensor(self._result)

    @torch.no_grad()
    def in_float64(self, images: Tensor, given: Conditioning) -> Tensor:
        """Makes the calls, those that capture computes in float64 in that dtype. Raises
        NotInFloat64 if one fails there, or if bits of a tensor are read or written as another
        dtype."""
        as_is, n = [call for call in self._calls if call in self._as_is], len(images)
        self._check_one_dtype(self._exactly)
        read_by_these = set(needed(self._calls, {slot for call in as_is for slot in call.written}))
        own = self._memory(images, given, calls=read_by_these)
        exact = self._memory(images, given, in_float64=True, calls=self._exactly)
        recorded = self._recording.memory(EXAMPLE_BATCH, calls=self._recorded)
        wanted = set[int]().union(*(call.read for call in self._exactly)) | {self._result.slot}
        for call, gone in zip(self._calls, self._unread, strict=True):
            if call in read_by_these:
                own.run(call)
            if call in self._recorded:
                recorded.run(call)
            if call in self._as_is:
                for view in (*call.outputs, *call.inputs):
                    if view.slot in call.written & wanted:
                        x = own.tensor(view)
                        if call in self._constants:
                            found = for_images(recorded.tensor(view), view, EXAMPLE_BATCH, n)
                            x = found[1](found[0]) if found else x
                        self._write(exact, self._exact(view), x)
            else:
                self._run(exact, call)
            for memory in (own, exact, recorded):
                memory.forget(gone)
        return exact.tensor(self._exact(self._result))

    def _of_batches(self) -> tuple[set[Call], set[Call]]:
        """-> (the calls without the image, of as many constants as there are images; and those that they need)"""
        varying, following = self._recording.inputs(), set[int]()
        found, constant = set[Call](), set[Call]()
        for call in self._calls:
            if not varying.isdisjoint(call.read | call.written):
                varying |= call.written
                continue
            constant.add(call)
            views = (*call.inputs, *call.outputs)
            if call.follows_batch or any(v.follows_batch or v.slot in following for v in views):
                following |= call.written
                if call in self._as_is:
                    found.add(call)
        return found, constant.intersection(
            needed(self._calls, {slot for call in found for slot in call.written})
        )

    def _memory(
        self,
        images: Tensor,
        given: Conditioning,
        in_float64: bool = False,
        calls: Collection[Call] | None = None,
    ) -> Memory:
        memory = self._recording.memory(
            len(images), lambda x: flat(x).to(self._exact(x.dtype)) if in_float64 else x, calls
        )
        for view, x in zip(
            (self._recording.images, *self._recording.given), (images, *given.tensors), strict=True
        ):
            if view is not None and x is not None:
                seen = self._exact(view) if in_float64 else view
                memory.put(seen, x.to(view.dtype).to(seen.dtype, copy=True))
        return memory

    def _exact(self, x: Any) -> Any:
        if isinstance(x, View):
            return replace(x, dtype=self._exact(x.dtype))
        return torch.float64 if isinstance(x, torch.dtype) and x in self._replaced else x

    def _run(self, memory: Memory, call: Call) -> None:
        args, kwargs, results = map_leaves(self._exact, (call.args, call.kwargs, call.results))
        try:
            memory.run(replace(call, args=args, kwargs=kwargs, results=results))
        except Exception as error:
            raise NotInFloat64(f"{call.where}: {call.name} can't be run in float64: {error}") from error

    def _write(self, memory: Memory, view: View, x: Tensor) -> None:
        if view.slot not in memory:
            memory.put(view, x.to(view.dtype, copy=True))
        elif memory[view.slot].dtype == view.dtype:
            memory.tensor(view).copy_(x)
        else:
            raise NotInFloat64(f"bits are written as {view.dtype}")

    def _check_one_dtype(self, calls: Sequence[Call]) -> None:
        dtypes = defaultdict(set)
        for call in calls:
            for view in leaves((call.args, call.kwargs, call.results)):
                if isinstance(view, View):
                    dtypes[view.slot].add(view.dtype)
                    if len(dtypes[view.slot]) > 1:
                        raise NotInFloat64(f"{call.where}: {call.name}: it reads bits as {view.dtype}")
