"""Recorded calls on weights, prepared to be made many times, each time with other weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.merging import Merged
from pixelcnn_fast.capture.recorder import Leaf, Recording
from pixelcnn_fast.program.calls import (
    Call,
    Memory,
    View,
    flat,
    leaves,
    map_leaves,
    needed,
    plain_name,
    size_at,
)

# The same as calls from Python that take half the time, which matters for thousands of small ones.
FASTER: Mapping[str, Callable[..., Tensor]] = {
    "aten::_to_copy": lambda x, **settings: x.to(copy=True, **settings),
    "aten::clone": torch.clone,
    "aten::mul.Tensor": torch.mul,
    "aten::add.Tensor": torch.add,
    "aten::clamp": torch.clamp,
}


@dataclass(frozen=True, eq=False)
class Guard:
    """Something that must be as it was when it was recorded, or the program would be another.

    read: the view that it is in, or the call that reads it as a number; at: how many calls came before.
    """

    read: View | Call
    value: Any
    at: int

    @property
    def views(self) -> Sequence[View]:
        return [self.read] if isinstance(self.read, View) else self.read.inputs

    @property
    def slots(self) -> set[int]:
        return {view.slot for view in self.views}

    def moved(self, merged: Merged) -> Guard:
        """The same where it is after calls were merged."""
        read = merged.view(self.read) if isinstance(self.read, View) else merged.call(self.read)
        return replace(self, read=read)

    def holds(self, memory: Memory) -> bool:
        if isinstance(self.read, View):
            return torch.equal(memory.tensor(self.read), self.value)
        return bool(memory.result(self.read) == self.value)


class Reevaluation:
    """Computes the tensors that are in some views after the calls of a recording, from other weights.

    Most guards say of some products of weights which are zero. That follows from the weights that are zero, so as long
    as these are the same, such guards need not be looked at.
    """

    def __init__(self, recording: Recording, wanted: Sequence[View], guards: Sequence[Guard]) -> None:
        self._leaves, self._guards = recording.leaves, guards
        self._all = _Plan(recording, wanted, guards)
        self._plan_of = partial(_Plan, recording, wanted)
        self._shorter: tuple[_Plan, _Zeros] | None = None
        if self._all.is_pure:
            self._shorten({slot: _seen(leaf, leaf.tensor) for slot, leaf in self._leaves.items()})

    @torch.no_grad()
    def __call__(self, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        """weights: by name -> the wanted tensors, or None if a guard does not hold. What does not depend on weights
        stays as it is."""
        try:
            leaves = {slot: self._filled(leaf, weights) for slot, leaf in self._leaves.items()}
        except RuntimeError:
            return None
        if self._shorter is not None:
            plan, zeros = self._shorter
            if zeros.are_in(leaves):
                return plan(leaves)
        found = self._all(leaves)
        if found is not None and self._shorter is not None:
            self._shorten(leaves)  # other weights are zero now, and the guards hold
        return found

    def _shorten(self, leaves: Mapping[int, Tensor]) -> None:
        implied = _implied_by_zeros(self._all.calls, self._leaves, leaves, self._guards)
        behind = needed(self._all.calls, {slot for guard in implied for slot in guard.slots})
        read = {
            slot for call in behind for slot in call.read if slot in leaves and self._leaves[slot].parameters
        }
        rest = [guard for guard in self._guards if guard not in implied]
        self._shorter = self._plan_of(rest), _Zeros({slot: leaves[slot] for slot in read})

    def _filled(self, leaf: Leaf, weights: Mapping[str, Tensor]) -> Tensor:
        """A tensor on what a leaf holds with these weights; it is one parameter, if there is only one.

        Raises RuntimeError if they do not fit into it, as where one number was expanded.
        """
        held = leaf.tensor
        if len(leaf.parameters) == 1 and self._all.is_pure:  # the usual case needs no copy
            ((name, view),) = leaf.parameters
            weight, layout = weights[name], (*view.at(1), held.numel(), held.dtype, held.device)
            own = weight.shape, weight.stride(), weight.storage_offset(), weight.numel()
            if (*own, weight.dtype, weight.device) == layout and layout[2] == 0:
                return weight
        if leaf.parameters or not self._all.is_pure:
            held = flat(held).clone()
        for name, view in leaf.parameters:
            held.as_strided(*view.at(1)).copy_(weights[name])
        return _seen(leaf, held)


def _seen(leaf: Leaf, held: Tensor) -> Tensor:
    """The storage of a leaf as its parameter, if it has only one."""
    return held.as_strided(*leaf.parameters[0][1].at(1)) if len(leaf.parameters) == 1 else held


class _Plan:
    """The calls in an order in which what one makes is soon read, and then let go, so that most of it happens in the
    processor's caches: slot by slot, and merged, unless some call writes into what another one made.

    is_pure: whether none does.
    """

    def __init__(self, recording: Recording, wanted: Sequence[View], guards: Sequence[Guard]) -> None:
        self._recording, self._wanted, self._guards = recording, wanted, guards
        looked_into = {slot for guard in guards for slot in guard.slots}
        self.calls = needed(recording.calls, {view.slot for view in wanted} | looked_into)
        writers = _writers(self.calls)
        once = all(len(each) == 1 for each in writers.values())
        self.is_pure = once and recording.leaves.keys().isdisjoint(writers)

    @cached_property
    def _prepared(self) -> tuple[list[_Step], Sequence[Callable[[Memory], Tensor]]]:
        """The steps, and what gives the wanted tensors. Before the first call, there are guards alone."""
        calls, wanted, guards = self.calls, self._wanted, self._guards
        if self.is_pure:
            merged = Merged(calls, [*wanted, *(view for guard in guards for view in guard.views)])
            wanted, guards = [merged.view(view) for view in wanted], [guard.moved(merged) for guard in guards]
            made = {slot: call for slot, (call,) in _writers(merged.calls).items()}
            calls = _depth_first([view.slot for view in (*wanted, *(v for g in guards for v in g.views))], made)
        at = {call: number for number, call in enumerate(self._recording.calls)}
        order = {call: number for number, call in enumerate(calls)}
        last = {slot: order[call] for call in calls for slot in (*call.written, *call.read)}
        looked_at: dict[int, list[Guard]] = defaultdict(list)  # after which call; -1: before the first
        writers = _writers(calls)
        for guard in guards:
            # A merged call was not recorded, but nothing writes into what it made.
            before = [c for slot in guard.slots for c in writers.get(slot, ()) if at.get(c, -1) < guard.at]
            when = max((order[call] for call in before), default=-1)
            looked_at[when].append(guard)
            last |= {slot: max(when, last.get(slot, -1)) for slot in guard.slots}
        unread: dict[int, list[int]] = defaultdict(list)
        for slot in last.keys() - {view.slot for view in wanted}:
            unread[last[slot]].append(slot)
        views = {
            slot: replace(leaf.parameters[0][1], slot=slot)
            for slot, leaf in self._recording.leaves.items()
            if len(leaf.parameters) == 1
        }
        views |= {view.slot: view for call in reversed(calls) for view in call.outputs}
        steps = [
            _Step(_prepared(call, views) if call else None, looked_at.get(when, ()), unread.get(when, ()))
            for when, call in enumerate([None, *calls], -1)
        ]
        return steps, [_filling(view, views) for view in wanted]

    def __call__(self, leaves: Mapping[int, Tensor]) -> list[Tensor] | None:
        """leaves: by slot -> the wanted tensors, or None if a guard does not hold."""
        memory, (steps, results) = Memory(1, leaves), self._prepared
        for run, guards, unread in steps:
            if run is not None:
                run(memory)
            for guard in guards:
                if not guard.holds(memory):
                    return None
            for slot in unread:
                memory.forget(slot)
        return [_alone(result(memory)) for result in results]


def _alone(x: Tensor) -> Tensor:
    """A tensor that has its storage for itself: a pickle would hold what is shared twice."""
    return x if x.nbytes == x.untyped_storage().nbytes() else x.clone()


class _Step(NamedTuple):
    """What makes a call, the guards that are looked at then, and the slots that nobody reads any more."""

    run: Callable[[Memory], None] | None
    guards: Sequence[Guard]
    unread: Sequence[int]


def _writers(calls: Sequence[Call]) -> Mapping[int, list[Call]]:
    """By slot, the calls that create it or write into it."""
    found: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        for slot in call.written:
            found[slot].append(call)
    return found


class _Zeros:
    """Where weights are zero."""

    def __init__(self, weights: Mapping[int, Tensor]) -> None:
        """weights: by slot."""
        self._weights = {slot: (x, x == 0) for slot, x in weights.items()}
        self._has_none = {slot for slot, (_, zeros) in self._weights.items() if not bool(zeros.any())}

    def are_in(self, weights: Mapping[int, Tensor]) -> bool:
        """Whether these weights are zero in the same places; integers must be the same."""
        for slot, (before, zeros) in self._weights.items():
            x = weights[slot]
            if x.data_ptr() == before.data_ptr():
                continue
            if not x.is_floating_point() or slot not in self._has_none:
                if not torch.equal(x, before) and not (x.is_floating_point() and torch.equal(x == 0, zeros)):
                    return False
            elif x.numel() and not bool(x.abs().amin() > 0):  # a tenth of the time that counting them takes
                return False
        return True


# Calls whose result is zero where, and only where, one of the elements is zero of which it is made.
KEEP_ZEROS = frozenset(("mul", "neg", "clone", "_to_copy", "cat", "stack", "index_select"))
NEVER_ZERO = frozenset(("rsqrt", "exp"))


def _implied_by_zeros(
    calls: Sequence[Call], leaves: Mapping[int, Leaf], weights: Mapping[int, Tensor], guards: Sequence[Guard]
) -> set[Guard]:
    """The guards on which numbers are zero that hold as long as these weights, by slot, are zero in the same places.

    They look at products, and at what is moved. That is tried with ones in the place of all that is not zero, since
    what is zero by underflow does not stay so.
    """
    made = {slot: call for call in calls for slot in call.written}
    comparisons = {
        view.slot: call
        for call in calls
        if call.name in ("aten::ne.Scalar", "aten::eq.Scalar") and call.args[1:] == (0,)
        for view in call.outputs
    }
    found, memory = set[Guard](), Memory(1, {})
    device = next(iter(weights.values())).device

    def is_product(slot: int) -> bool:
        """Whether that is what made a slot, which then holds ones and zeros."""
        wanted = [slot]
        while wanted:
            call = made.get(wanted[-1])
            if wanted[-1] in memory:
                pass
            elif call is None:
                x = weights[wanted[-1]]
                memory[wanted[-1]] = (x != 0).to(x) if x.is_floating_point() else x
            elif plain_name(call.name) in NEVER_ZERO:
                (view,) = call.outputs
                memory.put(view, torch.ones(view.at(1)[0], dtype=view.dtype, device=device))
            elif not _keeps_zeros(call):
                return False
            elif missing := [source for source in call.read if source not in memory]:
                wanted += missing
                continue
            else:
                memory.run(call)
            wanted.pop()
        return True

    for guard in guards:
        call = comparisons.get(guard.read.slot) if isinstance(guard.read, View) else None
        if call is not None and all(map(is_product, call.read)):
            memory.run(call)
            if guard.holds(memory):
                found.add(guard)
    return found


def _keeps_zeros(call: Call) -> bool:
    if plain_name(call.name) == "mul":
        return all(isinstance(x, View) for x in call.args)
    return plain_name(call.name) in KEEP_ZEROS


def _depth_first(slots: Sequence[int], made: Mapping[int, Call]) -> list[Call]:
    """The calls that these slots need, slot by slot. made: by slot, the call that makes it."""
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
    """What makes a call. made: by slot, the view that the call which made it gave."""
    fill_args, fill_kwargs = _filling(call.args, made), _filling(call.kwargs, made)
    operator = FASTER.get(call.name, call.operator)
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
