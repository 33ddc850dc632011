"""Fuses pointwise instructions into the instruction before them, and batch norm into its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.program.program import Convolution, FromLevels, Instruction, Pointwise, Program


def fuse(program: Program) -> Program:
    """The same program, in which a value that is read once only, by steps, is computed by what reads it.

    Values must be read whole: see ``split_channels``.
    """
    readers = Counter(read.value for i in program.instructions for read in i.reads())
    readers.update(program.outputs)
    fused: dict[int, Instruction] = {}  # by the value they define, in order
    for instruction in program.instructions:
        for base, rest in _ways_to_read(instruction):
            if base in fused and readers[base] == 1 and _can_join(fused[base], rest):
                instruction = _joined(fused.pop(base), rest, fused, readers)
                break
        fused[instruction.out] = instruction
    return replace(program, instructions=tuple(fused.values()))


def _ways_to_read(instruction: Instruction) -> list[tuple[int, Pointwise]]:
    """(value, the instruction as steps on that value): x + y can be read as steps on x or on y."""
    if not isinstance(instruction, Pointwise):
        return []
    ways = [(instruction.base, instruction)]
    if len(instruction.steps) == 1:
        step = instruction.steps[0]
        if step.value is not None and (step.kind == "multiply" or (step.kind == "add" and step.alpha == 1.0)):
            swapped = replace(instruction, base=step.value, steps=(replace(step, value=instruction.base),))
            ways.append((step.value, swapped))
    return ways


def _can_join(first: Instruction, rest: Pointwise) -> bool:
    """False if levels would need other operands: they become a value one by one, as they are drawn."""
    has_operands = any(step.value is not None or step.condition is not None for step in rest.steps)
    return not (isinstance(first, FromLevels) and has_operands)


def _joined(
    first: Instruction, rest: Pointwise, fused: dict[int, Instruction], readers: Counter[int]
) -> Instruction:
    """One instruction for ``first`` and ``rest``, which starts from what ``first`` computes."""
    joined = replace(first, out=rest.out)
    for step in rest.steps:
        if not isinstance(joined, Convolution) or joined.steps:
            joined = replace(joined, steps=joined.steps + (step,))
        elif step.scale is not None and step.shift is not None:
            joined = _scaled(joined, step.scale, step.shift)
        elif step.kind == "add" and (other := _sum_read_once(step.value, fused, readers)) is not None:
            fused.pop(other.out)
            if step.alpha != 1.0:
                zero = torch.zeros_like(_bias(other))
                other = _scaled(other, torch.full_like(zero, step.alpha), zero)
            bias = _bias(other) if joined.bias is None else joined.bias + _bias(other)
            joined = replace(joined, taps=joined.taps + other.taps, bias=bias)
        else:
            joined = replace(joined, steps=(step,))
    return joined


def _sum_read_once(
    value: int | None, fused: dict[int, Instruction], readers: Counter[int]
) -> Convolution | None:
    """The instruction that computes the value, if it is a sum of taps and nothing else reads it."""
    if value is None or readers[value] != 1:
        return None
    instruction = fused.get(value)
    return instruction if isinstance(instruction, Convolution) and instruction.is_sum else None


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
