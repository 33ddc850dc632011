"""What the values of a recurrence see: the least that agrees with what each reads of the others.

A state, a channel that is read at another pixel, sees what its own pixel's inputs show it, and what states at some
offsets see. Offsets add up from state to state; all their sums are found by doubling the number of states on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from pixelcnn_fast.program.operands import Connection
from pixelcnn_fast.program.receptive_field.seen import (
    FieldShape,
    Seen,
    distinct,
    product,
    seen_by,
    shifted,
    united,
)
from pixelcnn_fast.program.recurrence import Component, Offset

Reads = dict[Offset, np.ndarray]  # by offset, which states channels read there: bool [channels, states]
Known = dict[
    tuple[bytes, ...], np.ndarray
]  # sums of offsets, and what is seen through them, by what they are of


def seen_in_recurrence(
    component: Component, known: Mapping[int, Seen], shape: FieldShape, sums: Known
) -> dict[int, Seen]:
    """known: what the values see that its own are computed from; sums: those that are known already, or will be."""
    sizes = {i.out: i.channels for i in component.instructions}
    reads = [read for i in component.instructions for read in i.reads() if read.value in sizes]
    states = sorted({read.value for read in reads if not read.is_here})
    ends = np.cumsum([0, *(sizes[value] for value in states)]).tolist()
    at = {value: slice(*each) for value, *each in zip(states, ends, ends[1:], strict=False)}

    def channels_of(value: int) -> int:
        return sizes[value] if value in sizes else len(known[value].group)

    def is_of_pixel(connection: Connection) -> bool:
        return connection.read.is_here or connection.read.value not in sizes

    through: dict[int, Reads] = {}
    inputs: dict[int, Seen] = {}  # what each value sees, but for what it sees through states
    for i in component.instructions:
        inputs[i.out] = seen_by(i, {**known, **inputs}, shape, channels_of, is_of_pixel)
        mine: Reads = through.setdefault(i.out, {})
        for connection in i.connections(channels_of):
            read, channels = connection.read, connection.channels.cpu().numpy()
            if read.value not in sizes:
                continue
            if read.is_here:
                found = {offset: product(channels, states) for offset, states in through[read.value].items()}
            else:
                around = (at[read.value].start, ends[-1] - at[read.value].stop)
                found = {(read.dy, read.dx): np.pad(channels, ((0, 0), around))}
            for offset, states_read in found.items():
                mine[offset] = mine[offset] | states_read if offset in mine else states_read
    of_states = [inputs[value].seen[inputs[value].group] for value in states]
    every: Reads = defaultdict(lambda: np.zeros((ends[-1], ends[-1]), bool))
    for value in states:
        for offset, states_read in through[value].items():
            every[offset][at[value]] = states_read
    kind, seen = _seen_by_states(np.concatenate(of_states), every, sums)
    one_hot = kind[:, None] == np.arange(len(seen))
    result: dict[int, Seen] = {}
    for i in component.instructions:
        group, own = inputs[i.out]
        parts = [own, *(shifted(seen, *offset) for offset in through[i.out])]
        reads_of_parts = [group[:, None] == np.arange(len(own))]
        reads_of_parts += [product(states_read, one_hot) for states_read in through[i.out].values()]
        result[i.out] = united(parts, reads_of_parts, i.channels, shape)
    return result


def _seen_by_states(inputs: np.ndarray, reads: Reads, known: Known) -> tuple[np.ndarray, np.ndarray]:
    """inputs: bool [states, C, 2H - 1, 2W - 1]; reads: which states each reads, by offset -> (the kind of each state,
    [states]; what kinds see, [kinds, C, 2H - 1, 2W - 1])."""
    kind = _kinds(inputs, reads)
    first = [int(np.argmax(kind == k)) for k in range(kind.max() + 1)]
    one_hot = kind[:, None] == np.arange(len(first))
    between = {offset: product(states[first], one_hot) for offset, states in reads.items()}
    key = tuple(bytes(str(offset), "ascii") + states.tobytes() for offset, states in sorted(between.items()))
    if key not in known:
        known[key] = _sums(between, len(first), *inputs.shape[2:])
    with_inputs = (*key, inputs[first].tobytes())
    if with_inputs not in known:  # as for most layers, which see all that comes before
        known[with_inputs] = np.asarray(_convolved(known[key][:, :, None], inputs[first][None]).any(1))
    return kind, known[with_inputs]


def _kinds(inputs: np.ndarray, reads: Reads) -> np.ndarray:
    """States of one kind see the same: the coarsest division in which they read the same kinds at each offset."""
    _, kind = distinct(inputs.reshape(len(inputs), -1))
    while True:
        one_hot = kind[:, None] == np.arange(kind.max() + 1)
        rows = np.concatenate([one_hot, *(product(states, one_hot) for states in reads.values())], 1)
        _, finer = distinct(rows)
        if finer.max() == kind.max():
            return kind
        kind = finer


def _sums(between: Reads, kinds: int, height: int, width: int) -> np.ndarray:
    """All sums of offsets on ways from kind to kind: bool [kinds, kinds, 2H - 1, 2W - 1]."""
    sums = np.zeros((kinds, kinds, height, width), bool)
    sums[range(kinds), range(kinds), height // 2, width // 2] = True
    for (dy, dx), read in between.items():
        if abs(dy) <= height // 2 and abs(dx) <= width // 2:
            sums[:, :, height // 2 + dy, width // 2 + dx] |= read
    while True:
        longer = np.asarray(_convolved(sums[:, :, None], sums[None]).any(1))
        if (longer == sums).all():
            return sums
        sums = longer


def _convolved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which sums of an offset in a and one in b there are, among those that are counted: [..., 2H - 1, 2W - 1]."""
    height, width = a.shape[-2:]
    size = (2 * height, 2 * width)
    both = np.fft.irfft2(np.fft.rfft2(a, size) * np.fft.rfft2(b, size), size)
    rows, columns = height // 2, width // 2
    return np.asarray(both[..., rows : rows + height, columns : columns + width] > 0.5)
