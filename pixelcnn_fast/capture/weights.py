"""Weights as functions of the model's parameters and buffers, which can be evaluated again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.recorder import Leaf, Recorder
from pixelcnn_fast.program.calls import Memory, View, flat, leaves, needed

WEIGHTS = "weights"


class WeightRecorder(Recorder):
    """Within it, calls on weights are recorded: capture's own, and those of the passes.

    What is decided by weights, such as which taps are dropped because they are zero, is a guard: weights may be
    evaluated again only as long as all guards hold.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._guards: list[tuple[View, Tensor]] = []

    def __enter__(self) -> Any:
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._no_grad.__exit__(*error)

    def leaf(self, leaf: Leaf) -> None:
        """Registers a storage that holds parameters or buffers."""
        view = self.input(flat(leaf.tensor.detach()), WEIGHTS)
        self.recording.leaves[view.slot].parameters = leaf.parameters

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self._reads_weights(args) and not (kwargs and self._reads_weights(kwargs.values())):
            return func(*args, **(kwargs or {}))
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for x in leaves(out):
            if isinstance(x, Tensor) and not x.is_floating_point() and self.depends_on(x):
                view = self.view(x)
                self._guards.append((view, x.clone()))
                self._depends[view.slot] = frozenset()
        return out

    def _reads_weights(self, args: Iterable[Any]) -> bool:
        for x in args:
            if isinstance(x, Tensor):
                if self.depends_on(x):
                    return True
            elif isinstance(x, (list, tuple)) and self._reads_weights(x):
                return True
        return False

    def guard(self, tensor: Tensor) -> None:
        """Lets weights be evaluated again only as long as this tensor is the same, since Python has read it."""
        if self.depends_on(tensor):
            kept = tensor.clone()
            self._guards.append((self.view(kept), kept))

    @torch.no_grad()
    def again(self, tensors: Sequence[Tensor], weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        """The tensors, evaluated from other weights; None if a guard does not hold.

        weights: by name, in the dtype of capture; a tensor that does not depend on weights stays as it is.
        """
        views = [self.view(x) for x in tensors]
        recording = self.recording
        memory = Memory(1, {slot: _filled(leaf, weights) for slot, leaf in recording.leaves.items()})
        escapes = [escape.call for escape in recording.escapes if escape.call is not None]
        read = [view for call in escapes for view in call.inputs] + [view for view, _ in self._guards]
        for call in needed(recording.calls, {view.slot for view in (*views, *read)}):
            memory.run(call)
        for escape in recording.escapes:
            if escape.call is not None and memory.result(escape.call) != escape.value:
                return None
        if not all(torch.equal(memory.tensor(view), value) for view, value in self._guards):
            return None
        return [memory.tensor(view) for view in views]


def _filled(leaf: Leaf, weights: Mapping[str, Tensor]) -> Tensor:
    """What a leaf holds with other weights, laid out as it is."""
    if not leaf.parameters:
        return leaf.tensor
    filled = leaf.tensor.clone()
    for name, view in leaf.parameters:
        filled.as_strided(*view.at(1)).copy_(weights[name])
    return filled
