"""Layers that read ahead and are shifted back: the same program, in which nothing reads ahead."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.passes.phases import computed_by_rows
from pixelcnn_fast.passes.retiming import without_reading_ahead
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.program import condition_operands
from pixelcnn_fast.program.recurrence import components
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.agreement import assert_runtimes_agree
from tests.tolerances import assert_identical_up_to_rounding

LEVELS = 5


class Shifted(nn.Module):
    """One path applies ``body`` to a layer that reads ahead and shifts that ``rows`` down; another goes left."""

    def __init__(self, body, rows: int = 1, height: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.whole = nn.Conv2d(1, 6, (height, 5))
        self.more = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.left = nn.Conv2d(1, 6, (1, 2))
        self.out = nn.Conv2d(6, LEVELS, 1)
        self.body, self.rows, self.height = body, rows, height

    def forward(self, x):
        ahead = self.body(self, self.whole(F.pad(x, (2, 2, 0, self.height - 1))))
        above = F.pad(ahead, (0, 0, self.rows, 0))[:, :, : x.shape[2]]
        return 3 * self.out(torch.tanh(above) + self.left(F.pad(x, (2, 0)))[..., :-1])


BODIES = {
    "nothing": lambda net, h: h,
    "an activation and a bias": lambda net, h: torch.sigmoid(h) + 1,
    "another layer": lambda net, h: net.more(F.relu(h)) + h,
    "a gate": lambda net, h: (lambda a, b: a.tanh() * b.sigmoid())(*net.more(h).chunk(2, 1)).repeat(
        1, 2, 1, 1
    ),
    "divisions": lambda net, h: F.softsign(net.more(torch.exp(h))) + torch.exp(h).rsqrt(),  # by zero, outside
    "logarithms": lambda net, h: torch.log(torch.exp(h)) + h,  # of zero, outside
    "a map over the image": lambda net, h: (
        h * torch.arange(180, dtype=h.dtype).view(1, 6, 5, 6) / 90
        + torch.arange(30, dtype=h.dtype).view(5, 6) / 30
    ),
    "layer norm": lambda net, h: F.layer_norm(h.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
}


def captured(model: nn.Module, shape=(1, 5, 6)):
    wrapped = WrappedModel(model.double().eval(), shape, levels=LEVELS, image_form="unit")
    levels, given = wrapped.example()
    program, conditions, *_ = capture_model(wrapped)
    return levels, given, program, conditions, wrapped.distribution_parameters(levels, given)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", BODIES)
def test_same_meaning_and_nothing_reads_ahead(name, rows):
    levels, given, program, conditions, logits = captured(Shifted(BODIES[name], rows, height=rows))
    moved = without_reading_ahead(program)
    operands = conditions(condition_operands(moved.instructions), given, EXAMPLE_BATCH)
    assert_identical_up_to_rounding(evaluate(moved, levels, operands.__getitem__), logits)
    by_rows = computed_by_rows(components(moved.instructions))
    for i in moved.instructions:
        for read in i.reads():
            assert read.dy < 0 or (read.dy == 0 and (read.dx <= 0 or read.value in by_rows)), i.name
    assert len(moved.instructions) <= 3 * len(program.instructions) + 2  # one moved copy serves all readers
    model = Shifted(BODIES[name], rows, height=rows).double()
    assert_runtimes_agree(Sampler(model, (1, 5, 6), levels=LEVELS, image_form="unit"))


class TwoShifts(nn.Module):
    """A layer with labels that reads ahead is shifted right twice, so that two copies of it are computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n_classes = 3
        self.ahead, self.out = nn.Conv2d(1, 6, (1, 5), padding=(0, 2)), nn.Conv2d(6, LEVELS, 1)
        self.before, self.after = nn.Embedding(3, 6), nn.Embedding(3, 6)

    def forward(self, x, labels):
        h = torch.tanh(self.ahead(x) + self.before(labels)[:, :, None, None])
        both = F.pad(h, (3, 0))[..., :-3] + F.pad(h, (4, 0))[..., :-4]
        return self.out(torch.tanh(both) + self.after(labels)[:, :, None, None])


def test_copies_of_a_layer_share_what_they_read_of_the_condition():
    sampler = Sampler(TwoShifts(), (1, 5, 6), levels=LEVELS, image_form="unit")
    assert_runtimes_agree(sampler, 5, labels=torch.tensor([0, 1, 2, 0, 1]))


def test_a_program_that_reads_nothing_ahead_is_left_alone():
    _, _, program, _, _ = captured(nn.Sequential(nn.ZeroPad2d((1, 1, 2, -1)), nn.Conv2d(1, LEVELS, (2, 3))))
    assert without_reading_ahead(program) is program
