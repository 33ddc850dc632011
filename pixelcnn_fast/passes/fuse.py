"""Fold and fuse instructions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.passes.compose import compose
from pixelcnn_fast.passes.split_channels import cut
from pixelcnn_fast.program.fields import Field, receptive_fields
from pixelcnn_fast.program.program import LEVELS, Instruction, Program


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
