"""The causal program: what a captured model becomes.

A program is a list of instructions on feature maps ("values") of one grid. An instruction starts from the levels
(``FromLevels``), from a sum of taps (``Convolution``) or from another value (``Pointwise``), and puts that through its
steps. All three answer the same questions: what they read and at which offset, which channels of it, what they mean in
PyTorch, and what they become on some of their channels. So a pass asks an instruction and need not know its kind.
Values are real numbers in the model's dtype; outside the grid every value is zero. Steps work channel by channel,
unless their kind reads all channels of its operand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pixelcnn_fast.program.steps import KINDS
from pixelcnn_fast.program.zeros import lets_through

if TYPE_CHECKING:
    from typing_extensions import Self

# Maps a value and some of its channels, [n], to the value that holds exactly those.
Exchange = Callable[[int, Tensor], int]
# Maps a constant to what is used in its place, of the same shape.
Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Read:
    """Where an instruction reads a value: at (row + dy, column + dx)."""

    value: int
    dy: int = 0
    dx: int = 0

    @property
    def is_here(self) -> bool:
        """Whether it is at the pixel itself."""
        return (self.dy, self.dx) == (0, 0)

    @property
    def label(self) -> str:
        """As listings show it, without an offset of zero."""
        return f"%{self.value}" if self.is_here else str(self)

    def of(self, value: int) -> Read:
        """Another value, read at the same offset."""
        return replace(self, value=value)

    def __str__(self) -> str:
        return f"%{self.value}({self.dy:+d}, {self.dx:+d})"


@cache
def identity(channels: int) -> Tensor:
    """Each channel and itself: bool [channels, channels]. Not to be written to."""
    return torch.eye(channels, dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Tap:
    """``weight`` [channels of source, channels of out] applied to the source at (row + dy, column + dx)."""

    source: int
    dy: int
    dx: int
    weight: Tensor

    @property
    def read(self) -> Read:
        return Read(self.source, self.dy, self.dx)

    @cached_property
    def connected(self) -> Tensor:
        """For each channel of out, which of the source's it needs: bool [channels of out, channels of source]."""
        return lets_through(self.weight).T.cpu()

    @cached_property
    def is_live(self) -> bool:
        return bool(self.connected.any())


@dataclass(frozen=True, eq=False)
class ConditionOperand:
    """An operand that depends on the condition alone, or on nothing: elements of a recorded call's result.

    node: the call; index: into the flattened result, or with ``per_image`` into each image's flattened part of it:
    [channels], or [H, W, channels] if the operand varies over pixels.
    """

    node: int
    index: Tensor
    per_image: bool

    @property
    def varies_over_pixels(self) -> bool:
        return self.index.dim() == 3

    def picked(self, channels: Tensor) -> ConditionOperand:
        return replace(self, index=self.index[..., channels])

    def shifted(self, dy: int, dx: int) -> ConditionOperand:
        """What holds at every pixel what this one holds at (dy, dx) from it; outside the image, anything."""
        if not self.varies_over_pixels or (dy, dx) == (0, 0):
            return self
        height, width, _ = self.index.shape
        rows, columns = (
            (torch.arange(size) + by).clamp(0, size - 1) for size, by in ((height, dy), (width, dx))
        )
        return replace(self, index=self.index[rows[:, None], columns])


