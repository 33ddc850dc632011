"""Lowers the recurrent ops to instructions that read what later ones computed at earlier pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.pixels import by_batch
from pixelcnn_fast.capture.lower.calls.registry import LoweringContext, lowers
from pixelcnn_fast.capture.lower.materialize import gathered
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import View
from pixelcnn_fast.program.grids import WHOLE
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, Pointwise
from pixelcnn_fast.program.operands import Read, Step, Tap

GATES = ("sigmoid", "sigmoid", "tanh", "sigmoid")  # of i, f, g and o
UP, LEFT, RIGHT = (-1, 0), (0, -1), (0, 1)


class _StateTap(NamedTuple):
    """A tap on the state, weight [h, 4h]; ``direction`` leads out of the image to the initial state."""

    direction: tuple[int, int]
    dx: int
    weight: Tensor

    @property
    def at(self) -> tuple[int, int]:
        return self.direction[0], self.direction[1] + self.dx


@lowers("row_lstm")
def _row_lstm(
    t: LoweringContext, sums: View, weight: View, h0: View | None, c0: View | None, *rest: Any
) -> Map:
    matrices = t.constant(weight)
    radius = matrices.shape[2] // 2
    taps = [_StateTap(UP, k - radius, matrix.T) for k, matrix in enumerate(matrices.unbind(2))]
    return _lstm(t.builder, t.map(sums), taps, UP, t.constant(h0), t.constant(c0))


@lowers("diagonal_lstm")
def _diagonal_lstm(
    t: LoweringContext, sums: View, weight: View, h0: View | None, c0: View | None, reverse: bool, *rest: Any
) -> Map:
    before = RIGHT if reverse else LEFT
    directions = zip((UP, before), t.constant(weight).unbind(2), strict=True)
    taps = [_StateTap(direction, 0, matrix.T) for direction, matrix in directions]
    return _lstm(t.builder, t.map(sums), taps, before, t.constant(h0), t.constant(c0))


@by_batch
def _lstm(
    b: Builder,
    sums: Map,
    taps: Sequence[_StateTap],
    before: tuple[int, int],
    h0: Tensor | None,
    c0: Tensor | None,
) -> Map:
    """The map h. before: where the cell before lies."""
    hidden = len(taps[0].weight)
    if tuple(sums.shape[2:]) != tuple(b.space.grid):
        size, image = ("×".join(map(str, pair)) for pair in (sums.shape[2:], b.space.grid))
        raise Unsupported(
            f"a recurrence over {size} pixels of an image of {image}: let it see the whole map, and crop or shift what "
            "it gives"
        )
    whole = gathered(b, sums, WHOLE)
    parts = [b.out(b.selected(whole, [*range(k * hidden, (k + 1) * hidden)])) for k in range(4)]
    borders = [] if h0 is None else [_border(b, tap, h0 @ tap.weight) for tap in taps]
    cell0 = (
        None
        if c0 is None
        else _emit(b, Convolution, hidden, taps=(_border(b, _StateTap(before, 0, c0), c0),))
    )
    # The states are read before they are defined, by numbers that are counted ahead.
    c = len(b.instructions) + 2 * len(GATES) + 1 + (cell0 is not None)
    h = c + 1
    gates = []
    for k, (part, activation) in enumerate(zip(parts, GATES, strict=True)):
        mine = slice(k * hidden, (k + 1) * hidden)
        read = [Tap(h, *tap.at, tap.weight[:, mine].contiguous()) for tap in taps]
        read += [Tap(tap.source, tap.dy, tap.dx, tap.weight[:, mine].contiguous()) for tap in borders]
        live = tuple(tap for tap in read if tap.is_live)
        state = _emit(b, Convolution, hidden, taps=live)
        steps = (Step("add", value=Read(part)), Step(activation))
        gates.append(_emit(b, Pointwise, hidden, base=Read(state), steps=steps))
    i, f, g, o = gates
    new = _emit(b, Pointwise, hidden, base=Read(i), steps=(Step("multiply", value=Read(g)),))
    previous = Read(c, *before)
    if cell0 is not None:
        with_initial = (Step("add", value=Read(cell0)),)
        previous = Read(_emit(b, Pointwise, hidden, base=previous, steps=with_initial))
    of_cell = (Step("multiply", value=previous), Step("add", value=Read(new)))
    assert c == _emit(b, Pointwise, hidden, base=Read(f), steps=of_cell)
    of_state = (Step("tanh"), Step("multiply", value=Read(o)))
    assert h == _emit(b, Pointwise, hidden, base=Read(c), steps=of_state)
    b.states.add(b.source(h))
    return b.whole(b.source(h))


def _border(b: Builder, tap: _StateTap, weight: Tensor) -> Tap:
    """A tap on a vector [channels] that is there where a tap on the state meets the initial state."""
    one = torch.ones(1, 1, dtype=b.dtype, device=b.device)
    ones = _emit(b, Convolution, 1, bias=one[0])
    outside = (Tap(ones, 0, 0, one), Tap(ones, *tap.direction, -one))
    return Tap(_emit(b, Convolution, 1, taps=outside), 0, tap.dx, weight[None])


def _emit(b: Builder, kind: type[Instruction], channels: int, **fields: Any) -> int:
    return b.out(b.emit(kind, channels, **fields))
