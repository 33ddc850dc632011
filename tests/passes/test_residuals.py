"""Convolutions read what a residual sum is made of, where that is allowed and worth it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pixelcnn_fast.passes import residuals
from pixelcnn_fast.passes.phases import split_phases
from pixelcnn_fast.passes.residuals import without_waiting_for_residuals
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.operands import Read, Step
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.verify import verify
from tests.passes.test_compose import GENERATOR, no_condition, random, tap

LEVELS = FromLevels(0, 1, "levels")


def program(
    steps: Sequence[Step] = (Step("add", value=Read(1)),), dy: int = 0, left: bool = False
) -> Program:
    """The logits %4 read a residual sum %3 of x, %1, and g, %2. dy: in which row the sum reads g; left: whether g reads
    the present row, as x does not."""
    width, wide = 4, (4, 4)
    x = Convolution(1, width, "x", (tap(0, (1, width)),), random(width))
    activated = Convolution(
        2, width, "activated", (tap(0, (1, width), dy=left - 1, dx=-left),), steps=(Step("tanh"),)
    )
    residual = Convolution(3, width, "residual", (tap(2, wide, dy=dy),), random(width), steps=tuple(steps))
    taps = (tap(3, (width, 3), dy=0), tap(3, (width, 3), dy=0, dx=-1))
    logits = Convolution(4, 3, "logits", taps, random(3))
    return Program((1, 4, 5), 3, (LEVELS, x, activated, residual, logits), (4,), torch.float64)


HERE, LEFT = Read(3), Read(3, 0, -1)
PARTS = {Read(1), Read(2), LEFT}
CASES = {
    "x + W g": (program(), PARTS),
    "x + W g, of which x is known before the row": (program(left=True), PARTS),
    "W g": (program(steps=()), {Read(2), LEFT}),
    "x + W g through a relu": (program(steps=(Step("add", value=Read(1)), Step("relu"))), {HERE, LEFT}),
    "W g - x": (program(steps=(Step("add", alpha=-1.0, value=Read(1)),)), {HERE, LEFT}),
    "x times W g": (program(steps=(Step("multiply", value=Read(1)),)), {HERE, LEFT}),
    "x of another pixel": (program(steps=(Step("add", value=Read(1, -1, 0)),)), {HERE, LEFT}),
    "g of another pixel": (program(dy=-1), {HERE, LEFT}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_logits_read(name):
    given, reads = CASES[name]
    phased = split_phases(given)
    result = without_waiting_for_residuals(phased)
    verify(result)
    logits = result.instructions[-1].instruction
    assert set(logits.reads()) == reads
    levels = torch.randint(3, (2, 1, 4, 5), generator=GENERATOR)
    plain = replace(given, instructions=tuple(i.instruction for i in result.instructions))
    expected, found = (evaluate(p, levels, no_condition) for p in (given, plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("allowed, reads", [(12, PARTS), (11, {HERE, LEFT})])
def test_not_if_that_takes_too_many_weights(monkeypatch, allowed, reads):
    monkeypatch.setattr(residuals, "MOST_WEIGHTS", allowed)  # and there are 4 channels, and 3 logits
    result = without_waiting_for_residuals(split_phases(program()))
    assert set(result.instructions[-1].instruction.reads()) == reads
