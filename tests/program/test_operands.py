"""Operands that lie at another pixel: what a program means, what it sees, and that passes keep both."""

import pytest
import torch
from torch.nn import functional as F

from pixelcnn_fast.errors import NotCausal
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.passes.retiming import without_reading_ahead
from pixelcnn_fast.program.causality import check_causal
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import Read, Step, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.fields import receptive_fields
from pixelcnn_fast.program.verify import verify
from pixelcnn_fast.runtimes.cpu import CpuRuntime
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job
from tests.needs import RUNTIMES

HEIGHT, WIDTH = 4, 5


def weight(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def program(base: Read, operand: Read, out: Tap, kind: str = "multiply") -> Program:
    """Levels -> %1, which sees the row above -> %2 of it at two pixels -> logits."""
    levels = FromLevels(0, 1, "levels")
    first = Convolution(1, 4, "first", (Tap(0, -1, 0, weight(1, 4)), Tap(0, -1, 1, weight(1, 4))), weight(4))
    gate = Pointwise(2, 4, "gate", base, steps=(Step(kind, value=operand),))
    logits = Convolution(3, 3, "logits", (out,))
    return Program((1, HEIGHT, WIDTH), 3, (levels, first, gate, logits), (3,), torch.float64)


HERE = Tap(2, 0, 0, weight(4, 3))
CASES = {
    "operand above": program(Read(1), Read(1, -1, 0), HERE),
    "operand to the left": program(Read(1), Read(1, 0, -1), HERE, "add"),
    "base above": program(Read(1, -1, 1), Read(1), HERE),
    "moved back later": program(Read(1), Read(1, 1, 0), Tap(2, -1, 0, weight(4, 3))),
}


def meaning(program: Program, levels: torch.Tensor) -> torch.Tensor:
    return evaluate(program, levels, lambda operand: torch.empty(0))


def levels() -> torch.Tensor:
    return torch.randint(1, 9, (2, 1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))


def test_an_operand_is_read_at_its_offset() -> None:
    found = meaning(CASES["operand above"], levels())[:, 0]
    x = levels()[:, 0, :, :, None].double()
    above, right = F.pad(x, (0, 0, 0, 0, 1, 0))[:, :HEIGHT], F.pad(x, (0, 0, 0, 1, 1, 0))[:, :HEIGHT, 1:]
    first = above @ weight(1, 4) + right @ weight(1, 4) + weight(4)
    gate = first * F.pad(first, (0, 0, 0, 0, 1, 0))[:, :HEIGHT]
    torch.testing.assert_close(found, gate @ weight(4, 3))


@pytest.mark.parametrize("name", CASES)
def test_receptive_fields_follow_it(name: str) -> None:
    field = receptive_fields(CASES[name])[3][0, 0].seen.any(0).any(0)
    y, x = 2, 2
    base = meaning(CASES[name], levels())[:, 0, y, x]
    for row in range(HEIGHT):
        for column in range(WIDTH):
            changed = levels()
            changed[:, :, row, column] += 1
            seen = bool((meaning(CASES[name], changed)[:, 0, y, x] != base).any())
            assert seen == bool(field[row - y + HEIGHT - 1, column - x + WIDTH - 1]), (row, column)


@pytest.mark.parametrize("name", CASES)
def test_passes_keep_what_it_means(name: str) -> None:
    for same in (pipeline.simplified(CASES[name]), without_reading_ahead(CASES[name])):
        torch.testing.assert_close(meaning(same, levels()), meaning(CASES[name], levels()))


def test_causality_follows_it() -> None:
    check_causal(CASES["moved back later"])
    leaking = program(Read(1), Read(1, 1, 1), HERE)
    with pytest.raises(NotCausal, match="sees a later pixel"):
        check_causal(leaking)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_follow_it(name: str, runtime: str) -> None:
    phased, head = pipeline.phased(pipeline.simplified(CASES[name])), Categorical(3)
    verify(phased)
    kind = {"eager": EagerRuntime, "cpu": CpuRuntime}[runtime]
    values, parameters = levels() % 3, torch.zeros(2, 1, HEIGHT, WIDTH, 3, dtype=torch.float64)
    noise, known = (
        torch.zeros(2, 1, HEIGHT, WIDTH, dtype=torch.float64),
        torch.ones_like(values, dtype=torch.bool),
    )
    values = values.to(head.value_dtype)
    kind(phased, ConditionProgram(), head).run(
        Job(values=values, known=known, noise=noise, parameters=parameters)
    )
    torch.testing.assert_close(parameters, meaning(CASES[name], values))