@dataclass(frozen=True)
class Step:
    """One operation on an instruction's sum x, channel by channel.

    kind: a name in ``program.steps.KINDS``, which says what alpha means and which operand it has: ``value``,
    ``condition``, or ``scale`` and ``shift``, both [channels]. ``program.formulas`` has its formula.
    """

    kind: str
    alpha: float = 1.0
    value: Read | None = None
    condition: ConditionOperand | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind} {self.value.label}"

    @property
    def reads_all_channels(self) -> bool:
        """Whether every channel reads all channels of the operand, and not just its own."""
        return KINDS[self.kind].reads_all_channels

    @property
    def is_infinite_at_zero(self) -> bool:
        return KINDS[self.kind].is_infinite_at_zero(self.alpha)

    @property
    def commutes(self) -> bool:
        """Whether x and the value that it reads may change places."""
        return self.value is not None and self.alpha == 1.0 and KINDS[self.kind].commutes

    def reads(self) -> list[Read]:
        return [] if self.value is None else [self.value]

    def connected(self, channels: int, of: int) -> Tensor:
        """For each channel, the channels of the operand that it reads: bool [channels, of]."""
        if self.reads_all_channels:
            return torch.ones(channels, of, dtype=torch.bool)
        return identity(channels)

    def rewired(self, operand: Callable[[Read], Read]) -> Step:
        """The same step with another value as its operand."""
        return self if self.value is None else replace(self, value=operand(self.value))

    def converted(self, convert: Convert) -> Step:
        """The same step with its constants converted."""
        if self.scale is None or self.shift is None:
            return self
        return replace(self, scale=convert(self.scale), shift=convert(self.shift))

    def shifted(self, dy: int, dx: int) -> Step:
        """The same step with what depends on the condition alone taken from (dy, dx)."""
        return self if self.condition is None else replace(self, condition=self.condition.shifted(dy, dx))

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Step:
        """The same step on some of its channels; see ``Instruction.picked``."""
        if self.value is not None:
            value = self.value.value
            value = whole(value) if self.reads_all_channels else exchanged(value, channels)
            return replace(self, value=self.value.of(value))
        if self.condition is not None:
            return replace(self, condition=self.condition.picked(channels))
        if self.scale is not None and self.shift is not None:
            return replace(self, scale=self.scale[channels], shift=self.shift[channels])
        return self


@dataclass(frozen=True, eq=False)
class Connection:
    """One thing that an instruction reads, channel by channel.

    channels: bool [channels of out, channels of the value]: for each channel, the channels of the value that it reads.
    tap: the tap that reads it, or None for an operand.
    """

    read: Read
    channels: Tensor
    tap: Tap | None = None


class Surroundings(Protocol):
    """What an instruction finds around the pixels that it is evaluated for; [...] stands for their axes below."""

    dtype: torch.dtype

    def value(self, read: Read) -> Tensor:
        """What is read there, [..., channels of the value]."""

    def image(self) -> Tensor:
        """The pixels' own levels, [..., image channels]."""

    def zeros(self, channels: int) -> Tensor:
        """Zeros, [..., channels]."""


