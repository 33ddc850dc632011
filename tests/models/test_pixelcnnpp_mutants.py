"""PixelCNN++ broken in five ways, each of which is noticed: by the check of causality, by the plain version, by what a
mixture's likelihood says of its draws, or by the check of the program against its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import CaptureMismatch, NotCausal, Sampler, check_causal, likelihood
from pixelcnn_fast.check.against_model import check_program, expectations
from pixelcnn_fast.compiler import capture_model
from pixelcnn_fast.errors import InvalidProgram
from pixelcnn_fast.heads import LogisticMixture
from pixelcnn_fast.heads.mixture import Components
from pixelcnn_fast.models import PixelCNNpp, pixelcnnpp, reference
from pixelcnn_fast.passes.pipeline import simplified
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.program.verify import verify
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.agreement import noise
from tests.tiers import few

SHAPE, MIXTURES = (3, 5, 6), 2


def network() -> PixelCNNpp:
    torch.manual_seed(0)
    net = PixelCNNpp(n_filters=4, n_resnets=1, n_mixtures=MIXTURES).double().eval()
    for name, parameter in net.named_parameters():
        if name.endswith("weight_g"):
            parameter.data *= 1.5  # else pixels hardly depend on each other
    return net


def is_as_plain(net: PixelCNNpp) -> bool:
    plain = reference.PixelCNNpp(**net.config).double().eval()
    plain.load_state_dict(net.state_dict())
    images = torch.randint(256, (2, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return bool((net(images) - plain(images)).abs().max() < 1e-4)


# -- the model


def without_shift(number: int) -> Callable[..., Tensor]:
    """In place of ``shifted``: one of its three calls does nothing."""
    calls, shifted = count(), pixelcnnpp.shifted
    return lambda x, *by: x if next(calls) % 3 == number else shifted(x, *by)


@pytest.mark.parametrize("number", range(3), ids=["of rows above", "of the row above", "of the pixel before"])
def test_a_shift_left_out(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixelcnnpp, "shifted", without_shift(number))
    with pytest.raises(NotCausal):
        check_causal(network(), SHAPE)


class Swapped(pixelcnnpp.UpStreams):
    def forward(self, u, ul, seen, labels):
        seen[-1] = seen[-1][::-1]
        return super().forward(ul, u, seen, labels)


@pytest.mark.parametrize("grid", few(range(3), 1))
def test_streams_swapped(grid: int) -> None:
    """The kernels of the u-stream reach to the right, which the other stream's pixels must not."""
    net = network()
    net.up_layers[grid].__class__ = Swapped
    assert not is_as_plain(net)
    with pytest.raises(NotCausal):
        check_causal(net, SHAPE)


class EndsWithTheOther(pixelcnnpp.DownStreams):
    def forward(self, u, ul, seen, labels):
        return super().forward(u, ul, seen, labels)[::-1]


class SkipsInTheWrongOrder(pixelcnnpp.DownStreams):
    def forward(self, u, ul, seen, labels):
        seen[-2:] = seen[:-3:-1]
        return super().forward(u, ul, seen, labels)


@pytest.mark.parametrize(
    "layers, grid", few([(SkipsInTheWrongOrder, 1), (SkipsInTheWrongOrder, 2), (EndsWithTheOther, 2)], 3)
)
def test_what_is_causal_and_another_network(layers: type[pixelcnnpp.DownStreams], grid: int) -> None:
    net = network()
    assert is_as_plain(net)
    net.down_layers[grid].__class__ = layers
    check_causal(net, SHAPE)
    assert not is_as_plain(net)


# -- its head


class Ignoring(LogisticMixture):
    """One of a component's coefficients is not used."""

    which: int | None = None

    def read(self, parameters: Tensor) -> Components:
        found = super().read(parameters)
        used = torch.tensor([number != self.which for number in range(3)])
        return found._replace(coefficients=found.coefficients * used[:, None])


def test_a_coefficient_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn has another probability than the likelihood says, and comes from other noise."""
    net, head, n = network(), LogisticMixture(MIXTURES), 2
    sampler = Sampler(net, SHAPE, head=Ignoring(MIXTURES))
    u = noise(n, sampler.noise_shape)
    for which in (None, 0, 1, 2):
        monkeypatch.setattr(Ignoring, "which", which)
        images, log_p = sampler.sample(n, noise=u, log_probability=True, runtime="eager")
        with torch.no_grad():
            nll, parameters = likelihood.nll(net, images, head=head), head.arranged(net(images), 3)
        excess = head.excess(parameters, *(x[:, None].movedim(2, -1) for x in (images, u)))
        is_right = which is None
        assert bool(((log_p + nll).abs() < 1e-6 * nll).all()) == is_right, which
        assert bool((excess < 1e-9).all()) == is_right, which


# -- its program


def mutants_of_places(program: Program) -> Iterator[tuple[str, Program]]:
    """Wherever a value is read on another grid, one read is a row or a column off, or the
    reader is on a grid of half the columns, in turn."""
    every = {i.out: i.every for i in program.instructions}
    readers = [i for i in program.instructions if any(every[tap.source] != i.every for tap in i.taps)]
    for number, i in enumerate(readers):
        tap = i.taps[number % len(i.taps)]
        dy, dx = ((0, 0), (-1, 0), (0, -1))[number % 3]
        moved = replace(tap, dy=tap.dy + dy, dx=tap.dx + dx)
        mutant = i.with_taps(moved if each is tap else each for each in i.taps)
        if number % 3 == 0:
            mutant = replace(i, every=(i.every[0], 2 * i.every[1]))
        instructions = [mutant if each is i else each for each in program.instructions]
        yield f"{mutant} for {i}", replace(program, instructions=tuple(instructions))


def test_a_place_of_the_cell_mixed_up() -> None:
    model = WrappedModel(network(), SHAPE)
    found = capture_model(model)
    program, expected = simplified(found.program), expectations(model, found.replay)
    verify(program)
    check_program(program, found.conditions, model, expected)
    mutants = [*mutants_of_places(program)]
    assert len(mutants) == 8  # each stream goes down twice, and up twice
    for what, mutant in mutants:
        try:
            verify(mutant)
            check_program(mutant, found.conditions, model, expected)
            pytest.fail(f"it is not noticed: {what}")
        except (InvalidProgram, CaptureMismatch):
            pass
