"""Replaces many recorded calls by few that give the same, where none writes into another's result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import cast

import torch

from pixelcnn_fast.capture.record.weight_recorder import Guard
from pixelcnn_fast.program.calls import Call, View, map_leaves, plain_name

# Element by element, rounded in one way only in float32 and float64: always the same bits.
ELEMENTWISE = frozenset(
    ("mul", "add", "sub", "neg", "_to_copy", "div", "sqrt", "rsqrt", "reciprocal", "ne", "eq")
)
SMALL = 4096  # elements: a call on fewer takes more time than copying them


class Merged:
    """Calls that give the same as the recorded ones.

    What is done alike to parts of one tensor, at equal distances, is done at once, which
    leaves the results side by side: ``cat`` and copies then have nothing to do, and a
    kernel's taps cost as many calls as one of them. Small tensors that are converted, such
    as those of batch norms, are put together before.
    """

    def __init__(self, recorded: Sequence[Call], read: Sequence[View]) -> None:
        """read: the views that are read once all calls are made."""
        self.calls: list[Call] = []
        self._place: dict[int, tuple[int, int]] = {}  # of a slot that is gone: its new slot, and from where
        self._added = 0
        views = [*read, *(view for call in recorded for view in (*call.outputs, *call.inputs))]
        dtypes = {view.slot: view.dtype for view in views}
        self._of_two_dtypes = {view.slot for view in views if view.dtype is not dtypes[view.slot]}
        for calls in _levels(recorded):
            left = [call for call in map(self.call, calls) if not self._is_there(call)]
            for alike in _grouped(self._small_put_together(left), self._kind):
                self.calls += [self._at_once(run) if len(run) > 1 else run[0] for run in _runs(alike)]

    def view(self, view: View) -> View:
        """The view that has taken the place of a recorded one."""
        if view.slot not in self._place:
            return view
        slot, start = self._place[view.slot]
        return View(slot, view.size, view.stride, _start(view) + start, view.dtype)  # faster than replace

    def call(self, call: Call) -> Call:
        """A recorded call, on the views that have taken the places of its own."""
        if self._place.keys().isdisjoint(call.read):
            return call
        args, kwargs = map_leaves(
            lambda x: self.view(x) if isinstance(x, View) else x, (call.args, call.kwargs)
        )
        return Call(call.name, args, kwargs, call.results, call.where)

    def guard(self, guard: Guard) -> Guard:
        """The guard, on the views that have taken the places of its own, once all calls are made."""
        read = self.view(guard.read) if isinstance(guard.read, View) else self.call(guard.read)
        return replace(guard, read=read, at=len(self.calls))

    def _is_there(self, call: Call) -> bool:
        """Whether the result of a call lies in memory already. If so, its place is noted."""
        if len(call.outputs) != 1 or call.outputs[0].slot in self._of_two_dtypes:
            return False
        (result,), sources = call.outputs, call.inputs
        match plain_name(call.name):
            case "clone" | "_to_copy":
                is_there = "device" not in call.kwargs and _lie_alike(sources[0], result)
            case "cat":
                along = (*call.args[1:], *call.kwargs.values())
                is_there = along in ((), (0,)) and _side_by_side(sources, result)
            case _:
                is_there = False
        if is_there:
            self._place[result.slot] = sources[0].slot, _start(sources[0])
        return is_there

    def _small_put_together(self, calls: Sequence[Call]) -> list[Call]:
        """The calls, where small tensors that are to be converted are put side by side before."""

        def size(call: Call) -> object:
            if plain_name(call.name) != "_to_copy" or "device" in call.kwargs:
                return call
            (x,) = call.inputs
            return (x.size, x.dtype) if x.size and x.is_contiguous and _length(x) <= SMALL else call

        found: list[Call] = []
        for alike in _grouped(calls, size):
            sources = [call.inputs[0] for call in alike]
            if len(alike) > 1 and len({x.slot for x in sources}) > 1:
                length = _length(sources[0])
                flat = [replace(x, size=(length,), stride=(1,)) for x in sources]
                slot = self._new_slot()
                whole = View(slot, (length * len(flat),), (1,), 0, flat[0].dtype)
                self.calls.append(Call("aten::cat", (flat,), {}, (whole,)))
                moved = [replace(x, slot=slot, offset=at * length) for at, x in enumerate(sources)]
                alike = [
                    replace(call, args=(x, *call.args[1:])) for call, x in zip(alike, moved, strict=True)
                ]
            found += alike
        return found

    def _new_slot(self) -> int:
        self._added += 1
        return -self._added

    def _kind(self, call: Call) -> tuple[object, ...]:
        """Equal for calls that may be made at once, if what they read lies at equal distances."""
        if plain_name(call.name) not in ELEMENTWISE or len(call.outputs) != 1:
            return (call,)
        (result,) = call.outputs
        is_plain = result.is_contiguous and result.slot not in self._of_two_dtypes
        is_exact = (
            result.dtype in (torch.float32, torch.float64, torch.bool) or plain_name(call.name) == "_to_copy"
        )
        if not is_plain or not is_exact or "alpha" in call.kwargs:
            return (call,)

        def alike(x: object) -> object:
            if not isinstance(x, View):
                return repr(x)  # 0.0 is not -0.0 here
            return (x.slot, x.size, x.stride, x.dtype) if x.size == result.size else x

        return call.name, *map(alike, call.args), repr(call.kwargs), result.size, result.dtype

    def _at_once(self, calls: Sequence[Call]) -> Call:
        first, second = calls[0], calls[1]
        (result,) = first.outputs
        slot, length = self._new_slot(), _length(result)

        def all_of(x: object, y: object) -> object:
            if not isinstance(x, View) or not isinstance(y, View) or x.size != result.size:
                return x
            return replace(x, size=(len(calls), *x.size), stride=(_start(y) - _start(x), *x.stride))

        for number, call in enumerate(calls):
            self._place[call.outputs[0].slot] = slot, number * length
        whole = replace(result, slot=slot, size=(len(calls), *result.size), stride=(length, *result.stride))
        args = tuple(map(all_of, first.args, second.args))
        return replace(first, args=args, results=(whole,))


def _levels(calls: Sequence[Call]) -> list[list[Call]]:
    """The calls in groups, each as early as what it reads allows."""
    levels: list[list[Call]] = []
    made_in: dict[int, int] = {}  # by slot
    for call in calls:
        level = max((made_in.get(slot, -1) for slot in call.read), default=-1) + 1
        if level == len(levels):
            levels.append([])
        levels[level].append(call)
        made_in |= dict.fromkeys(call.written, level)
    return levels


def _grouped(calls: Sequence[Call], key: Callable[[Call], object]) -> Iterable[list[Call]]:
    found: dict[object, list[Call]] = defaultdict(list)
    for call in calls:
        found[key(call)].append(call)
    return found.values()


def _start(view: View) -> int:
    return cast(int, view.offset)  # weights have no batch


def _length(view: View) -> int:
    return math.prod(cast(tuple[int, ...], view.size))


def _runs(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """Groups of calls whose arguments lie at equal distances in memory."""
    run: list[Call] = []
    step: list[int] = []
    before: list[int] = []
    for starts, call in sorted(((list(map(_start, call.inputs)), call) for call in calls), key=itemgetter(0)):
        ahead = [b - a for a, b in zip(before, starts, strict=True)] if run else []
        if len(run) == 1 and min(ahead) >= 0 or len(run) > 1 and ahead == step:
            run.append(call)
        else:
            if run:
                yield run
            run = [call]
        step, before = ahead, starts
    yield run


def _lie_alike(x: View, y: View) -> bool:
    """Whether the elements of a new tensor y lie in the same order as those of x."""
    axes = zip(x.size, x.stride, y.stride, strict=True)
    return (x.dtype, x.size) == (y.dtype, y.size) and all(s == t for n, s, t in axes if n != 1)


def _side_by_side(sources: Sequence[View], result: View) -> bool:
    """Whether tensors lie in one slot as they would in their concatenation."""
    end = _start(sources[0])
    for x in sources:
        if not x.is_contiguous or (x.slot, x.dtype, x.offset) != (sources[0].slot, result.dtype, end):
            return False
        end += _length(x)
    return result.is_contiguous
