"""Remembers which weights are zero, and finds the guards that follow from that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.weight_recorder import Guard
from pixelcnn_fast.program.calls import Call, Memory, View, plain_name


class Zeros:
    """Which elements of some weights are zero, while all others are finite."""

    def __init__(self, weights: Mapping[int, Tensor]) -> None:
        """weights: by slot."""
        self.weights = weights
        self._where: dict[int, Tensor | None] = {}  # of those that were asked for; None: nowhere

    def checked(self, leaf: Callable[[int], Tensor | None]) -> Callable[[int], Tensor | None]:
        """Gives what ``leaf`` gives for a slot, or None if that is zero elsewhere than before."""

        def found(slot: int) -> Tensor | None:
            x = leaf(slot)
            return None if x is None or (slot in self.weights and not self._are_in(slot, x)) else x

        return found

    def _are_in(self, slot: int, x: Tensor) -> bool:
        """Whether the same elements are zero, and all finite; integers must be the same."""
        before = self.weights[slot]
        if x.data_ptr() == before.data_ptr():
            return True
        if not x.is_floating_point():
            return torch.equal(x, before)
        if slot not in self._where:
            self._where[slot] = None if _has_no_zero(before) else before == 0
        if (zeros := self._where[slot]) is None:
            return _has_no_zero(x)
        return torch.equal(x == 0, zeros) and bool(x.isfinite().all())


def _has_no_zero(x: Tensor) -> bool:
    """Whether all numbers are finite, and none is zero."""
    if not x.numel():
        return True
    least, most = map(float, torch.aminmax(x.abs()))  # a tenth of the time that counting them takes
    return 0 < least and most < math.inf


# Calls whose results are zero where, and only where, an element that they are made of is.
KEEP_ZEROS = frozenset(("mul", "neg", "clone", "_to_copy", "cat", "stack", "index_select"))
NEVER_ZERO = frozenset(("rsqrt",))


def implied_by_zeros(
    calls: Sequence[Call], weights: Mapping[int, Tensor], guards: Sequence[Guard]
) -> set[Guard]:
    """The guards that hold as long as the same elements of these weights, by slot, are zero.

    They look at products, and at elements that are moved. The calls are made with ones in
    place of all that is not zero, since zeros that come from underflow do not stay.
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
        """Whether a slot holds products of weights; then puts ones and zeros into memory for it."""
        wanted = [slot]
        while wanted:
            call = made.get(wanted[-1])
            if wanted[-1] in memory:
                pass
            elif call is None:
                x = weights[wanted[-1]]
                memory[wanted[-1]] = x.sign().abs_() if x.is_floating_point() else x
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
            if call.outputs[0].slot not in memory:
                memory.run(call)
            if guard.holds(memory):
                found.add(guard)
    return found


def _keeps_zeros(call: Call) -> bool:
    if plain_name(call.name) == "mul":
        return all(isinstance(x, View) for x in call.args)
    return plain_name(call.name) in KEEP_ZEROS
