"""Makes values of channels that are computed at different times, or read separately.

Channels of a value may differ in how many channels of their pixel must be drawn first. Or a
step may read only some: a gate, for example, reads each half of a convolution. Steps work
on whole values, so each half must be a value, and splits spread along steps. A convolution
can read and compute any pieces, through rows and columns of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.passes.emitter import Emitter
from pixelcnn_fast.program.grids import Every, Place
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution
from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.program import Program, needed
from pixelcnn_fast.program.receptive_field.fields import Field, output_field, receptive_fields
from pixelcnn_fast.program.recurrence import components


def split_channels(program: Program) -> Program:
    """Lets every step read whole values, whose channels can be computed together. There is
    one output per image channel if logits need draws of their own pixel."""
    seen = output_field(program)
    ordered = bool(seen[:, :, seen.shape[2] // 2, seen.shape[3] // 2].any())  # logits see their own pixel
    most = program.shape[0] if ordered else 1  # draws of a pixel
    fields = receptive_fields(program)
    draws = {i.out: draws_needed(fields[i.out]).clip(max=most) for i in program.instructions}
    alike = all((needed == needed[0]).all() for needed in draws.values())
    picks = any(pick is not None for i in program.instructions for _, pick in i.channelwise())
    if not ordered and alike and not picks:
        return program
    return _Splitter(program, _labels(program, draws, ordered), ordered).split()


def _labels(program: Program, draws: dict[int, np.ndarray], ordered: bool) -> dict[int, np.ndarray]:
    """By value, labels [channels], equal within a piece. draws: how many each channel needs."""
    labels = dict(draws)
    if ordered:
        for output in program.outputs:
            labels[output] = np.arange(len(labels[output])) // program.parameters
    kinds = {value: len(np.unique(label)) for value, label in labels.items()}
    changed = True
    while changed:
        changed = False
        for i in program.instructions:
            read = i.channelwise()
            if not read or (kinds[i.out] == 1 and all(kinds[v] == 1 and pick is None for v, pick in read)):
                continue
            picks = [(value, slice(None) if pick is None else pick.numpy()) for value, pick in read]
            together = [picks[0], (i.out, slice(None)), *picks[1:]]
            joint = np.zeros(i.channels, dtype=np.int64)
            for value, pick in together:
                label = labels[value][pick]
                _, joint = np.unique(joint * (label.max() + 1) + label, return_inverse=True)
            for value, pick in together:
                label = labels[value] + joint.max() + 1  # apart from channels that are not picked
                label[pick] = joint
                labels[value], before = label, kinds[value]
                kinds[value] = len(np.unique(label))
                changed |= kinds[value] > before
    return labels


def without_unread_channels(program: Program) -> Program:
    """Drops channels that reach no output, if some are of other pixels, such as what a mask hides everywhere."""
    read = _channels_read(program)
    dead = [i for i in program.instructions if not read[i.out].all()]
    if all(tap.read.is_here for i in dead for tap in i.taps):
        return program
    labels = _labels(
        program, {value: channels.astype(int) for value, channels in read.items()}, ordered=False
    )
    split = _Splitter(program, labels, ordered=False).split()
    return replace(split, instructions=tuple(needed(split.instructions, split.outputs)))


def _channels_read(program: Program) -> dict[int, np.ndarray]:
    """By value, which of its channels reach an output: bool [channels]."""
    channels = {i.out: i.channels for i in program.instructions}
    read = {value: np.full(count, value in program.outputs) for value, count in channels.items()}
    for component in reversed(components(program.instructions)):
        for i in component.instructions:
            if component.is_recurrence:
                read[i.out][:] = True
            alike = {(c.read.value, id(c.channels)): c.channels for c in i.connections(channels.__getitem__)}
            for (value, _), connected in alike.items():
                read[value] |= connected[read[i.out]].any(0)
    return read


def draws_needed(fields: Mapping[Place, Field]) -> np.ndarray:
    """How many channels of the pixel must be drawn before each channel of a value: [channels]."""
    present = reduce(np.logical_or, (field.present() for field in fields.values()))
    needed: np.ndarray = (present * np.arange(1, present.shape[1] + 1)).max(1)
    return needed


class _Splitter:
    def __init__(self, program: Program, labels: dict[int, np.ndarray], ordered: bool) -> None:
        self._program, self._ordered = program, ordered
        self._every = {i.out: i.every for i in program.instructions}
        self._channels = {
            value: [torch.from_numpy(np.flatnonzero(label == kind)) for kind in np.unique(label)]
            for value, label in labels.items()
        }
        self._new = Emitter()
        # By value, the numbers of its pieces, known before these, as recurrences need them.
        self._pieces = {
            value: [self._new.number() for _ in pieces] for value, pieces in self._channels.items()
        }

    def split(self) -> Program:
        for i in self._program.instructions:
            if not self._can_be_picked(i):
                self._pieces[i.out] = self._parts_of_input(i)
            else:
                for out, channels in self._parts(i.out):
                    self._piece(i, channels, out)
        numbers = torch.arange(self._program.parameters * self._program.distributions)
        of_draws = numbers.chunk(self._program.shape[0] if self._ordered else 1)
        outputs = [self._joined(value, channels) for value in self._program.outputs for channels in of_draws]
        return replace(self._program, instructions=tuple(self._new.instructions), outputs=tuple(outputs))

    def _piece(self, i: Instruction, channels: Tensor, out: int | None = None) -> int:
        piece = i.picked(channels, self._joined, self._whole)
        return self._new.emit(piece.with_taps(self._taps(piece.taps, len(channels) == i.channels)), out)

    def _parts(self, value: int) -> list[tuple[int, Tensor]]:
        """The pieces of a value, with their channels."""
        return [*zip(self._pieces[value], self._channels[value], strict=True)]

    def _whole(self, value: int) -> int:
        return self._joined(value, torch.cat(self._channels[value]).sort().values)

    def _taps(self, taps: tuple[Tap, ...], are_whole: bool) -> list[Tap]:
        """are_whole: whether they are for all channels of their instruction."""
        result = []
        for tap in taps:
            if are_whole and len(self._pieces[tap.source]) == 1:
                result.append(tap.of(tap.read.of(self._pieces[tap.source][0])))
                continue
            parts = (tap.of_part(piece, rows) for piece, rows in self._parts(tap.source))
            result += [part for part in parts if part.is_live]
        return result

    def _joined(self, value: int, channels: Tensor) -> int:
        """A value that consists of these channels, put together again if they were split."""
        for piece, rows in self._parts(value):
            if torch.equal(rows, channels):
                return piece
        return self._gathered("joined", self._every[value], self._parts(value), channels)

    def _gathered(self, name: str, every: Every, pieces: list[tuple[int, Tensor]], channels: Tensor) -> int:
        """A value that consists of these channels. pieces: (piece, which channels it consists of)."""
        taps = []
        for piece, rows in pieces:
            weight = (rows[:, None] == channels).to(self._program.device, self._program.dtype)
            if bool(weight.any()):
                taps.append(Tap(piece, 0, 0, weight))
        return self._new.emit(Convolution(0, len(channels), name, taps=tuple(taps), every=every))

    # -- channels that can only be picked together

    def _can_be_picked(self, i: Instruction) -> bool:
        size = i.picked_together
        return size == 1 or all(
            len(rows) % size == 0 and torch.equal(rows, torch.arange(len(rows)) + rows[0] // size * size)
            for rows in self._channels[i.out]
        )

    def _parts_of_input(self, i: Instruction) -> list[int]:
        """The pieces of an input, gathered from inputs that hold all image channels of one draw."""
        together = torch.arange(i.channels).split(i.picked_together if self._ordered else i.channels)
        inputs = [(self._piece(i, rows), rows) for rows in together]
        return [self._gathered(i.name, i.every, inputs, channels) for channels in self._channels[i.out]]