@dataclass(frozen=True, eq=False)
class Instruction(ABC):
    """Computes one value: it starts from something and puts that through steps.

    out: the value; channels: how many it has; name: the module that it comes from. The methods here answer for the
    steps; each kind of instruction adds what it starts from.
    """

    out: int
    channels: int
    name: str
    steps: tuple[Step, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def reads(self) -> list[Read]:
        """Everything that it reads, listed once per read: taps first, then operands."""
        return self.operands()

    def operands(self) -> list[Read]:
        """What it reads without a weight: the value that it starts from, and what its steps read."""
        return [read for step in self.steps for read in step.reads()]

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        """The operands of which each channel reads one channel: (value, the channels read, in order; None: all)."""
        return [(r.value, None) for step in self.steps if not step.reads_all_channels for r in step.reads()]

    @abstractmethod
    def sources(self) -> list[str]:
        """What the steps start from, as text for listings."""

    def line(self, sources: Sequence[str]) -> str:
        """A line of a listing: the value, its name, its channels, what the steps start from, and the steps."""
        steps = "".join(f" | {step}" for step in self.steps)
        return (
            f"%{self.out:<4} {self.name:<24} {self.channels:>5} ch = {' + '.join(sources) or 'constant'}{steps}"
        )

    def __str__(self) -> str:
        return self.line(self.sources())

    @abstractmethod
    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        """Its connections, in the order of ``reads()``. channels_of: how many channels a value has."""
        for step in self.steps:
            for read in step.reads():
                yield Connection(read, step.connected(self.channels, channels_of(read.value)))

    def levels_seen(self, image_channels: int) -> Tensor | None:
        """For each channel, which image channels of its pixel it reads: bool [channels, image channels]; None: none."""
        return None

    @abstractmethod
    def start(self, around: Surroundings) -> Tensor:
        """What the steps start from, [..., channels]."""

    @abstractmethod
    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        """The same instruction on some of its channels.

        exchanged: maps a value and some of its channels to the value that holds exactly those; whole: maps a value of
        which every channel is read to the one to read instead. Taps go on reading the same values.
        """
        steps = tuple(step.picked(channels, exchanged, whole) for step in self.steps)
        return replace(self, channels=len(channels), steps=steps)

    @abstractmethod
    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        """The same instruction with other operands and taps in place of its own."""
        return replace(self, steps=tuple(step.rewired(operand) for step in self.steps))

    @abstractmethod
    def converted(self, convert: Convert) -> Self:
        """The same instruction with its constants converted, such as weights and tables."""
        return replace(self, steps=tuple(step.converted(convert) for step in self.steps))


@dataclass(frozen=True, eq=False)
class FromLevels(Instruction):
    """Starts from the levels of its own pixel, each as a number or as a row of a table.

    pick: the image channels that are taken, in rising order (None: all). table: [levels, width] turns each level into
    ``width`` channels: one-hot vectors, or an embedding.
    """

    pick: Tensor | None = None
    table: Tensor | None = None

    @property
    def width(self) -> int:
        """How many channels one image channel becomes."""
        return 1 if self.table is None else self.table.shape[1]

    def image_channels(self, of: int) -> Tensor:
        """The image channels that are taken from an image with ``of`` of them."""
        return torch.arange(of) if self.pick is None else self.pick

    def sources(self) -> list[str]:
        if self.pick is None:
            return ["levels"]
        return [f"levels of channel {', '.join(map(str, self.pick.tolist()))}"]

    def reads(self) -> list[Read]:
        return super().reads()

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        return super().connections(channels_of)

    def levels_seen(self, image_channels: int) -> Tensor | None:
        own = self.image_channels(image_channels).repeat_interleave(self.width)
        return own[:, None] == torch.arange(image_channels)

    def start(self, around: Surroundings) -> Tensor:
        levels = around.image()
        if self.pick is not None:
            levels = levels[..., self.pick]
        return levels.to(around.dtype) if self.table is None else self.table[levels.long()].flatten(-2)

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        """Only whole image channels can be picked."""
        image_channels = channels[:: self.width] // self.width
        pick = image_channels if self.pick is None else self.pick[image_channels]
        return replace(super().picked(channels, exchanged, whole), pick=pick)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        return super().rewired(operand, tap)

    def converted(self, convert: Convert) -> Self:
        return replace(super().converted(convert), table=None if self.table is None else convert(self.table))


@dataclass(frozen=True, eq=False)
class Convolution(Instruction):
    """Starts from a bias, [channels] (None: zero), and the sum of its taps; with neither it is a constant."""

    taps: tuple[Tap, ...] = ()
    bias: Tensor | None = None

    @property
    def is_sum(self) -> bool:
        """Whether it has taps and no steps."""
        return bool(self.taps) and not self.steps

    def sources(self) -> list[str]:
        return (["bias"] if self.bias is not None else []) + [str(tap.read) for tap in self.taps]

    def reads(self) -> list[Read]:
        return [tap.read for tap in self.taps] + super().reads()

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        for tap in self.taps:
            yield Connection(tap.read, tap.connected, tap)
        yield from super().connections(channels_of)

    def start(self, around: Surroundings) -> Tensor:
        if not self.taps:
            zeros = around.zeros(self.channels)
            return zeros if self.bias is None else zeros + self.bias
        first, *others = (around.value(tap.read) @ tap.weight for tap in self.taps)
        for product in others:
            first += product
        return first if self.bias is None else first.add_(self.bias)

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        taps = tuple(replace(tap, weight=tap.weight[:, channels]) for tap in self.taps)
        bias = None if self.bias is None else self.bias[channels]
        return replace(super().picked(channels, exchanged, whole), taps=taps, bias=bias)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        return replace(super().rewired(operand, tap), taps=tuple(map(tap, self.taps)))

    def converted(self, convert: Convert) -> Self:
        taps = tuple(replace(tap, weight=convert(tap.weight)) for tap in self.taps)
        bias = None if self.bias is None else convert(self.bias)
        return replace(super().converted(convert), taps=taps, bias=bias)


@dataclass(frozen=True, eq=False)
class Pointwise(Instruction):
    """Starts from a value.

    pick: the channels of base that are taken, in rising order (None: all).
    """

    base: Read
    pick: Tensor | None = None

    def sources(self) -> list[str]:
        return [self.base.label if self.pick is None else f"{len(self.pick)} channels of {self.base.label}"]

    def reads(self) -> list[Read]:
        return super().reads()

    def operands(self) -> list[Read]:
        return [self.base, *super().operands()]

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        return [(self.base.value, self.pick), *super().channelwise()]

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        every = identity(channels_of(self.base.value))
        yield Connection(self.base, every if self.pick is None else every[self.pick])
        yield from super().connections(channels_of)

    def start(self, around: Surroundings) -> Tensor:
        x = around.value(self.base)
        return x if self.pick is None else x[..., self.pick]

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        base = exchanged(self.base.value, channels if self.pick is None else self.pick[channels])
        return replace(super().picked(channels, exchanged, whole), base=self.base.of(base), pick=None)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        return replace(super().rewired(operand, tap), base=operand(self.base))

    def converted(self, convert: Convert) -> Self:
        return super().converted(convert)


def title(kind: str, program: Any) -> str:
    """The head of a program's listing, captured or phased."""
    c, height, width = program.shape
    dtype = str(program.dtype).removeprefix("torch.")
    first = (
        f"{kind} for {c}x{height}x{width} images, {program.distributions * program.parameters} outputs per pixel, "
        f"{dtype}, {len(program.instructions)} instructions"
    )
    return "\n".join([first, *(f"  taken for granted: {branch}" for branch in program.branches)])


@dataclass(frozen=True, eq=False)
class Program:
    """Instructions in an order in which each reads only values defined before it.

    shape: (image channels, H, W). parameters: how many numbers, such as the logits of all levels, give one
    distribution. joint: whether one distribution gives all channels of a pixel, or each image channel has its own.
    outputs: the values that hold, one after the other, the ``distributions * parameters`` numbers of a pixel, channel
    index = distribution * parameters + parameter. dtype: what the model computes in. normalised: whether the model's
    output is the log-softmax of these numbers. branches: each ``if`` on the image in the model's forward, and each
    number that it reads off the image, and what they were when the model was captured.
    """

    shape: tuple[int, int, int]
    parameters: int
    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    normalised: bool = False
    joint: bool = False
    branches: tuple[str, ...] = ()

    @property
    def distributions(self) -> int:
        """How many distributions a pixel has."""
        return 1 if self.joint else self.shape[0]

    def __str__(self) -> str:
        outputs = ", ".join(f"%{output}" for output in self.outputs)
        return "\n".join(
            [title("program", self), *(f"  {i}" for i in self.instructions), f"  outputs: {outputs}"]
        )

    def converted(self, convert: Convert) -> Program:
        """The same program with its constants converted, such as weights and tables."""
        return replace(self, instructions=tuple(i.converted(convert) for i in self.instructions))

    def producer(self) -> dict[int, Instruction]:
        """The instruction that computes each value."""
        return {instruction.out: instruction for instruction in self.instructions}


def needed(instructions: Iterable[Instruction], outputs: Iterable[int]) -> list[Instruction]:
    """Those instructions whose values reach the outputs, in their order."""
    producer = {i.out: i for i in instructions}
    values, found = list(outputs), set[int]()
    while values:
        if (value := values.pop()) not in found:
            found.add(value)
            values.extend(read.value for read in producer[value].reads())
    return [i for i in producer.values() if i.out in found]


def condition_operands(instructions: Iterable[Instruction]) -> list[ConditionOperand]:
    """Everything that the instructions' steps read of the condition."""
    return [step.condition for i in instructions for step in i.steps if step.condition is not None]
