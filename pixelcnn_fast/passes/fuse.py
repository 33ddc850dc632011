"""Fuses pointwise instructions into the instruction before them, and batch norm into its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, Pointwise
from pixelcnn_fast.program.operands import Read
from pixelcnn_fast.program.program import Program


def fuse(program: Program) -> Program:
    """Merges a pointwise instruction into the one that it starts from, if nothing else
    reads that. Values must be read whole: see ``split_channels``."""
    readers = Counter(read.value for i in program.instructions for read in i.reads())
    readers.update(program.outputs)
    fused: dict[int, Instruction] = {}  # by the value they define, in order
    for instruction in program.instructions:
        for rest in _ways_to_read(instruction):
            first = _read_once(rest.base, rest, fused, readers)
            # Levels become a value as they are drawn, which leaves no other operands.
            alone = all(step.value is None and step.condition is None for step in rest.steps)
            if first is not None and (alone or not first.reads_levels):
                del fused[first.out]
                instruction = _joined(first, rest, fused, readers)
                break
        fused[instruction.out] = instruction
    return replace(program, instructions=tuple(fused.values()))


def _ways_to_read(instruction: Instruction) -> list[Pointwise]:
    """The instruction with each value from which it may start: x + y, say, is steps on x or on y."""
    if not isinstance(instruction, Pointwise):
        return []
    ways = [instruction]
    if len(instruction.steps) == 1:
        (step,) = instruction.steps
        if step.value is not None and step.commutes:
            swapped = replace(step, value=instruction.base)
            ways.append(replace(instruction, base=step.value, steps=(swapped,)))
    return ways


def _joined(
    first: Instruction, rest: Pointwise, fused: dict[int, Instruction], readers: Counter[int]
) -> Instruction:
    joined = replace(first, out=rest.out)
    for step in rest.steps:
        other = _read_once(step.value, rest, fused, readers)
        if not isinstance(joined, Convolution) or joined.steps:
            joined = replace(joined, steps=joined.steps + (step,))
        elif step.kind == "affine" and step.scale is not None and step.shift is not None:
            joined = _scaled(joined, step.scale, step.shift)
        elif step.kind == "add" and isinstance(other, Convolution) and other.is_sum:
            del fused[other.out]
            if step.alpha != 1.0:
                zero = torch.zeros_like(_bias(other))
                other = _scaled(other, torch.full_like(zero, step.alpha), zero)
            bias = _bias(other) if joined.bias is None else joined.bias + _bias(other)
            joined = replace(joined, taps=joined.taps + other.taps, bias=bias)
        else:
            joined = replace(joined, steps=(step,))
    return joined


def _read_once(
    read: Read | None, by: Instruction, fused: dict[int, Instruction], readers: Counter[int]
) -> Instruction | None:
    """The instruction that computes what is read, if this is its only reader, at the same pixels."""
    if read is None or not read.is_here or readers[read.value] != 1:
        return None
    found = fused.get(read.value)
    return found if found is not None and found.every == by.every else None


def _bias(instruction: Convolution) -> Tensor:
    if instruction.bias is not None:
        return instruction.bias
    return instruction.taps[0].weight.new_zeros(instruction.channels)


def _scaled(instruction: Convolution, scale: Tensor, shift: Tensor) -> Convolution:
    if not instruction.taps:
        bias = shift if instruction.bias is None else instruction.bias * scale + shift
        return replace(instruction, bias=bias)
    taps = tuple(replace(tap, weight=tap.weight * scale) for tap in instruction.taps)
    return replace(instruction, taps=taps, bias=_bias(instruction) * scale + shift)
