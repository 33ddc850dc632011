"""Makes one convolution of two where that takes less work, for example in the links of a Gated PixelCNN."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.operands import Read, Tap
from pixelcnn_fast.program.program import Program


def compose(program: Program) -> Program:
    """Folds a convolution without steps into the convolutions that read it, where that is cheaper.

    They must read it at the same pixel: a value that is read outside the grid is zero, but
    the sum of its taps there may not be. Values that nothing reads any more are left in.
    """
    instructions = {i.out: i for i in program.instructions}
    for value in list(instructions):
        inner = instructions[value]
        if not inner.is_sum or value in program.outputs:
            continue
        readers = [i for i in instructions.values() if any(tap.source == value for tap in i.taps)]
        if _is_cheaper(inner, readers, instructions):
            for reader in readers:
                instructions[reader.out] = composed(inner, reader)
    return replace(program, instructions=tuple(instructions.values()))


def _is_cheaper(inner: Instruction, readers: list[Instruction], program: dict[int, Instruction]) -> bool:
    """Whether composing takes fewer multiply-adds. False if a reader reads another pixel, or one without a value."""
    offsets = {(tap.dy, tap.dx) for i in readers for tap in i.taps if tap.source == inner.out}
    if offsets != {(0, 0)} or any(i.every != inner.every for i in readers):
        return False
    depth, width = sum(len(tap.weight) for tap in inner.taps), sum(i.channels for i in readers)
    stays = any(read.value == inner.out for i in program.values() for read in i.operands())
    return depth * width < inner.channels * width + (0 if stays else depth * inner.channels)


def composed(inner: Instruction, reader: Instruction) -> Instruction:
    """The reader with what ``inner`` does in its own weights. It must read it at the same pixel."""
    weights: dict[tuple[int, int, int], Tensor] = {}
    bias = reader.bias

    def add(source: int, dy: int, dx: int, weight: Tensor) -> None:
        key = (source, dy, dx)
        weights[key] = weights[key] + weight if key in weights else weight

    for tap in reader.taps:
        if tap.read != Read(inner.out):
            add(tap.source, tap.dy, tap.dx, tap.weight)
            continue
        for first in inner.taps:
            product = (first.weight.double() @ tap.weight.double()).to(tap.weight.dtype)
            add(first.source, first.dy, first.dx, product)
        if inner.bias is not None:
            shift = (inner.bias.double() @ tap.weight.double()).to(tap.weight.dtype)
            bias = shift if bias is None else bias + shift
    taps = tuple(Tap(*key, weight) for key, weight in weights.items())
    return reader.with_taps(taps, bias)
