"""A recorded forward, run again in float64: for models that run in no dtype but their own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.float64 import no_narrower_than
from pixelcnn_fast.capture.recorder import Leaf, Recording
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, View, flat, leaves, map_leaves, needed
from pixelcnn_fast.program.conditions import Given


class NotInFloat64(Unsupported):
    """What was recorded can't be run in float64."""


def recording_in_float64(recording: Recording, own: torch.dtype) -> Recording:
    """The same calls in float64, where they were in ``own``, the model's dtype, or in a wider one.

    Raises NotInFloat64 if they read the bits of a tensor as another dtype.
    """
    replaced = no_narrower_than(own)

    def exact(x: Any) -> Any:
        if isinstance(x, View):
            return replace(x, dtype=exact(x.dtype))
        return torch.float64 if isinstance(x, torch.dtype) and x in replaced else x

    def call(c: Call) -> Call:
        args, kwargs, results = map_leaves(exact, (c.args, c.kwargs, c.results))
        return replace(c, args=args, kwargs=kwargs, results=results)

    def leaf(x: Leaf) -> Leaf:
        return Leaf(flat(x.tensor).to(exact(x.tensor.dtype)), map_leaves(exact, x.parameters))

    _check_one_dtype(recording)
    return replace(
        recording,
        calls=[call(c) for c in recording.calls],
        escapes=[e if e.call is None else replace(e, call=call(e.call)) for e in recording.escapes],
        leaves={slot: leaf(x) for slot, x in recording.leaves.items()},
        whole={slot: exact(view) for slot, view in recording.whole.items()},
        **{name: map_leaves(exact, getattr(recording, name)) for name in ("images", "given", "outputs")},
    )


def _check_one_dtype(recording: Recording) -> None:
    dtypes = defaultdict(set)
    for call in recording.calls:
        for view in leaves((call.args, call.kwargs, call.results)):
            if isinstance(view, View):
                dtypes[view.slot].add(view.dtype)
                if len(dtypes[view.slot]) > 1:
                    raise NotInFloat64(f"{call.where}: {call.name}: it reads bits as {view.dtype}")


class Replay:
    """Computes what a model was recorded to compute."""

    def __init__(self, recording: Recording) -> None:
        self._recording, self._result = recording, recording.outputs[0]
        self._calls = needed(recording.calls, [self._result.slot])

    @torch.no_grad()
    def __call__(self, images: Tensor, given: Given) -> Tensor:
        """images: [n, C, H, W] as the model takes them -> what the model returns.

        Raises NotInFloat64 for a call that PyTorch can't run in float64.
        """
        recording = self._recording
        memory = recording.memory(len(images))
        for view, x in zip((recording.images, *recording.given), (images, *given), strict=True):
            if view is not None and x is not None:
                memory.put(view, x.to(view.dtype, copy=True))
        for call in self._calls:
            try:
                memory.run(call)
            except Exception as error:
                raise NotInFloat64(f"{call.where}: {call.name} can't be run in float64: {error}") from error
        return memory.tensor(self._result)
