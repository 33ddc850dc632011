"""Records the calls that make a program's weights out of the model's parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Leaf, Recorder, Recording
from pixelcnn_fast.program.calls import Call, Memory, View, flat, leaves, needed, read_by
from pixelcnn_fast.program.zeros import asking

WEIGHTS = "weights"


@dataclass(frozen=True, eq=False)
class Guard:
    """What weights have decided after ``at`` calls; if others decide otherwise, another
    program is needed. read: the view, or the call that read it as a number; is_for_more:
    whether only truth values that become true count."""

    read: View | Call
    value: Any
    at: int
    is_for_more: bool = False

    @property
    def views(self) -> Sequence[View]:
        return [self.read] if isinstance(self.read, View) else self.read.inputs

    @property
    def slots(self) -> set[int]:
        return {view.slot for view in self.views}

    def holds(self, memory: Memory) -> bool:
        """Whether it is decided alike. memory: what the calls before have made."""
        if isinstance(self.read, View):
            found = memory.tensor(self.read)
            return torch.equal(found & self.value if self.is_for_more else self.value, found)
        return bool(memory.result(self.read) == self.value)


class WeightRecorder(Recorder):
    """Records what capture and passes compute from weights. What depends on their values,
    such as which taps are zero, becomes a guard."""

    def __init__(self, model: Recording | None = None) -> None:
        """model: a recorded forward, whose parameters and buffers are registered."""
        super().__init__(1)
        self._guards: list[Guard] = []
        self._read: list[Guard] = []  # of numbers that the model's own code has read
        self._makes_no_guards = False
        self.written: dict[str, Tensor] = {}  # weights, by name, as the model has left them
        for leaf in () if model is None else model.leaves.values():
            if leaf.parameters:
                self.leaf(leaf)

    def __enter__(self) -> Any:
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._no_grad.__exit__(*error)

    def leaf(self, leaf: Leaf) -> None:
        view = self.input(flat(leaf.tensor.detach()), WEIGHTS)
        self.recording.leaves[view.slot].parameters = leaf.parameters

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not any(isinstance(x, Tensor) and self.depends_on(x) for x in leaves((args, kwargs))):
            return func(*args, **(kwargs or {}))
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for x in () if self._makes_no_guards else leaves(out):
            if isinstance(x, Tensor) and not x.is_floating_point() and self.depends_on(x):
                view = self.view(x)
                self._guards.append(Guard(view, x.clone(), len(self.recording.calls), asking.is_for_more))
                self._depends[view.slot] = frozenset()
        return out

    def made_of(self, tensor: Tensor) -> set[str]:
        """The parameters and buffers, by name, that a tensor was computed from."""
        if not self.depends_on(tensor):
            return set()
        slot = self.view(tensor).slot
        slots = {slot} | read_by(needed(self.recording.calls, [slot]))
        leaves = (self.recording.leaves[slot] for slot in slots & self.recording.leaves.keys())
        return {name for leaf in leaves for name, _ in leaf.parameters}

    @contextmanager
    def without_guards(self) -> Iterator[None]:
        """A context within which decisions on weights make no guards."""
        self._makes_no_guards = True
        try:
            yield
        finally:
            self._makes_no_guards = False

    def guard(self, tensor: Tensor) -> None:
        """Lets weights be evaluated again only if this tensor, which Python has read, is the same."""
        if self.depends_on(tensor):
            with self.without_guards():
                kept = tensor.clone()
            self._read.append(Guard(self.view(kept), kept, len(self.recording.calls)))

    def guards(self, does_the_same: bool = False) -> list[Guard]:
        """What other weights must decide as these did. does_the_same: whatever numbers the model reads."""
        numbers = [Guard(e.call, e.value, e.at) for e in self.recording.escapes if e.call is not None]
        return [*self._guards, *numbers, *(() if does_the_same else self._read)]
