"""An instruction that the library does not have: every pass asks it, and carries it through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, receptive_field
from pixelcnn_fast.capture.lower.calls import LOWERINGS
from pixelcnn_fast.capture.lower.calls.registry import LoweringContext
from pixelcnn_fast.capture.lower.materialize import materialised
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.compiler import compile_model
from pixelcnn_fast.native import native
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.calls import View
from pixelcnn_fast.program.instruction import Instruction, Surroundings
from pixelcnn_fast.program.operands import Connection, Convert, Exchange, Read, Tap, identity
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Program
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cpu import why_not_cpu
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

if TYPE_CHECKING:
    from typing_extensions import Self

LEVELS = 5


@dataclass(frozen=True, eq=False)
class Sine(Instruction):
    """Starts from the sine of a value, times a gain for each channel."""

    base: Read
    gain: Tensor

    def sources(self) -> list[str]:
        return [f"sin {self.base.label}"]

    def operands(self) -> list[Read]:
        return [self.base, *super().operands()]

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        return [(self.base.value, None), *super().channelwise()]

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        yield Connection(self.base, identity(self.channels))
        yield from super().connections(channels_of)

    def start(self, around: Surroundings) -> Tensor:
        return self.gain * around.value(self.base).sin()

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        base = self.base.of(exchanged(self.base.value, channels))
        return replace(super().picked(channels, exchanged, whole), base=base, gain=self.gain[channels])

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        return replace(super().rewired(operand, tap), base=operand(self.base))

    def converted(self, convert: Convert) -> Self:
        return replace(super().converted(convert), gain=convert(self.gain))

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        yield self.gain, (self.channels,)
        yield from super().constants(channels_of)


def sine(t: LoweringContext, x: View) -> Map:
    b, shifted = t.builder, t.map(x)
    if len(shifted.sources) == 1:
        (s,) = shifted.sources
        b.states.add(s)  # so that it is read where it lies
        if (base := b.shifted_state(shifted, s)) is not None:
            gain = torch.ones(shifted.shape[1], dtype=b.dtype)
            return b.whole(b.emit(Sine, shifted.shape[1], base=base, gain=gain))
    found, to = materialised(b, shifted), {}
    for s in found.sources:
        channels = b.space.channels(s)
        gain = torch.ones(channels, dtype=b.dtype)
        to[s] = b.emit(Sine, channels, b.space.frame(s), base=Read(b.out(s)), gain=gain)
    return b.moved(found, to)


class Ordered(nn.Module):
    """Colours see those before them, so values are split by channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = MaskedConv2d(2, 6, 3, "A", channel_groups=(torch.arange(2), torch.arange(6) % 2))
        colours = torch.arange(6) % 2, torch.arange(2 * LEVELS) % 2
        self.last = MaskedConv2d(6, 2 * LEVELS, 1, "B", channel_groups=colours)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x.float() / 3))
        y = self.last(torch.sin(2 * h) + h)
        n, _, height, width = y.shape
        return 3 * y.view(n, LEVELS, 2, height, width).transpose(1, 2)


class Shifted(nn.Module):
    """A stack that reads ahead and is shifted down, so that instructions are moved."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.first = nn.Conv2d(2, 6, 3, padding=1), MaskedConv2d(2, 6, 3, "A")
        self.second = MaskedConv2d(6, 6, 3, "B")
        self.last = nn.Conv2d(6, 2 * LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() / 3
        above = F.pad(torch.sin(2 * self.above(x) + 1), (0, 0, 2, 0))[:, :, :-2]
        h = torch.sin(above + self.first(x))
        diagonal = torch.sin(F.pad(self.second(h), (1, 0, 1, 0))[:, :, :-1, :-1])
        y = self.last(h + diagonal)
        return 3 * y.view(len(y), 2, LEVELS, *x.shape[2:])


@pytest.fixture(autouse=True)
def _lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOWERINGS, "sin", sine)


def net(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize(("kind", "precision"), [(Ordered, "same"), (Shifted, "bf16")])
def test_every_pass_carries_it_through(
    kind: type[nn.Module], precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, int] = {}

    def watch(name: str, program: Program | PhasedProgram) -> None:
        inner = (getattr(i, "instruction", i) for i in program.instructions)
        found[name] = sum(isinstance(i, Sine) for i in inner)

    monkeypatch.setattr(pipeline, "watches", [*pipeline.watches, watch])
    program = compile_model(WrappedModel(net(kind), (2, 5, 4), levels=LEVELS), precision).program
    for runtime in pipeline.TAILS:
        pipeline.for_runtime(runtime, program)
    exact = {"rounded_weights"} if precision == "same" else set()
    assert found.keys() == {"capture", *(each.__name__ for each in pipeline.PASSES)} - exact
    assert min(found.values()) >= found["capture"] > 0


@pytest.mark.parametrize("kind", [Ordered, Shifted])
def test_it_is_sampled_and_refreshed(kind: type[nn.Module]) -> None:
    model = net(kind)
    sampler = Sampler(model, (2, 5, 4), levels=LEVELS)
    u = torch.rand(3, *sampler.noise_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    why = why_not_cpu(sampler._engine.require_compiled().program, sampler.head)
    assert "Sine is computed in Python only" in str(why) or native() is None
    for _ in range(2):
        expected = sampler.sample(3, noise=u, runtime="reference")
        assert torch.equal(sampler.sample(3, noise=u), expected)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1.5)
        sampler.refresh()
    assert receptive_field(model, (2, 5, 4), levels=LEVELS).leak is None


def test_a_kind_that_forgets_an_answer_can_t_be_defined() -> None:
    with pytest.raises(TypeError, match=r"needs channelwise, connections, rewired, picked\(\) as well"):

        class Forgetful(Instruction):
            def operands(self) -> list[Read]:
                return [Read(0)]

    with pytest.raises(TypeError, match=r"it has constants\(\)|needs converted, picked\(\) as well"):

        class Constant(Instruction):
            def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
                yield from ()
