"""Recurrences of a program: which instructions they are, in which order they walk, and what their values see."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import NotCausal, Sampler, Unsupported, check_causal, receptive_field
from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.errors import InvalidProgram
from pixelcnn_fast.nn import DiagonalBiLSTM, DiagonalLSTM, RowLSTM
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.operands import ConditionOperand, Step, Tap
from pixelcnn_fast.program.phased import Phase
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.recurrence import components, recurrent
from pixelcnn_fast.program.verify import verify
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.needs import RUNTIMES
from tests.system.agreement import assert_runtimes_agree, noise
from tests.tiers import few

C, LEVELS, SHAPE = 4, 3, (1, 5, 6)


class Net(nn.Module):
    """One layer between a convolution over the pixels before and one over the channels."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.levels = LEVELS
        self.first, self.layer, self.last = nn.Conv2d(1, C, (2, 3)), layer, nn.Conv2d(C, LEVELS, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.pad(x, (3, 0, 1, 0)))[..., :-1]
        return 2 * self.last(self.layer(h))


class Then(nn.Module):
    def __init__(self, layer: nn.Module, body: Any) -> None:
        super().__init__()
        self.layer, self.body = layer, body
        self.across = nn.Conv2d(C, C, (1, 3), padding=(0, 1))

    def forward(self, h: Tensor) -> Tensor:
        return self.body(self, h)


def shifted_down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, -1))


LAYERS = {
    "rows": lambda: RowLSTM(C, C),
    "rows, five taps, learned states": lambda: RowLSTM(C, C, 5, learn_initial_state=True),
    "diagonals": lambda: DiagonalLSTM(C, C),
    "both diagonals": lambda: DiagonalBiLSTM(C, C),
    "both diagonals, learned states": lambda: DiagonalBiLSTM(C, C, learn_initial_state=True),
    "layers before the shift": lambda: Then(
        DiagonalLSTM(C, C, reverse=True), lambda net, h: h + shifted_down(net.across(net.layer(h)).tanh())
    ),
    "one on another": lambda: nn.Sequential(RowLSTM(C, C), DiagonalBiLSTM(C, C), DiagonalLSTM(C, C)),
    "a recurrence over rows above": lambda: Then(
        RowLSTM(C, C), lambda net, h: h + net.layer(shifted_down(h))
    ),
    "ahead, and shifted down": lambda: Then(
        DiagonalLSTM(C, C), lambda net, h: h + shifted_down(net.layer(net.across(h)))
    ),
    "used twice": lambda: Then(DiagonalLSTM(C, C), lambda net, h: net.layer(net.layer(h)) + h),
}


def program_of(net: nn.Module) -> Program:
    model = WrappedModel(net, SHAPE, image_form="unit")
    return capture_model(model).program


@pytest.mark.parametrize("name", few(LAYERS, 7))
def test_all_runtimes_give_the_naive_images(name: str) -> None:
    sampler = Sampler(Net(LAYERS[name]()), SHAPE, image_form="unit")
    u = noise(6, SHAPE)
    naive = assert_runtimes_agree(sampler, 6, u=u, batch_sizes=(1, 4, 6))
    assert len(naive.unique()) == LEVELS
    for runtime in ("eager", "auto"):
        known = torch.rand(SHAPE[1:], generator=torch.Generator().manual_seed(1)) < 0.5
        assert torch.equal(sampler.complete(naive, known, noise=u, runtime=runtime), naive)
        _, found = sampler.sample(6, noise=u, runtime=runtime, top_k=2, log_probability=True)
        _, expected = sampler.sample(6, noise=u, runtime="reference", top_k=2, log_probability=True)
        assert torch.allclose(found, expected)


def test_states_may_be_the_logits() -> None:
    class States(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.first(F.pad(x, (3, 0, 1, 0)))[..., :-1])

    sampler = Sampler(States(RowLSTM(C, LEVELS)), SHAPE, image_form="unit")
    assert_runtimes_agree(sampler)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (1, 6, 1), (1, 7, 5), (1, 2, 33)])
@pytest.mark.parametrize("name", ["rows", "both diagonals, learned states"])
def test_sizes(name: str, shape: tuple[int, int, int], runtime: Any) -> None:
    sampler = Sampler(Net(LAYERS[name]()), shape, image_form="unit")
    u = torch.rand(2, *shape, dtype=torch.float64)
    assert torch.equal(*(sampler.sample(2, noise=u, runtime=r) for r in (runtime, "reference")))


