"""Writes a recorded forward as text: the calls on which the output depends, and their arguments."""

from __future__ import annotations

from collections.abc import Container
from itertools import count
from types import NoneType
from typing import Any

import torch

from pixelcnn_fast.capture.record.recorder import Recording
from pixelcnn_fast.program.calls import BatchSize, Call, View, leaves
from pixelcnn_fast.user_model.tensors import are_equal

# What decides what a call does; not its device, for one.
SETTINGS = int, float, complex, str, NoneType, torch.dtype, BatchSize


def transcript(recording: Recording) -> list[str]:
    """The needed calls, with what Python gave them and which parts of which tensors they read."""
    numbers, known, lines = count(), dict[int, str](), []

    def text(x: Any) -> str:
        if not isinstance(x, View):
            return repr(x) if isinstance(x, SETTINGS) else ""
        if x.slot not in known:
            known[x.slot] = f"x{next(numbers)}"  # what no call has made
        return f"{known[x.slot]}{[*x.size]}{_part(x, _whole(recording, x.slot), recording.n)}{x.dtype}"

    for number, call in enumerate(recording.needed):
        given = map(text, leaves(_given(call)))
        lines.append(" ".join([_name(call), *filter(None, given)]))
        for at, view in enumerate(call.results):
            if view is not None:
                known.setdefault(view.slot, f"%{number}.{at}")
    return [*lines, *map(text, recording.outputs)]


def are_alike(one: Recording, two: Recording, weights: Container[str] = ()) -> bool:
    """Whether two forwards do the same with tensors that are equal, unless named in ``weights``."""
    if transcript(one) != transcript(two):
        return False
    for leaf, other in zip(one.read().values(), two.read().values(), strict=True):
        names, now = ({name for name, _ in each.parameters} for each in (leaf, other))
        if not names <= now or bool(names) != bool(now):  # it may have another name as well
            return False
        is_weight = any(name in weights for name, _ in leaf.parameters)
        if not is_weight and not are_equal(leaf.tensor, other.tensor):
            return False
    return True


def _name(call: Call) -> str:
    return next(
        (kind for kind in ("batch_norm", "attention", "rnn", "lstm", "gru") if kind in call.name), call.name
    )


def _given(call: Call) -> list[Any]:
    """The arguments with their names, without a batch norm's momentum where it does not train."""
    named = {argument.name: x for argument, x in call.given}
    if "momentum" in named and not named.get("training", named.get("train", False)):
        del named["momentum"]
    return [x for item in sorted(named.items()) for x in item]


def _whole(recording: Recording, slot: int) -> View:
    leaf = recording.leaves.get(slot)
    return leaf.parameters[0][1] if leaf is not None and leaf.parameters else recording.whole[slot]


def _part(x: View, of: View, n: int) -> str:
    """Which elements of a tensor a view has: the place of the first, and its steps along the axes."""
    (own, strides, first), (sizes, steps, start) = x.at(n), of.at(n)
    if x.at(n) == of.at(n):
        return ""
    axes = sorted(
        (-step, axis) for axis, (step, size) in enumerate(zip(steps, sizes, strict=True)) if size > 1 and step
    )

    def along(elements: int) -> str:
        found = {}
        for step, axis in axes:
            found[axis], elements = divmod(elements, -step)
        return f"{[each for each in sorted(found.items()) if each[1]]}{elements or ''}"

    return ",".join(
        map(along, (first - start, *(step for step, size in zip(strides, own, strict=True) if size > 1)))
    )
