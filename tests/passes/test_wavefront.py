"""A wavefront computes everything before it is read, and starts rows as early as that allows."""

from functools import cache

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.passes.wavefront import one_row_at_a_time
from pixelcnn_fast.program.phased import Phase, PhasedInstruction, PhasedProgram
from tests.needs import needs_native
from tests.system.networks import pixelcnn, two_stacks

MODELS = {
    "kernel 3": (pixelcnn(kernel=3), (1, 9, 12), 2),
    "kernel 7": (pixelcnn(kernel=7), (1, 9, 12), 4),
    "7 at width 4": (pixelcnn(kernel=7), (1, 9, 4), None),
    "one column": (pixelcnn(kernel=3), (1, 9, 1), None),
    "vertical stack": (two_stacks(n_classes=None), (2, 9, 12), 4),
    "rows of LSTMs": (PixelRNN("row_lstm", 1, 5, 2, kernel_size=3).eval(), (1, 9, 12), 2),
}


# Where a stack reads further to the right than a row is long, a row that has ended is not enough.
NARROW = {"stack at width 3": (two_stacks(n_classes=None), (2, 5, 3), None)}


@cache
def sampler_of(name: str) -> Sampler:
    model, shape, _ = (MODELS | NARROW)[name]
    return Sampler(model, shape)


def program_of(name: str) -> PhasedProgram:
    return sampler_of(name)._engine.require_compiled().program


@pytest.mark.parametrize("name", MODELS)
def test_lag_is_the_least(name):
    front = program_of(name).wavefront
    assert (front.lag if front else None) == MODELS[name][2]


@pytest.mark.parametrize("name", [*MODELS, *NARROW])
def test_without_another_wavefront_rows_follow_each_other(name):
    _, shape, lag = (MODELS | NARROW)[name]
    program = program_of(name)
    front = one_row_at_a_time(program).wavefront
    assert front is not None and (front is program.wavefront if lag else front.lag >= shape[2])


def reads_of(i: PhasedInstruction) -> list[tuple[int, int, int, bool]]:
    """(value, dy, the last dx, whether it is summed up for the rows above)"""
    runs = [(run, True) for run in i.row_runs] + [(run, False) for run in i.pixel_runs]
    taps = [(run.source, run.dy, run.dx + run.width - 1, in_row) for run, in_row in runs]
    return taps + [(read.value, read.dy, read.dx, False) for read in i.instruction.operands()]


@pytest.mark.parametrize("teams", [1, 2])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_read_before_it_is_computed(name, chunk, teams):
    """Of two teams, one computes what the steps of a chunk begin with before the other has begun the previous chunk."""
    program = one_row_at_a_time(program_of(name))
    front, (_, height, width) = program.wavefront, program.shape
    assert front is not None
    lag, longest = front.lag + teams * chunk - 1, max(front.leads.values())
    done: set[tuple[int, int, int]] = set()
    assert longest > 0 or name != "vertical stack"

    def visit(i, t, columns, row_phase):
        start = {y: t - lag * y + front.leads[i.out] for y in range(height)}
        pixels = [
            (y, x) for y in range(height) for x in range(start[y], start[y] + columns) if 0 <= x < width
        ]
        for y, x in pixels:
            for source, dy, dx, summed_first in reads_of(i):
                if (summed_first or i.phase is Phase.ROW) == row_phase:
                    if 0 <= y + dy and 0 <= x + dx < width:
                        assert (source, y + dy, x + dx) in done, (i.name, t, y, x, dy, dx)
        if row_phase == (i.phase is Phase.ROW):
            done.update((i.out, y, x) for y, x in pixels)

    for t in range(-longest - -longest % chunk - teams * chunk, width + lag * (height - 1)):
        if t % chunk == 0:
            for i in program.instructions:
                visit(i, t + (teams - 1) * chunk, chunk, row_phase=True)
        for phase in (Phase.PIXEL, Phase.DRAWN):
            for i in program.in_phase(phase):
                visit(i, t, 1, row_phase=False)
    assert len(done) == len(program.instructions) * height * width


@needs_native
@pytest.mark.parametrize("name", MODELS)
def test_waves_and_single_rows_give_the_same_bits(name):
    """Few images are sampled in waves, many row by row."""
    sampler = sampler_of(name)
    images = torch.randint(0, 256, (30, *sampler.shape))
    whole = torch.cat([sampler.logits(part) for part in images.split(15)])
    for size in (1, 2, 4, 7):
        assert torch.equal(torch.cat([sampler.logits(part) for part in images.split(size)]), whole)
