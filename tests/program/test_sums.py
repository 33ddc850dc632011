"""The sum of many taps, of which some are one product, is the sum of what each gives alone."""

import pytest
import torch

from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.program import Program

HEIGHT, WIDTH, CHANNELS = 3, 5, 2
CASES = {
    "around": [(0, -1, dx) for dx in range(-2, 3)],
    "left": [(0, 0, -3), (0, 0, -2)],
    "right": [(0, -1, 2), (0, -1, 3)],
    "in any order": [(0, -1, 1), (0, -2, 0), (0, -1, -1), (0, -1, 0)],
    "apart": [(0, -1, -2), (0, -1, 0), (0, -1, 2)],
    "twice": [(0, -1, 0), (0, -1, 0), (0, -1, 1)],
    "partly outside": [(0, -1, -WIDTH), (0, -1, 1 - WIDTH), (0, -1, 2 - WIDTH)],
    "outside": [(0, -1, WIDTH + 1), (0, -1, WIDTH + 2), (0, -HEIGHT, 0), (0, -HEIGHT, 1)],
    "of two values": [(0, -1, -1), (0, -1, 0), (1, -1, 1), (1, -1, 2)],
}


def random(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def meaning(taps: list[Tap]) -> torch.Tensor:
    doubled = Convolution(1, 1, "doubled", (Tap(0, 0, 0, torch.full((1, 1), 2.0, dtype=torch.float64)),))
    program = Program(
        (1, HEIGHT, WIDTH),
        CHANNELS,
        (FromLevels(0, 1, "levels"), doubled, Convolution(2, CHANNELS, "sum", tuple(taps))),
        (2,),
        torch.float64,
    )
    levels = torch.arange(1, 1 + 2 * HEIGHT * WIDTH).view(2, 1, HEIGHT, WIDTH)
    return evaluate(program, levels, lambda operand: torch.empty(0))


@pytest.mark.parametrize("name", CASES)
def test_a_sum_is_that_of_its_taps(name: str) -> None:
    weights = random(len(CASES[name]), 1, CHANNELS)
    taps = [Tap(*place, weight) for place, weight in zip(CASES[name], weights, strict=True)]
    alone = torch.stack([meaning([tap]) for tap in taps]).sum(0)
    torch.testing.assert_close(meaning(taps), alone)
    assert alone.any() or name == "outside"
