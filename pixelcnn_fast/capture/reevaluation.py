"""Recorded calls on weights, prepared to be made many times, each time with other weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.recorder import Leaf, Recording
from pixelcnn_fast.program.calls import Call, Memory, View, leaves, map_leaves, needed, size_at


@dataclass(frozen=True)
class Guard:
    """Something that must be as it was when it was recorded, or the program would be another.

    read: the view that it is in, or the call that reads it as a number; at: how many calls came before.
    """

    read: View | Call
    value: Any
    at: int

    @property
    def slots(self) -> set[int]:
        return {self.read.slot} if isinstance(self.read, View) else set(self.read.read)

    def holds(self, memory: Memory) -> bool:
        if isinstance(self.read, View):
            return torch.equal(memory.tensor(self.read), self.value)
        return bool(memory.result(self.read) == self.value)


class Reevaluation:
    """Computes the tensors that are in some views after the calls of a recording, from other weights.

    Where no call writes into what another one made, which is nearly always so, the calls that lead to one result
    follow each other. What nobody reads any more is let go. So most of it happens in the processor's caches.
    """

    def __init__(self, recording: Recording, wanted: Sequence[View], guards: Sequence[Guard]) -> None:
        self._leaves, self._wanted = recording.leaves, wanted
        kept = {view.slot for view in wanted}
        guards = _without_implied(guards, recording.calls)
        calls = needed(recording.calls, kept.union(*(guard.slots for guard in guards)))
        made_by: dict[int, list[Call]] = defaultdict(list)
        for call in calls:
            for slot in call.written:
                made_by[slot].append(call)
        self._written = set(made_by)
        at = {call: number for number, call in enumerate(recording.calls)}
        if all(len(makers) == 1 for makers in made_by.values()) and self._written.isdisjoint(self._leaves):
            calls = _depth_first([*kept, *self._written], made_by)
        order = {call: number for number, call in enumerate(calls)}

        last = {slot: order[call] for call in calls for slot in (*call.written, *call.read)}
        looked_at: dict[int, list[Guard]] = defaultdict(list)  # after which call; -1: before the first
        for guard in guards:
            before = [call for slot in guard.slots for call in made_by.get(slot, ()) if at[call] < guard.at]
            when = max((order[call] for call in before), default=-1)
            looked_at[when].append(guard)
            last |= {slot: max(when, last.get(slot, -1)) for slot in guard.slots}
        unread: dict[int, list[int]] = defaultdict(list)
        for slot in last.keys() - kept:
            unread[last[slot]].append(slot)
        made = {view.slot: view for call in reversed(calls) for view in call.outputs}
        self._at_first = looked_at[-1]
        self._steps = [
            (_prepared(call, made), looked_at.get(when, ()), unread.get(when, ()))
            for when, call in enumerate(calls)
        ]

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        """weights: by name -> the wanted tensors, or None if a guard does not hold. What does not depend on weights
        stays as it is."""
        memory = Memory(1, {slot: self._filled(slot, leaf, weights) for slot, leaf in self._leaves.items()})
        if not all(guard.holds(memory) for guard in self._at_first):
            return None
        for run, guards, unread in self._steps:
            run(memory)
            for guard in guards:
                if not guard.holds(memory):
                    return None
            for slot in unread:
                memory.forget(slot)
        return [memory.tensor(view) for view in self._wanted]

    def _filled(self, slot: int, leaf: Leaf, weights: Mapping[str, Tensor]) -> Tensor:
        """What a leaf holds with these weights, laid out as it is."""
        held = leaf.tensor
        if len(leaf.parameters) == 1 and slot not in self._written:  # the usual case needs no copy
            ((name, view),), weight = leaf.parameters, weights[leaf.parameters[0][0]]
            size, stride, offset = view.at(1)
            if (weight.dtype, weight.shape, weight.stride(), 0) == (held.dtype, size, stride, offset) and (
                weight.device == held.device and weight.numel() == held.numel()
            ):
                return weight.as_strided(held.shape, held.stride())
        if leaf.parameters or slot in self._written:
            held = held.clone()
        for name, view in leaf.parameters:
            held.as_strided(*view.at(1)).copy_(weights[name])
        return held


def _depth_first(slots: Sequence[int], made_by: Mapping[int, Sequence[Call]]) -> list[Call]:
    """The calls that make these slots, slot by slot, each after those that it needs."""
    found: dict[Call, None] = {}
    for slot in slots:
        wanted = [slot]
        while wanted:
            calls = made_by.get(wanted[-1], ())
            missing = [
                source
                for call in calls
                for source in call.read
                if any(maker not in found for maker in made_by.get(source, ()))
            ]
            if missing:
                wanted += missing
            else:
                found |= dict.fromkeys(calls)
                wanted.pop()
    return list(found)


def _without_implied(guards: Sequence[Guard], calls: Sequence[Call]) -> list[Guard]:
    """The guards without those on whether some elements of a result are zero, if there is one on all of them."""
    compared_by = {
        view.slot: call.args[0]
        for call in calls
        if call.name == "aten::ne.Scalar" and call.args[1:] == (0,)
        for view in call.outputs
    }
    writers: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        for slot in call.written:
            writers[slot].append(call)
    on_all: dict[int, View] = {}
    views = [compared_by.get(guard.read.slot) if isinstance(guard.read, View) else None for guard in guards]
    for view in views:
        if view is not None and len(writers[view.slot]) == 1:
            (made,) = writers[view.slot][0].outputs
            if made.is_contiguous and view.is_contiguous and made.at(1)[2] == view.at(1)[2] == 0:
                if math.prod(view.at(1)[0]) == math.prod(made.at(1)[0]):
                    on_all.setdefault(view.slot, view)
    return [
        g for g, view in zip(guards, views, strict=True) if view is None or on_all.get(view.slot, view) is view
    ]


def _prepared(call: Call, made: Mapping[int, View]) -> Callable[[Memory], None]:
    """What makes a call. made: by slot, the view that the call which made it gave."""
    operator, fill_args, fill_kwargs = call.operator, _filling(call.args, made), _filling(call.kwargs, made)
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
    """What puts tensors in the places of the views in a call's arguments."""
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
