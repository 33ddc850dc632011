"""From a captured program to a phased one: fold and fuse instructions, then split them by when they can run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from pixelcnn_fast.sampling.compose import compose
from pixelcnn_fast.sampling.legality import Field, receptive_fields
from pixelcnn_fast.sampling.marks import Unsupported
from pixelcnn_fast.sampling.pieces import cut, draws_needed
from pixelcnn_fast.sampling.program import LEVELS, Instruction, Program, Slot, Step, Tap, slots_of

# -- fuse


def fuse(program: Program, fields: dict[int, Field] | None = None) -> Program:
    """Fewer instructions, same meaning: pointwise ones join the convolution before them, batch norm its weights,
    and convolutions one another.

    fields: what the values see, if that is known already.
    """
    program = _without_unread(program)
    program = _without_unread(cut(program, receptive_fields(program) if fields is None else fields))
    readers = Counter(value for i in program.instructions for value in i.reads())
    readers.update(program.outputs)
    fused: dict[int, Instruction] = {}  # by the value they define, in order
    for instruction in program.instructions:
        for base, rest in _ways_to_read(instruction):
            if base in fused and readers[base] == 1 and _can_join(fused[base], rest):
                instruction = _joined(fused.pop(base), rest, fused, readers)
                break
        fused[instruction.out] = instruction
    return _without_unread(compose(replace(program, instructions=tuple(fused.values()))))


def _without_unread(program: Program) -> Program:
    needed = set(program.outputs)
    kept: list[Instruction] = []
    for instruction in reversed(program.instructions):
        if instruction.out in needed:
            needed.update(instruction.reads())
            kept.append(instruction)
    return replace(program, instructions=tuple(reversed(kept)))


def _ways_to_read(instruction: Instruction) -> list[tuple[int, Instruction]]:
    """(value, the instruction as steps on that value): x + y may be read as steps on y as well as on x."""
    if instruction.base is None or instruction.base == LEVELS:
        return []
    ways = [(instruction.base, instruction)]
    if len(instruction.steps) == 1:
        step = instruction.steps[0]
        if step.kind == "multiply" or (step.kind == "add" and step.alpha == 1.0):
            swapped = replace(instruction, base=step.value, steps=(replace(step, value=instruction.base),))
            ways.append((step.value, swapped))
    return ways


def _can_join(first: Instruction, rest: Instruction) -> bool:
    """The levels are turned into their value one by one as they are drawn: no other operand is at hand there."""
    has_operands = any(step.value is not None or step.condition is not None for step in rest.steps)
    return first.base != LEVELS or not has_operands


def _joined(
    first: Instruction, rest: Instruction, fused: dict[int, Instruction], readers: Counter
) -> Instruction:
    """``rest``, which takes its base from ``first`` alone, made one with it."""
    joined = replace(first, out=rest.out)
    for step in rest.steps:
        linear = not joined.steps and joined.base is None
        if linear and step.kind == "affine":
            joined = _scaled(joined, step.scale, step.shift)
        elif (
            linear
            and step.kind == "add"
            and readers[step.value] == 1
            and step.value in fused
            and fused[step.value].is_sum
        ):
            other = fused.pop(step.value)
            if step.alpha != 1.0:
                other = _scaled(
                    other, torch.full_like(_bias(other), step.alpha), torch.zeros_like(_bias(other))
                )
            bias = _bias(other) if joined.bias is None else joined.bias + _bias(other)
            joined = replace(joined, taps=joined.taps + other.taps, bias=bias)
        else:
            joined = replace(joined, steps=joined.steps + (step,))
    return joined


def _bias(instruction: Instruction) -> Tensor:
    if instruction.bias is not None:
        return instruction.bias
    weight = instruction.taps[0].weight
    return weight.new_zeros(instruction.channels)


def _scaled(instruction: Instruction, scale: Tensor, shift: Tensor) -> Instruction:
    if not instruction.taps:
        bias = shift if instruction.bias is None else instruction.bias * scale + shift
        return replace(instruction, bias=bias)
    taps = tuple(replace(tap, weight=tap.weight * scale) for tap in instruction.taps)
    return replace(instruction, taps=taps, bias=_bias(instruction) * scale + shift)


# -- split into phases


class Phase(Enum):
    ROW = "row"  # sees only rows above: a whole row at once
    PIXEL = "pixel"  # needs the present row: pixel by pixel, before its last draw
    DRAWN = "drawn"  # after all of the pixel's levels are drawn


@dataclass(frozen=True)
class Run:
    """Horizontally adjacent taps as one matrix: ``weight`` [width * channels of source, channels of out] applied
    to the source's pixels (row + dy, column + dx ... column + dx + width - 1), which lie side by side in memory."""

    source: int
    dy: int
    dx: int
    width: int
    weight: Tensor


@dataclass(frozen=True)
class PhasedInstruction:
    """out = steps(bias + row runs + pixel runs), or steps(base). Row runs are summed for a whole row beforehand.

    after: how many draws of the pixel come before. With base LEVELS, ``pick`` are the image channels it reads, and
    ``table`` is as in ``Instruction``.
    """

    out: int
    channels: int
    name: str
    phase: Phase
    after: int
    row_runs: tuple[Run, ...]
    pixel_runs: tuple[Run, ...]
    bias: Tensor | None
    base: int | None
    pick: Tensor | None
    table: Tensor | None
    steps: tuple[Step, ...]

    def reads_levels(self, image_channels: int) -> list[int]:
        """The image channels that an input instruction reads."""
        return list(range(image_channels)) if self.pick is None else self.pick.tolist()