@pytest.mark.parametrize("name", LAYERS)
def test_fields_are_those_that_gradients_show(name: str) -> None:
    """All pixels together show each offset, and none shows more. But from the first column to the last, what leads
    outside of the image and back is counted, too."""
    net = Net(LAYERS[name]())
    seen = receptive_field(net, SHAPE, image_form="unit").seen[0, 0]
    _, height, width = SHAPE
    image = torch.rand(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    logits, shown = net(image), torch.zeros_like(seen)
    for y in range(height):
        for x in range(width):
            (gradient,) = torch.autograd.grad(logits[0, :, y, x].square().sum(), image, retain_graph=True)
            shown[height - 1 - y : 2 * height - 1 - y, width - 1 - x : 2 * width - 1 - x] |= (
                gradient[0, 0] != 0
            )
    assert not (shown & ~seen).any() and torch.equal(seen[:, 1:-1], shown[:, 1:-1])


def test_components_are_in_an_order_in_which_they_can_be_computed() -> None:
    program = program_of(Net(LAYERS["one on another"]()))
    found = components(program.instructions)
    assert sorted(i.out for c in found for i in c.instructions) == [i.out for i in program.instructions]
    known: set[int] = set()
    for component in found:
        needed = {read.value for i in component.instructions for read in i.reads()}
        assert needed <= known | component.values
        known |= component.values
    recurrences = [c for c in found if c.is_recurrence]
    assert [c.is_from_the_right for c in recurrences].count(True) == 1 and len(recurrences) == 4
    for component in recurrences:
        done = torch.zeros(SHAPE[1:], dtype=torch.bool)
        schedule = component.schedule(*SHAPE[1:])
        times, positions = schedule.pixels()
        for time in range(schedule.times):
            y, x = (times == time).nonzero(as_tuple=True)
            assert sorted(positions[y, x].tolist()) == list(range(*schedule.active(time)))
            for dy, dx in component.offsets:
                at_y, at_x = y + dy, x + dx
                inside = (at_y >= 0) & (at_x >= 0) & (at_x < SHAPE[2])
                assert done[at_y[inside], at_x[inside]].all()
            assert not done[y, x].any()
            done[y, x] = True
        assert done.all()


def test_a_scan_has_no_wavefront_and_comes_after_the_row() -> None:
    program = (
        Sampler(Net(LAYERS["both diagonals"]()), SHAPE, image_form="unit")._engine.require_compiled().program
    )
    assert program.wavefront is None
    scan = program.in_phase(Phase.FINISHED)
    assert scan and len({i.scan for i in scan}) == 1 and all(i.name.endswith("right") for i in scan)
    program = Sampler(Net(LAYERS["rows"]()), SHAPE, image_form="unit")._engine.require_compiled().program
    assert program.wavefront is not None and not program.in_phase(Phase.FINISHED)


def test_a_recurrence_over_rows_above_is_all_row_phase() -> None:
    net = Net(LAYERS["a recurrence over rows above"]())
    program = Sampler(net, SHAPE, image_form="unit")._engine.require_compiled().program
    lstm = [i for i in program.instructions if i.name == "layer.layer"]
    assert len(lstm) == 5 and all(i.phase is Phase.ROW for i in lstm)


def test_a_recurrence_may_read_conditions() -> None:
    """A sum over the row so far, which is shifted by one number per image and scaled by a map."""
    one = torch.ones(1, 1, dtype=torch.float64)
    number = ConditionOperand(0, torch.zeros(1, dtype=torch.long), True)
    scales = ConditionOperand(1, torch.arange(12).view(3, 4, 1), True)
    given = {number: torch.tensor([[1.0], [2.0]]), scales: torch.rand(2, 3, 4, 1)}
    given = {operand: x.double() for operand, x in given.items()}
    steps = (Step("add_condition", condition=number), Step("multiply_condition", condition=scales))
    taps = (Tap(0, 0, 0, one), Tap(1, 0, -1, one))
    levels, running = FromLevels(0, 1, "levels"), Convolution(1, 1, "running", taps, steps=steps)
    image = torch.randint(5, (2, 1, 3, 4), generator=torch.Generator().manual_seed(0))
    program = Program((1, 3, 4), 1, (levels, running), (1,), torch.float64)
    found = evaluate(program, image, given.__getitem__)[:, 0, :, :, 0]
    before = torch.zeros(2, 3, dtype=torch.float64)
    for x in range(4):
        before = (image[:, 0, :, x] + before + given[number]) * given[scales][:, :, x, 0]
        torch.testing.assert_close(found[:, :, x], before)


def test_programs_without_recurrences_have_none() -> None:
    program = program_of(Net(nn.Identity()))
    assert not recurrent(program.instructions) and recurrent(program_of(Net(LAYERS["rows"]())).instructions)


def test_a_recurrence_that_needs_itself_is_no_program() -> None:
    one = torch.ones(1, 1)
    levels = FromLevels(0, 1, "levels")
    for taps in ([(0, 0)], [(0, -1), (0, 1)], [(-1, 0), (1, 0)]):
        sums = Convolution(1, 1, "sums", taps=(Tap(0, 0, -1, one), *(Tap(1, *at, one) for at in taps)))
        program = Program((1, 3, 3), 1, (levels, sums), (1,), torch.float32)
        with pytest.raises(InvalidProgram):
            verify(program)


LEAKS = {
    "not shifted down": lambda net, h: h + net.layer(h),
    "shifted to the right": lambda net, h: h + F.pad(net.layer(h), (1, -1)),
    "shifted up": lambda net, h: h + F.pad(net.layer(h), (0, 0, -1, 1)),
    "ahead": lambda net, h: h + F.pad(net.across(net.layer(h)), (2, -2)),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_recurrence_that_shows_later_pixels_is_refused(name: str) -> None:
    net = Net(Then(DiagonalLSTM(C, C, reverse=True), LEAKS[name]))
    with pytest.raises((NotCausal, Unsupported)):
        check_causal(net, SHAPE, image_form="unit")
    with pytest.raises((NotCausal, Unsupported)):
        Sampler(net, SHAPE, image_form="unit")


def test_every_step_of_a_cell_counts() -> None:
    """A cell whose candidate has another activation, or whose gates are in another order, is another model."""
    sums, weight = torch.randn(1, 4 * C, 4, 4, dtype=torch.float64), torch.randn(4 * C, C, 3).double()
    found = torch.ops.pixelcnn_fast.row_lstm(sums, weight, None, None, False, "auto")[0]
    for one, other in pairwise(range(4)):
        order = [0, 1, 2, 3]
        order[one], order[other] = order[other], order[one]
        swapped = [
            x.unflatten(axis, (4, C)).index_select(axis, torch.tensor(order)).flatten(axis, axis + 1)
            for x, axis in ((sums, 1), (weight, 0))
        ]
        h = torch.ops.pixelcnn_fast.row_lstm(*swapped, None, None, False, "auto")[0]
        assert (h - found).abs().max() > 0.1
