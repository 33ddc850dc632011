"""Two convolutions in a row become one where that is cheaper and means the same."""

from dataclasses import replace

import pytest
import torch

from pixelcnn_fast.passes.compose import compose
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import ConditionOperand, Read, Step, Tap
from pixelcnn_fast.program.program import Program

GENERATOR = torch.Generator().manual_seed(0)


def random(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=GENERATOR, dtype=torch.float64)


def tap(source: int, channels: tuple[int, int], dy: int = -1, dx: int = 0) -> Tap:
    return Tap(source, dy, dx, random(*channels))


def chain(inner: int, *readers: Instruction, steps: tuple[Step, ...] = ()) -> Program:
    """Levels %0 -> %1, a sum over them with ``inner`` channels -> ``readers``, of which the last gives 3 logits."""
    levels = FromLevels(0, 1, "levels")
    taps = (tap(0, (1, inner)), tap(0, (1, inner), dx=1))
    first = Convolution(1, inner, "inner", taps, random(inner), steps=steps)
    return Program((1, 4, 5), 3, (levels, first, *readers), (readers[-1].out,), torch.float64)


def at_pixel(out: int, channels: tuple[int, int], *more: Tap) -> Convolution:
    return Convolution(out, channels[1], "reader", (tap(1, channels, dy=0), *more), random(channels[1]))


WIDE, NARROW = (8, 3), (1, 3)
CASES = {
    "wide between narrow": (chain(8, at_pixel(2, WIDE)), True),
    "beside a tap at the same pixel": (chain(8, at_pixel(2, WIDE, tap(0, (1, 3)))), True),
    "two readers": (chain(8, at_pixel(2, (8, 4)), at_pixel(3, WIDE, tap(2, (4, 3)))), True),
    "a reader without a bias": (chain(8, replace(at_pixel(2, WIDE), bias=None)), True),
    "kept for another reader": (
        chain(8, Pointwise(2, 8, "other", Read(1)), at_pixel(3, WIDE, tap(2, WIDE))),
        True,
    ),
    "narrow: more expensive": (chain(1, at_pixel(2, NARROW)), False),
    "read at another pixel": (chain(8, at_pixel(2, WIDE, tap(1, WIDE))), False),
    "not linear": (chain(8, at_pixel(2, WIDE), steps=(Step("relu"),)), False),
}


def no_condition(operand: ConditionOperand) -> torch.Tensor:
    raise AssertionError("these programs read no condition")


@pytest.mark.parametrize("name", CASES)
def test_composed_where_it_pays(name):
    program, composes = CASES[name]
    composed = compose(program)
    assert (
        any(t.source == 1 for i in composed.instructions if isinstance(i, Convolution) for t in i.taps)
        != composes
    )
    levels = torch.randint(3, (2, 1, 4, 5), generator=GENERATOR)
    expected, result = (evaluate(p, levels, no_condition) for p in (program, composed))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