@dataclass(frozen=True)
class Storage:
    """What is kept of a value: the last ``rows`` rows, with zero columns on both sides."""

    channels: int
    rows: int
    pad_left: int
    pad_right: int


@dataclass(frozen=True)
class PhasedProgram:
    """Each pixel is drawn in as many draws as there are outputs: all image channels at once, or one after the other.

    Draw d reads ``outputs[d]`` and gives the image channels that ``drawn_by(d)`` names. slots: what the steps read
    of the condition.
    """

    shape: tuple[int, int, int]
    levels: int
    instructions: tuple[PhasedInstruction, ...]
    storage: dict[int, Storage]
    outputs: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def in_phase(self, phase: Phase) -> list[PhasedInstruction]:
        return [i for i in self.instructions if i.phase is phase]

    def drawn_by(self, draw: int) -> slice:
        each = self.shape[0] // len(self.outputs)
        return slice(draw * each, (draw + 1) * each)

    @property
    def slots(self) -> list[Slot]:
        return slots_of(self.instructions)


def computed_by_rows(program: Program) -> set[int]:
    """The values that can be computed for a whole row at once: from rows above, and from such values."""
    rows: set[int] = set()
    for i in program.instructions:
        operands = i.reads()[len(i.taps) :]
        if i.base != LEVELS and all(tap.dy < 0 or (tap.dy == 0 and tap.source in rows) for tap in i.taps):
            if rows.issuperset(operands):
                rows.add(i.out)
    return rows


def split_phases(program: Program) -> PhasedProgram:
    """Raises Unsupported for a causal program that reads ahead and shifts back, which is not supported yet."""
    program = _without_unread(_without_zeros(program))
    fields = receptive_fields(program)
    draws = len(program.outputs)
    row_values = computed_by_rows(program)
    instructions: list[PhasedInstruction] = []
    afters: dict[int, int] = {}
    for i in program.instructions:
        for tap in i.taps:
            if tap.dy > 0 or (tap.dy == 0 and tap.dx > 0 and tap.source not in row_values):
                raise Unsupported(
                    f"{i.name}: tap ({tap.dy:+d}, {tap.dx:+d}) reads ahead of the present pixel and a later layer "
                    "shifts it back; shift the input of this layer instead"
                )
        in_row = [tap.dy < 0 or tap.source in row_values for tap in i.taps]
        after = min(int(draws_needed(fields[i.out]).max()), draws)
        if i.out in program.outputs:  # runtimes keep the logits of one draw at a time
            after = program.outputs.index(i.out)
        here = [tap.source for tap in i.taps if (tap.dy, tap.dx) == (0, 0)] + i.reads()[len(i.taps) :]
        assert all(afters[value] <= after for value in here), f"{i.name} reads of its pixel what is drawn later"
        afters[i.out] = after
        if i.out in row_values:
            phase = Phase.ROW
        else:
            phase = Phase.DRAWN if after == draws else Phase.PIXEL
        instructions.append(
            PhasedInstruction(
                i.out, i.channels, i.name, phase, after,
                row_runs=_runs([tap for tap, row in zip(i.taps, in_row, strict=True) if row]),
                pixel_runs=_runs([tap for tap, row in zip(i.taps, in_row, strict=True) if not row]),
                bias=i.bias, base=i.base, pick=i.pick, table=i.table, steps=i.steps,
            )
        )  # fmt: skip
    return PhasedProgram(
        program.shape,
        program.levels,
        tuple(instructions),
        _storage(program),
        program.outputs,
        program.dtype,
        program.device,
    )


def _without_zeros(program: Program) -> Program:
    """Weights that were scaled by zero read nothing."""
    instructions = (
        replace(i, taps=tuple(tap for tap in i.taps if bool(tap.weight.any()))) for i in program.instructions
    )
    return replace(program, instructions=tuple(instructions))


def _runs(taps: list[Tap]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for tap in sorted(taps, key=lambda t: (t.source, t.dy, t.dx)):
        last = runs[-1] if runs else None
        if last is not None and (last.source, last.dy, last.dx + last.width) == (tap.source, tap.dy, tap.dx):
            runs[-1] = replace(last, width=last.width + 1, weight=torch.cat([last.weight, tap.weight]))
        else:
            runs.append(Run(tap.source, tap.dy, tap.dx, 1, tap.weight))
    return tuple(runs)


def _storage(program: Program) -> dict[int, Storage]:
    taps = [tap for i in program.instructions for tap in i.taps]
    storage = {}
    for i in program.instructions:
        reads = [tap for tap in taps if tap.source == i.out]
        storage[i.out] = Storage(
            i.channels,
            rows=1 + max((-tap.dy for tap in reads), default=0),
            pad_left=max((-tap.dx for tap in reads if tap.dx < 0), default=0),
            pad_right=max((tap.dx for tap in reads if tap.dx > 0), default=0),
        )
    return storage
