"""Evaluates the weights of a program again, from other weights of the model."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Leaf
from pixelcnn_fast.capture.record.weight_recorder import Guard, WeightRecorder
from pixelcnn_fast.program.calls import Call, flat, needed
from pixelcnn_fast.refresh.merging import Merged
from pixelcnn_fast.refresh.plan import Plan, are_pure
from pixelcnn_fast.refresh.zeros import Zeros, implied_by_zeros


class Reevaluation:
    """Computes, from other weights, tensors that were made while a recorder watched.

    Most guards ask which products of weights are zero. They hold as long as the same weights are zero.
    """

    def __init__(
        self, tensors: Sequence[Tensor], recorder: WeightRecorder, does_the_same: bool = False
    ) -> None:
        """does_the_same: whether the model is known to do the same, whatever numbers it reads."""
        recording, guards = recorder.recording, recorder.guards(does_the_same)
        self._leaves, self._written = recording.leaves, list(recorder.written)
        wanted = [recorder.view(x) for x in (*tensors, *recorder.written.values())]
        read = [*wanted, *(view for guard in guards for view in guard.views)]
        self._calls: Sequence[Call] = needed(recording.calls, {view.slot for view in read})
        self._are_pure = are_pure(self._calls, self._leaves)
        if self._are_pure:
            merged = Merged(self._calls, read)
            wanted, guards = [merged.view(view) for view in wanted], [merged.guard(guard) for guard in guards]
            self._calls = merged.calls
        else:
            self._calls = recording.calls  # a guard says after how many of them
        self._wanted, self._guards = wanted, guards
        self._all = self._plan(guards)
        self._shorter: tuple[Plan, Zeros] | None = None
        self._held: Mapping[int, Tensor] | None = None  # the last leaves whose guards were looked at

    def _plan(self, guards: Sequence[Guard]) -> Plan:
        return Plan(self._leaves, self._calls, self._wanted, guards)

    @torch.no_grad()
    def __call__(self, weights: MutableMapping[str, Tensor]) -> list[Tensor] | None:
        """The wanted tensors, or None if a guard does not hold. weights: by name, asked for
        just before they are read; those into which the model writes are put there."""
        found = self._evaluated(weights)
        if found is None:
            return None
        constants = len(found) - len(self._written)
        weights.update(zip(self._written, found[constants:], strict=True))
        return found[:constants]

    def _evaluated(self, weights: Mapping[str, Tensor]) -> list[Tensor] | None:
        def filled(slot: int) -> Tensor | None:
            try:
                return self._filled(self._leaves[slot], weights)
            except RuntimeError:
                return None

        held, self._held = self._held, None
        if held is not None:  # not earlier, so that the first time takes less
            self._shorten(held)
        if self._shorter is not None:
            plan, zeros = self._shorter
            leaf = zeros.checked(filled)
            if all(leaf(slot) is not None for slot in zeros.weights.keys() - plan.read):
                if (found := plan(leaf)) is not None:
                    return found
        found = self._all(filled)
        if found is not None and self._are_pure:
            leaves = {slot: filled(slot) for slot in self._leaves}
            self._held = {slot: x for slot, x in leaves.items() if x is not None}
        return found

    def _shorten(self, leaves: Mapping[int, Tensor]) -> None:
        implied = implied_by_zeros(self._calls, leaves, self._guards)
        behind = needed(self._calls, {slot for guard in implied for slot in guard.slots})
        read = {
            slot for call in behind for slot in call.read if slot in leaves and self._leaves[slot].parameters
        }
        rest = [guard for guard in self._guards if guard not in implied]
        self._shorter = self._plan(rest), Zeros({slot: leaves[slot] for slot in read})

    def _filled(self, leaf: Leaf, weights: Mapping[str, Tensor]) -> Tensor:
        """What a leaf holds with these weights: its parameter itself, if that fits as it
        is, else a copy of the storage with the weights in it. Raises RuntimeError if they
        can't be put there."""
        held = leaf.tensor
        if len(leaf.parameters) == 1 and self._are_pure:  # the usual case needs no copy
            ((name, view),) = leaf.parameters
            weight, layout = weights[name], (*view.at(1), held.numel(), held.dtype, held.device)
            own = weight.shape, weight.stride(), weight.storage_offset(), weight.numel()
            if (*own, weight.dtype, weight.device) == layout and layout[2] == 0:
                return weight
        if leaf.parameters or not self._are_pure:
            held = flat(held).clone()
        seen = held
        for name, view in leaf.parameters:
            seen = held.as_strided(*view.at(1)).copy_(weights[name])
        return seen if len(leaf.parameters) == 1 else held
