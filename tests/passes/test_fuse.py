"""Steps join what they read, batch norms and sums join its weights, and the program means what it did."""

import pytest
import torch
from torch import Tensor

from pixelcnn_fast.passes.fuse import fuse
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import ConditionOperand, Read, Step
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.verify import verify
from tests.passes.test_compose import GENERATOR, random, tap

C = 3
LEVELS = FromLevels(0, 1, "levels")
AFFINE = Step("affine", scale=random(C), shift=random(C))
CONDITION = Step("add_condition", condition=ConditionOperand(0, torch.arange(C), True))


def convolution(out: int, biased: bool = True, *steps: Step) -> Convolution:
    return Convolution(out, C, f"conv{out}", (tap(0, (1, C)),), random(C) if biased else None, steps=steps)


def then(out: int, base: int, *steps: Step) -> Pointwise:
    return Pointwise(out, C, "then", Read(base), steps=steps)


def add(value: int, alpha: float = 1.0) -> Step:
    return Step("add", alpha, value=Read(value))


def constant(*steps: Step) -> Convolution:
    return Convolution(1, C, "constant", bias=random(C), steps=steps)


# instructions after the levels %0, of which the last gives the logits, and how many are left, with the levels
CASES: dict[str, tuple[list[Instruction], int]] = {
    "norm and relu": ([convolution(1), then(2, 1, AFFINE, Step("relu"))], 2),
    "norm without a bias": ([convolution(1, False), then(2, 1, AFFINE)], 2),
    "norm after relu": ([convolution(1, True, Step("relu")), then(2, 1, AFFINE)], 2),
    "norm of a constant": ([constant(), convolution(2), then(3, 1, AFFINE, add(2))], 2),
    "sum": ([convolution(1), convolution(2), then(3, 1, add(2))], 2),
    "sum, the first without a bias": ([convolution(1, False), convolution(2), then(3, 1, add(2))], 2),
    "sum, the second without a bias": ([convolution(1), convolution(2, False), then(3, 1, add(2))], 2),
    "sum without biases": ([convolution(1, False), convolution(2, False), then(3, 1, add(2))], 2),
    "difference": ([convolution(1), convolution(2), then(3, 1, add(2, -1.0))], 2),
    "difference without a bias": ([convolution(1), convolution(2, False), then(3, 1, add(2, -2.0))], 2),
    "difference the other way round": (
        [convolution(1), convolution(2, True, Step("relu")), then(3, 2, add(1, -2.0))],
        3,
    ),
    "sum with what is read twice": (
        [convolution(1), convolution(2), then(3, 2, Step("tanh")), then(4, 1, add(2)), then(5, 4, add(3))],
        4,
    ),
    "sum with itself": ([convolution(1), then(2, 1, add(1))], 3),
    "operand of two steps": ([convolution(1), convolution(2), then(3, 1, add(2), Step("relu"))], 2),
    "two steps on what is read twice": (
        [
            *(convolution(1), convolution(2, True, Step("relu"))),
            *(then(3, 1, Step("tanh")), then(4, 1, add(2), Step("relu")), then(5, 4, add(3))),
        ],
        5,
    ),
    "levels in steps": ([FromLevels(1, C, "table", table=random(5, C)), then(2, 1, AFFINE)], 2),
    "levels and a condition": ([FromLevels(1, C, "table", table=random(5, C)), then(2, 1, CONDITION)], 3),
    "at another pixel": ([convolution(1), Pointwise(2, C, "then", Read(1, -1, 0), steps=(AFFINE,))], 3),
}


@pytest.mark.parametrize("name", CASES)
def test_fused_where_it_is_read_once(name: str) -> None:
    instructions, left = CASES[name]
    program = Program((1, 4, 5), C, (LEVELS, *instructions), (instructions[-1].out,), torch.float64)
    fused = fuse(program)
    levels, condition = torch.randint(5, (2, 1, 4, 5), generator=GENERATOR), random(2, C)

    def given(operand: ConditionOperand) -> Tensor:
        return condition

    expected, found = (evaluate(p, levels, given) for p in (program, fused))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    verify(fused)
    assert len(fused.instructions) == left, str(fused)


def test_an_output_that_another_output_is_made_of_stays() -> None:
    instructions = (LEVELS, convolution(1), then(2, 1, Step("relu")))
    assert len(fuse(Program((2, 4, 5), C, instructions, (1, 2), torch.float64)).instructions) == 3
