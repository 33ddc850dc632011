"""What labels and conditions must not do: count for other images of the batch, or decide what the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pixelcnn_fast.capture.recorder import CONDITION, IMAGE, Escape, Recording
from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.program.calls import Memory, needed
from pixelcnn_fast.program.conditions import Conditions, Given
from pixelcnn_fast.program.program import ConditionOperand

MOST_LABELS = 1024  # that are tried where the model does not say how many there are


def check_each_image(
    conditions: Conditions, operands: Sequence[ConditionOperand], given: Given, n: int
) -> None:
    """Raises Unsupported if what is computed from the conditions of one image depends on those of others."""
    together = conditions(operands, given, n)
    for image in range(n):
        alone = conditions(operands, given.part(torch.full((n,), image)), n)
        for operand in operands:
            a, b = together[operand][image], alone[operand][image]
            if not torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6, equal_nan=True):
                raise Unsupported(
                    "cannot sample from this model: what it computes from the labels or the condition of an image "
                    "depends on the other images of the batch (as e - e.mean(0) does): compute it for each image alone"
                )


def check_branches(
    recording: Recording, conditions: Conditions, operands: Sequence[ConditionOperand], classes: int | None
) -> None:
    """Raises Unsupported for an ``if`` on labels, unless it falls alike for all of them, and for one on a condition."""
    for escape in recording.escapes:
        if not escape.is_branch or IMAGE in escape.of:
            continue
        if CONDITION in escape.of:
            raise Unsupported(_what(escape) + ": it may fall otherwise for another condition; use torch.where")
        for label in _labels(conditions, operands, classes):
            if _decided(recording, escape, label) != escape.value:
                raise Unsupported(
                    f"{_what(escape)}: it falls otherwise for label {label}; compute with the labels (embedding, "
                    "one_hot, torch.where) in place of the if"
                )


def _what(escape: Escape) -> str:
    return f"{escape.where}: an if on what depends on the {' and the '.join(sorted(escape.of))}"


def _labels(conditions: Conditions, operands: Sequence[ConditionOperand], classes: int | None) -> Iterator[int]:
    """All labels, as far as they can be told."""
    for label in range(classes or MOST_LABELS):
        try:
            conditions(operands, Given(torch.tensor([label])), 1)
        except ModelFailed:
            return
        yield label


def _decided(recording: Recording, escape: Escape, label: int) -> object:
    """What an ``if`` is decided by for a batch of one label."""
    assert escape.call is not None
    memory = Memory(recording.n, {slot: leaf.tensor.clone() for slot, leaf in recording.leaves.items()})
    labels = recording.given[0]
    assert labels is not None
    memory.put(labels, torch.full((recording.n,), label, device=memory[labels.slot].device))
    for call in needed(recording.calls[: escape.at], [view.slot for view in escape.call.inputs]):
        memory.run(call)
    return memory.result(escape.call)
