"""Values cut into pieces: channels that are computed at different times, or read apart, become values of their own.

Two things cut a value. Its channels may differ in how many channels of their pixel must be drawn first: where some
logits see other channels of their own pixel, or where some channels see nothing of it but others do. And where a step
reads some channels of a value (a gate reads both halves of a convolution), the halves are only alike channel by
channel when each is a value. Cuts spread along steps, since a step works channel by channel; a convolution reads and
gives any pieces, by rows and columns of its weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.program.fields import Field, output_field
from pixelcnn_fast.program.program import LEVELS, Instruction, Program, Tap


def orders_channels(program: Program, fields: dict[int, Field]) -> bool:
    """Whether some logits see channels of their own pixel."""
    seen = output_field(program, fields)
    return bool(seen[:, :, seen.shape[2] // 2, seen.shape[3] // 2].any())


def cut(program: Program, fields: dict[int, Field]) -> Program:
    """The same program in which every step reads whole values, and the channels of one value can be computed
    together. Logits that need draws of their own pixel are one output per image channel. fields: of its values."""
    ordered = orders_channels(program, fields)
    most = program.shape[0] if ordered else 1  # draws of a pixel
    draws = {value: draws_needed(field).clamp_max(most) for value, field in fields.items()}
    alike = all(len(needed.unique()) == 1 for needed in draws.values())
    if not ordered and alike and all(i.pick is None for i in program.instructions):
        return program
    return _Cutter(program, _labels(program, draws, ordered), ordered).cut()


def _labels(program: Program, draws: dict[int, Tensor], ordered: bool) -> dict[int, Tensor]:
    """Value -> [channels]: channels with one label make a piece. draws: how many each channel needs."""
    labels = {i.out: draws[i.out] for i in program.instructions}
    if ordered:
        for output in program.outputs:
            labels[output] = torch.arange(len(labels[output])) // program.levels
    pointwise = [i for i in program.instructions if i.base is not None and i.base != LEVELS]
    changed = True
    while changed:
        changed = False
        for i in pointwise:
            operands = [step.value for step in i.steps if step.value is not None and step.kind != "layer_norm"]
            base = labels[i.base]
            picked = base if i.pick is None else base[i.pick]
            aligned = torch.stack([picked, labels[i.out], *(labels[v] for v in operands)])
            _, joint = torch.unique(aligned, dim=1, return_inverse=True)
            new_base = base + int(joint.max()) + 1  # channels that are not picked keep to themselves
            new_base[slice(None) if i.pick is None else i.pick] = joint
            for value, label in [(i.base, new_base), *((v, joint) for v in (i.out, *operands))]:
                changed |= len(label.unique()) > len(labels[value].unique())
                labels[value] = label
    return labels


def draws_needed(field: Field) -> Tensor:
    """For each channel of a value, how many channels of its pixel must be drawn before: [channels]."""
    present = field.present()
    return (present * torch.arange(1, present.shape[1] + 1)).amax(1)


class _Cutter:
    def __init__(self, program: Program, labels: dict[int, Tensor], ordered: bool) -> None:
        self._program, self._ordered = program, ordered
        self._channels = {
            value: [(label == kind).nonzero()[:, 0] for kind in label.unique()]
            for value, label in labels.items()
        }
        self._pieces: dict[int, list[int]] = {}  # value -> the new values that are its pieces
        self._out: list[Instruction] = []

    def cut(self) -> Program:
        for i in self._program.instructions:
            if i.base == LEVELS and not self._is_cut_between_image_channels(i):
                self._pieces[i.out] = self._parts_of_input(i)
            else:
                self._pieces[i.out] = [self._piece(i, channels) for channels in self._channels[i.out]]
        draws = self._program.shape[0] if self._ordered else 1
        outputs = [
            self._joined(value, torch.arange(self._program.levels * self._program.shape[0]).chunk(draws)[draw])
            for value in self._program.outputs
            for draw in range(draws)
        ]
        return replace(self._program, instructions=tuple(self._out), outputs=tuple(outputs))

    def _emit(self, i: Instruction, **changes) -> int:
        self._out.append(replace(i, out=len(self._out), **changes))
        return len(self._out) - 1

    def _piece(self, i: Instruction, channels: Tensor) -> int:
        steps = []
        for step in i.steps:
            step = step.picked(channels)
            if step.kind == "layer_norm":
                channels_of = torch.cat(self._channels[step.value]).sort().values
                step = replace(step, value=self._joined(step.value, channels_of))
            elif step.value is not None:
                step = replace(step, value=self._piece_with(step.value, channels))
            steps.append(step)
        changes: dict = dict(channels=len(channels), pick=None, steps=tuple(steps))
        if i.base == LEVELS:
            width = 1 if i.table is None else i.table.shape[1]
            drawn = channels[::width] // width
            changes["pick"] = drawn if i.pick is None else i.pick[drawn]
        elif i.base is not None:
            changes["base"] = self._piece_with(i.base, channels if i.pick is None else i.pick[channels])
        else:
            changes["bias"] = None if i.bias is None else i.bias[channels]
            changes["taps"] = tuple(self._taps(i.taps, channels))
        return self._emit(i, **changes)

    def _piece_with(self, value: int, channels: Tensor) -> int:
        """The piece that is exactly these channels."""
        for piece, mine in zip(self._pieces[value], self._channels[value], strict=True):
            if torch.equal(mine, channels):
                return piece
        raise AssertionError(f"no piece of value {value} has channels {channels.tolist()}")

    def _taps(self, taps: tuple[Tap, ...], columns: Tensor) -> list[Tap]:
        result = []
        device = self._program.device
        for tap in taps:
            for piece, rows in zip(self._pieces[tap.source], self._channels[tap.source], strict=True):
                weight = tap.weight.index_select(0, rows.to(device)).index_select(1, columns.to(device))
                if bool(weight.any()):
                    result.append(Tap(piece, tap.dy, tap.dx, weight))
        return result

    def _joined(self, value: int, channels: Tensor) -> int:
        """A value of these channels, put together again where they were cut."""
        pieces = list(zip(self._pieces[value], self._channels[value], strict=True))
        for piece, rows in pieces:
            if torch.equal(rows, channels):
                return piece
        return self._gathered("joined", pieces, channels)

    def _gathered(self, name: str, pieces: list[tuple[int, Tensor]], channels: Tensor) -> int:
        """A value of these channels; which channels the pieces are of is named beside them."""
        taps = []
        for piece, rows in pieces:
            weight = (rows[:, None] == channels).to(self._program.device, self._program.dtype)
            if bool(weight.any()):
                taps.append(Tap(piece, 0, 0, weight))
        return self._emit(Instruction(0, len(channels), name, taps=tuple(taps)))

    # -- what levels are turned into

    def _is_cut_between_image_channels(self, i: Instruction) -> bool:
        width = i.channels // (self._program.shape[0] if i.pick is None else len(i.pick))
        return all(
            len(rows) % width == 0 and torch.equal(rows, torch.arange(len(rows)) + rows[0] // width * width)
            for rows in self._channels[i.out]
        )

    def _parts_of_input(self, i: Instruction) -> list[int]:
        """Pieces of an input that is made for whole image channels: for those that are drawn together."""
        width = i.channels // self._program.shape[0]
        together = torch.arange(i.channels).split(width if self._ordered else i.channels)
        inputs = [(self._piece(i, rows), rows) for rows in together]
        return [self._gathered(i.name, inputs, channels) for channels in self._channels[i.out]]
