"""The interface of instructions: what a pass, a runtime or a check may ask any of them.

An instruction computes one value, a feature map of the program's grid, for each pixel: it starts from something, and
puts that through its steps. Values are real numbers in the model's dtype; outside the grid every value is zero. Steps
work channel by channel, unless their kind reads all channels of its operand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pixelcnn_fast.program.operands import Address, Connection, Convert, Exchange, Number, Read, Step, Tap

if TYPE_CHECKING:
    from typing_extensions import Self


class Surroundings(ABC):
    """What an instruction finds around the pixels that it is evaluated for; [...] stands for their axes below."""

    dtype: torch.dtype

    @abstractmethod
    def value(self, read: Read) -> Tensor:
        """What is read there, [..., channels of the value]."""

    @abstractmethod
    def image(self) -> Tensor:
        """The pixels' own levels, [..., image channels]."""

    @abstractmethod
    def zeros(self, channels: int) -> Tensor:
        """Zeros, [..., channels]."""

    def summed(self, i: Instruction) -> Tensor:
        """The bias and the sum of the taps of an instruction, [..., channels]."""
        if not i.taps:
            zeros = self.zeros(i.channels)
            return zeros if i.bias is None else zeros + i.bias
        first, *others = (self.value(tap.read) @ tap.weight for tap in i.taps)
        for product in others:
            first += product
        return first if i.bias is None else first.add_(i.bias)


@dataclass(frozen=True, eq=False)
class Instruction(ABC):
    """Computes one value: it starts from something and puts that through steps.

    out: the value; channels: how many it has; name: the module that it comes from. The methods here answer for its taps
    and its steps; a kind of instruction that starts from anything else answers for that. One that has operands, or
    constants, of its own must answer all questions about them (``REQUIRED``), or its class can't be defined.
    """

    out: int
    channels: int
    name: str
    steps: tuple[Step, ...] = field(default=(), kw_only=True)

    native: ClassVar[str | None] = None  # its kind in program/schema.py, if the compiled runtimes have it
    REQUIRED: ClassVar = {
        "operands": ("channelwise", "connections", "rewired", "picked"),
        "constants": ("converted", "picked"),
    }

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for method, others in cls.REQUIRED.items():
            missing = [other for other in others if other not in vars(cls)]
            if method in vars(cls) and missing:
                raise TypeError(
                    f"{cls.__name__} has {method}() of its own, so it needs {', '.join(missing)}() as well"
                )

    # -- what it starts from

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The weighted reads whose sum it starts from, if it starts from a sum."""
        return ()

    @property
    def bias(self) -> Tensor | None:
        """What is added to the sum of its taps, [channels]; None: zero."""
        return None

    @property
    def is_sum(self) -> bool:
        """Whether it is the sum of its taps, without steps."""
        return bool(self.taps) and not self.steps

    @property
    def reads_levels(self) -> bool:
        """Whether it starts from the levels of its own pixel, so that it comes after they are drawn."""
        return False

    def levels_seen(self, image_channels: int) -> Tensor | None:
        """For each channel, which image channels of its pixel it reads: bool [channels, image channels]; None: none."""
        return None

    def repeated(self) -> tuple[Read, Tensor | None] | None:
        """The value whose channels its steps start from as they are, and which of them (None: all), if there is one."""
        return None

    @abstractmethod
    def start(self, around: Surroundings) -> Tensor:
        """What the steps start from, [..., channels]."""

    @abstractmethod
    def sources(self) -> list[str]:
        """What the steps start from, as text for listings."""

    # -- what it reads

    def reads(self) -> list[Read]:
        """Everything that it reads, listed once per read: taps first, then operands."""
        return [*(tap.read for tap in self.taps), *self.operands()]

    def operands(self) -> list[Read]:
        """What it reads without a weight: the value that it starts from, and what its steps read."""
        return [read for step in self.steps for read in step.reads()]

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        """The operands of which each channel reads one channel: (value, the channels read, in order; None: all)."""
        return [(r.value, None) for step in self.steps if not step.reads_all_channels for r in step.reads()]

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        """Its connections, in the order of ``reads()``. channels_of: how many channels a value has."""
        for tap in self.taps:
            yield Connection(tap.read, tap.connected, tap)
        for step in self.steps:
            for read in step.reads():
                yield Connection(read, step.connected(self.channels, channels_of(read.value)))

    # -- the same with something else in its place

    @property
    def picked_together(self) -> int:
        """How many neighbouring channels can only be picked together."""
        return 1

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        """The same instruction on some of its channels, of which those that are ``picked_together`` stay so.

        exchanged: maps a value and some of its channels to the value that holds exactly those; whole: maps a value of
        which every channel is read to the one to read instead. Taps go on reading the same values.
        """
        steps = tuple(step.picked(channels, exchanged, whole) for step in self.steps)
        return replace(self, channels=len(channels), steps=steps)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        """The same instruction with other operands and taps in place of its own."""
        rewired = replace(self, steps=tuple(step.rewired(operand) for step in self.steps))
        return rewired.with_taps(map(tap, self.taps)) if self.taps else rewired

    def with_taps(self, taps: Iterable[Tap], bias: Tensor | None = None) -> Self:
        """The same instruction with other taps, if it starts from any. bias: in place of its own, unless None."""
        return self

    def converted(self, convert: Convert) -> Self:
        """The same instruction with its constants converted, such as weights and tables."""
        return replace(self, steps=tuple(step.converted(convert) for step in self.steps))

    def native_start(self, number: Number, address: Address, image_channels: int) -> dict[str, Any]:
        """What its steps start from, as fields of ``schema.Instruction``."""
        return {}

    # -- what must hold for it, and how it is shown

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Its constants, each with the shape that it must have."""
        for step in self.steps:
            for constant in (step.scale, step.shift):
                if constant is not None:
                    yield constant, (self.channels,)

    def rules(self, channels_of: Callable[[int], int], image_channels: int) -> Iterator[tuple[bool, str]]:
        """What must hold for what it starts from: whether it does, and the rule."""
        yield from ()

    def line(self, sources: Sequence[str]) -> str:
        """A line of a listing: the value, its name, its channels, what the steps start from, and the steps."""
        steps = "".join(f" | {step}" for step in self.steps)
        return (
            f"%{self.out:<4} {self.name:<24} {self.channels:>5} ch = {' + '.join(sources) or 'constant'}{steps}"
        )

    def __str__(self) -> str:
        return self.line(self.sources())
