"""Prepares recorded calls to be made many times, in an order that suits the processor's caches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Leaf
from pixelcnn_fast.capture.record.weight_recorder import Guard
from pixelcnn_fast.program.calls import Call, Memory, View, leaves, map_leaves, needed, size_at

# The same from Python in half the time, which matters for thousands of small calls.
FASTER: Mapping[str, Callable[..., Tensor]] = {
    "aten::_to_copy": lambda x, **settings: x.to(copy=True, **settings),
    "aten::clone": torch.clone,
    "aten::mul.Tensor": torch.mul,
    "aten::add.Tensor": torch.add,
    "aten::clamp": torch.clamp,
}


@dataclass
class Plan:
    """Calls, slot by slot, so that what one makes is soon read and let go, while it is in
    the processor's caches; in their own order if some call writes into another's result.
    leaves: by slot, what no call creates; wanted: what is to be computed."""

    leaves: Mapping[int, Leaf]
    calls: Sequence[Call]
    wanted: Sequence[View]
    guards: Sequence[Guard]

    @cached_property
    def _steps_and_results(self) -> tuple[list[_Step], list[Callable[[Memory], Tensor]]]:
        wanted, guards = self.wanted, self.guards
        slots = [*(slot for guard in guards for slot in guard.slots), *(view.slot for view in wanted)]
        calls = needed(self.calls, slots)
        if are_pure(calls, self.leaves):
            calls = _depth_first(slots, {slot: call for slot, (call,) in _writers(calls).items()})
        order = {call: number for number, call in enumerate(calls, 1)}
        steps = [_Step() for _ in range(len(calls) + 1)]  # in the first, no call is made
        used: dict[int, list[int]] = defaultdict(list)  # by slot, in which steps
        for call, when in order.items():
            for slot in (*call.read, *call.written):
                used[slot].append(when)
        at, writers = {call: number for number, call in enumerate(self.calls)}, _writers(calls)
        for guard in guards:
            before = [c for slot in guard.slots for c in writers.get(slot, ()) if at[c] < guard.at]
            when = max((order[call] for call in before), default=0)
            steps[when].guards.append(guard)
            for slot in guard.slots:
                used[slot].append(when)
        for view in wanted:
            used[view.slot].append(len(calls))
        for slot, times in used.items():
            if slot in self.leaves:
                steps[min(times)].loaded.append(slot)
        for slot in used.keys() - {view.slot for view in wanted}:
            steps[max(used[slot])].unread.append(slot)
        views = {
            slot: replace(leaf.parameters[0][1], slot=slot)
            for slot, leaf in self.leaves.items()
            if len(leaf.parameters) == 1
        }
        views |= {view.slot: view for call in reversed(calls) for view in call.outputs}
        for call, when in order.items():
            steps[when].run = _prepared(call, views)
        return steps, [_filling(view, views) for view in wanted]

    @cached_property
    def read(self) -> set[int]:
        """The slots of the leaves that the calls read."""
        return {slot for step in self._steps_and_results[0] for slot in step.loaded}

    def __call__(self, leaf: Callable[[int], Tensor | None]) -> list[Tensor] | None:
        """The wanted tensors; None if a leaf does not fit, a guard does not hold, or a call fails."""
        memory, (steps, results) = Memory(1, {}), self._steps_and_results
        for step in steps:
            for slot in step.loaded:
                if (x := leaf(slot)) is None:
                    return None
                memory[slot] = x
            try:
                step.run(memory)
            except (RuntimeError, AssertionError):
                return None
            if not all(guard.holds(memory) for guard in step.guards):
                return None
            memory.forget(step.unread)
        return [result(memory) for result in results]


@dataclass(slots=True)
class _Step:
    """A call, with leaves that are loaded before it, guards that follow, and the slots that are then unread."""

    loaded: list[int] = field(default_factory=list)
    run: Callable[[Memory], None] = lambda memory: None
    guards: list[Guard] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)


def are_pure(calls: Sequence[Call], leaves: Mapping[int, Leaf]) -> bool:
    """Whether no call writes into a leaf, or into another's result."""
    writers = _writers(calls)
    return all(len(each) == 1 for each in writers.values()) and leaves.keys().isdisjoint(writers)


def _writers(calls: Sequence[Call]) -> Mapping[int, list[Call]]:
    """By slot, the calls that create it or write into it."""
    found: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        for slot in call.written:
            found[slot].append(call)
    return found


def _depth_first(slots: Sequence[int], made: Mapping[int, Call]) -> list[Call]:
    """The calls that some slots need. made: by slot, the call that makes it."""
    found: dict[Call, None] = {}
    for slot in slots:
        wanted = [slot]
        while wanted:
            call = made.get(wanted[-1])
            missing = [] if call is None else [s for s in call.read if s in made and made[s] not in found]
            wanted += missing
            if not missing:
                wanted.pop()
                if call is not None:
                    found[call] = None
    return list(found)


def _prepared(call: Call, made: Mapping[int, View]) -> Callable[[Memory], None]:
    """A function that makes a call. made: by slot, the view that its maker has given."""
    fill_args, fill_kwargs = _filling(call.args, made), _filling(call.kwargs, made)
    is_usual = call.kwargs.keys().isdisjoint(("layout", "pin_memory"))
    operator = FASTER.get(call.name, call.operator) if is_usual else call.operator
    view = call.results[0] if len(call.results) == 1 else None
    if view is None or view.slot in call.read:
        return lambda memory: memory.keep(call, operator(*fill_args(memory), **fill_kwargs(memory)))
    slot, dtype, layout = view.slot, view.dtype, view.at(1)

    def run(memory: Memory) -> None:
        result = operator(*fill_args(memory), **fill_kwargs(memory))
        if result.dtype is dtype and (result.shape, result.stride(), result.storage_offset()) == layout:
            memory[slot] = result
        else:
            memory.keep(call, result)

    return run


def _filling(x: Any, made: Mapping[int, View]) -> Callable[[Memory], Any]:
    """A function that puts tensors in the places of views among a call's arguments."""
    if not x:
        return lambda memory: x
    if isinstance(x, View):
        slot, dtype, layout = x.slot, x.dtype, x.at(1)
        if made.get(slot) == x:
            return lambda memory: memory[slot]

        def taken(memory: Memory) -> Tensor:
            base = memory[slot]
            return base.as_strided(*layout) if base.dtype is dtype else memory.tensor(x)

        return taken
    if not any(isinstance(each, View) for each in leaves(x)):
        constant = map_leaves(lambda each: size_at(each, 1), x)
        return lambda memory: constant
    if isinstance(x, dict):
        named = {name: _filling(each, made) for name, each in x.items()}
        return lambda memory: {name: fill(memory) for name, fill in named.items()}
    parts = [_filling(each, made) for each in x]
    return lambda memory: [fill(memory) for fill in parts]
