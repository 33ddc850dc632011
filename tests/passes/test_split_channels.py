"""Values that are read in halves, even where that splits an embedded level or the logits of one image channel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, heads
from pixelcnn_fast.passes.split_channels import draws_needed, split_channels
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import Read, Step, Tap
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.receptive_field.fields import receptive_fields
from pixelcnn_fast.program.verify import verify
from tests.passes.test_compose import no_condition
from tests.system.agreement import assert_runtimes_agree

LEVELS = 8


class Halves(nn.Module):
    mask: Tensor

    def __init__(self, colours: int, ordered: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(LEVELS, 4)
        self.conv = nn.Conv2d(2 * colours, LEVELS * colours, 3, padding=1)
        mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]]).repeat(colours, LEVELS, 2 * colours, 1, 1)
        for colour in range(colours if ordered else 0):
            mask[colour, :, : 2 * colour, 1, 1] = 1
        self.register_buffer("mask", mask.flatten(0, 1))
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embedding(images.long()).permute(0, 1, 4, 2, 3)
        gated = (rows[:, :, :2] * torch.sigmoid(rows[:, :, 2:])).flatten(1, 2)
        logits = 9 * F.conv2d(gated, self.conv.weight * self.mask, self.conv.bias, padding=1)
        logits = logits.unflatten(1, (-1, LEVELS))
        few, others = logits[:, :, :3], logits[:, :, 3:]
        return torch.cat([2 * few.tanh(), others * others.sigmoid()], 2).flatten(1, 2)


@pytest.mark.parametrize("colours", [1, 2, 3])
@pytest.mark.parametrize("ordered", [False, True])
def test_same_noise_same_images_as_naive(colours, ordered):
    shape = (colours, 4, 5)
    sampler = Sampler(Halves(colours, ordered), shape, head=heads.Categorical(LEVELS, "N,C*L,H,W"))
    assert len(assert_runtimes_agree(sampler).unique()) > 2


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_what_is_split_is_put_together_for_those_that_read_all_of_it(ordered: bool, norm: bool) -> None:
    """Embedded levels of two image channels, of each the first half gated by the second; and a norm over both."""
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    embedded = FromLevels(0, 8, "embedded", table=random(5, 4))
    halves = torch.tensor([0, 1, 4, 5]), torch.tensor([2, 3, 6, 7])
    first = Pointwise(1, 4, "first", Read(0), halves[0], steps=(Step("tanh"),))
    gated = Pointwise(2, 4, "gated", Read(0), halves[1], steps=(Step("multiply", value=Read(1)),))
    taps = [Tap(2, 0, -1, random(4, 6))]
    if ordered:  # the second image channel sees the first one of its own pixel
        sees = torch.zeros(4, 6, dtype=torch.float64)
        sees[:2, 3:] = 1
        taps.append(Tap(2, 0, 0, random(4, 6) * sees))
    steps = (Step("layer_norm", 1e-5, value=Read(1, 0, -1)),) if norm else ()
    logits = Convolution(3, 6, "logits", tuple(taps), random(6), steps=steps)
    program = Program((2, 4, 5), 3, (embedded, first, gated, logits), (3,), torch.float64)
    split = split_channels(program)
    verify(split)
    assert len(split.outputs) == 1 + ordered
    assert all(i.pick is None for i in split.instructions if isinstance(i, Pointwise))
    levels = torch.randint(5, (2, 2, 4, 5), generator=generator)
    expected, found = (evaluate(p, levels, no_condition) for p in (program, split))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def random_convolution(out: int, source: int, size: tuple[int, int], dx: int) -> Convolution:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(out), dtype=torch.float64)
    return Convolution(out, size[1], f"layer {out}", (Tap(source, 0, dx, weight),))


def twice_gated() -> list[Instruction]:
    """A product of two layers, of which one half is multiplied by the other."""
    halves = torch.tensor([0, 1]), torch.tensor([2, 3])
    return [
        random_convolution(1, 0, (1, 4), -1),
        random_convolution(2, 0, (1, 4), -2),
        Pointwise(3, 4, "product", Read(1), steps=(Step("multiply", value=Read(2)),)),
        Pointwise(4, 2, "half", Read(3), halves[1]),
        Pointwise(5, 2, "gated", Read(3), halves[0], steps=(Step("multiply", value=Read(4)),)),
        random_convolution(6, 5, (2, 3), 0),
    ]


def early_and_late() -> list[Instruction]:
    """A layer whose first half sees the pixel to the left, and its second half its own, which is read from the
    right."""
    left, own = (torch.zeros(1, 4, dtype=torch.float64) for _ in range(2))
    left[:, :2], own[:, 2:] = 1, 2
    early, late = (torch.zeros(4, 3, dtype=torch.float64) for _ in range(2))
    early[:2], late[2:] = 1, 2
    return [
        Convolution(1, 4, "both", (Tap(0, 0, -1, left), Tap(0, 0, 0, own))),
        Convolution(2, 3, "logits", (Tap(1, 0, 0, early), Tap(1, 0, -1, late))),
    ]


@pytest.mark.parametrize("network", [twice_gated, early_and_late])
def test_channels_of_one_value_can_be_computed_together(network: Callable[[], list[Instruction]]) -> None:
    instructions = network()
    program = Program(
        (1, 4, 5), 3, (FromLevels(0, 1, "levels"), *instructions), (instructions[-1].out,), torch.float64
    )
    split = split_channels(program)
    verify(split)
    assert all(len(set(draws_needed(field))) == 1 for field in receptive_fields(split).values())
    levels = torch.randint(5, (2, 1, 4, 5), generator=torch.Generator().manual_seed(0))
    expected, found = (evaluate(p, levels, no_condition) for p in (program, split))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
