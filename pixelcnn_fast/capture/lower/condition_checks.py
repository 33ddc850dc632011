"""Checks that labels and conditions matter for their own image alone, and decide no computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import CONDITION, IMAGE, LABELS, Escape, Recording
from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.program.calls import needed, read_by
from pixelcnn_fast.program.conditions import (
    NO_IF,
    Conditioning,
    ConditionProgram,
    LabelBranch,
    Name,
    ReadByPython,
)
from pixelcnn_fast.program.operands import ConditionOperand

MOST_LABELS = 256  # for which recorded calls are run again
MOST_RECORDED = 16  # labels for which the model is recorded again, if Python reads them
MOST_TOGETHER = 32  # of them in one batch
MANY = 8  # images of one kind in a batch
MOST_ELEMENTS = 1 << 22  # of what is computed from an image's condition, if many are to be tried
UNUSUAL = 1e4
SCALES = (1.0, 100.0, -100.0, 0.0)  # of random conditions, so that branches and bounds show


def check_conditions(
    recording: Recording,
    conditions: ConditionProgram,
    operands: Sequence[ConditionOperand],
    given: Conditioning,
    classes: int | None,
    record_again: Callable[[Conditioning], None],
) -> None:
    """Raises Unsupported if labels or conditions decide what is computed, or matter for
    other images. given: an example for two images; classes: the number of labels, if known;
    record_again: runs the model for three images, and raises Unsupported if it differs.
    What can't be tried for all is left in ``conditions.read_by_python``."""
    labels = list(_labels(conditions, operands, given, classes))
    is_long = conditions.elements(operands) > MOST_ELEMENTS
    _check_each_image(conditions, operands, given if is_long else _varied(given, labels), is_long)
    for escape in recording.escapes:
        if IMAGE in escape.of:
            continue
        if not escape.is_branch:
            conditions.read_by_python.append(ReadByPython(str(escape), CONDITION in escape.of))
            continue
        what = f"{escape.where}: an if on what depends on the {' and the '.join(sorted(escape.of))}"
        if CONDITION in escape.of:
            raise Unsupported(f"{what}: it may fall otherwise for another condition; use torch.where")
        conditions.guards.append(_guard(recording, escape, what))
        for label in labels:
            try:
                conditions([], _of_label(given, label, 2), 2)
            except Unsupported:
                raise Unsupported(f"{what}: it falls otherwise for label {label}; {NO_IF}") from None
    if conditions.read_by_python:
        # What Python does with a number can't be seen, but what comes of it can.
        for other in _one_by_one(given, labels[:: max(1, len(labels) // MOST_RECORDED)]):
            record_again(other)
            if other.labels is not None:
                conditions.verified.add((int(other.labels[0]),))


def _check_each_image(
    conditions: ConditionProgram,
    operands: Sequence[ConditionOperand],
    given: Conditioning,
    is_long: bool,
) -> None:
    """Compares each image alone with copies of it, and with all in several orders; in few, if one takes long."""
    n, seeded = given.images, torch.Generator().manual_seed(0)
    if is_long:
        batches = [torch.arange(n).flip(0), torch.zeros(n + 1, dtype=torch.long)]
    else:
        in_orders = [torch.randperm(n, generator=seeded), torch.randint(n, (n,), generator=seeded)]
        batches = [torch.arange(n), *in_orders]
        batches += [torch.full((MANY,), image) for image in range(n if given.condition is None else 2)]
    with suppress(ModelFailed):  # which says that it takes no such conditions
        alone = [conditions(operands, given.part(torch.tensor([image, image])), 2) for image in range(n)]
        for batch in batches:
            together = conditions(operands, given.part(batch), len(batch))
            for operand in operands:
                a = together[operand].double()
                b = torch.stack([alone[image][operand][0] for image in batch]).double()
                usual = b.abs()[b.abs() < UNUSUAL]  # not those of masks, such as -1e9
                least = 1e-6 * max([1.0, *usual.max().view(-1).tolist()] if usual.numel() else [1.0])
                if not torch.allclose(a, b, rtol=1e-4, atol=least, equal_nan=True):
                    raise Unsupported(
                        "cannot sample from this model: what it computes from the labels or the condition of an image "
                        "depends on the other images of the batch (as e - e.mean(0) does): compute it for each image "
                        "alone"
                    )


def _varied(given: Conditioning, labels: Sequence[int]) -> Conditioning:
    spread = list(labels)[:: max(1, len(labels) // MOST_TOGETHER)] or [0]
    n = len(spread) if given.condition is None else 2 * len(SCALES)
    mine = None if given.labels is None else _like(given.labels, [spread[i % len(spread)] for i in range(n)])

    def varied(name: Name, x: Tensor) -> Tensor:
        return torch.cat([_changed(x, k) for k in range(len(SCALES))])

    return given._replace(labels=mine).with_conditions(varied)


def _one_by_one(given: Conditioning, labels: Sequence[int]) -> Iterator[Conditioning]:
    three = given.part(torch.tensor([0, 1, 0]))
    for label in labels:
        yield _of_label(three, label, 3)
    if three.condition is not None:
        for k in range(1, len(SCALES)):
            yield _scaled(three, k)


def _scaled(given: Conditioning, k: int) -> Conditioning:
    return given.with_conditions(lambda _, x: _changed(x, k))


def _changed(condition: Tensor, k: int) -> Tensor:
    """Conditions in scale ``k``; of codes, ever more at the end become zeros, like padding."""
    if condition.is_floating_point():
        return condition * SCALES[k]
    count = condition[0].numel()
    kept = torch.arange(count).view(condition.shape[1:]) * (len(SCALES) - 1) < (len(SCALES) - 1 - k) * count
    return condition * kept.to(condition.device)


def _like(labels: Tensor, values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=labels.dtype, device=labels.device)


def _of_label(given: Conditioning, label: int, n: int) -> Conditioning:
    assert given.labels is not None
    return given._replace(labels=_like(given.labels, [label] * n))


def _labels(
    conditions: ConditionProgram,
    operands: Sequence[ConditionOperand],
    given: Conditioning,
    classes: int | None,
) -> Iterator[int]:
    """Yields the labels to be tried: the known ones, where a wrong one would end the program."""
    if given.labels is None or (classes is None and given.labels.device.type != "cpu"):
        return
    n = classes or MOST_LABELS
    for label in range(0, n, max(1, n // MOST_LABELS)):
        try:
            conditions(operands, _of_label(given.part(torch.tensor([0])), label, 1), 1)
        except ModelFailed:
            return
        yield label


def _guard(recording: Recording, escape: Escape, what: str) -> LabelBranch:
    assert escape.call is not None and LABELS in escape.of
    calls = needed(recording.calls[: escape.at], escape.call.read)
    read = read_by([*calls, escape.call])
    leaves = {slot: leaf.tensor for slot, leaf in recording.leaves.items() if slot in read}
    return LabelBranch(calls, escape.call, leaves, escape.value, what)
