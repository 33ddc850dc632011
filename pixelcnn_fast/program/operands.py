"""What instructions are made of: reads of values, weighted taps, and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.program.steps import KINDS
from pixelcnn_fast.program.zeros import lets_through

# Maps a value and some of its channels, [n], to the value that holds exactly those.
Exchange = Callable[[int, Tensor], int]
# For the compiled runtimes: the number of a value, or of what is read of the condition, and a constant's address, 0
# for None.
Number = Callable[["int | ConditionOperand"], int]
AddressOf = Callable[["Tensor | None"], int]
# Maps a constant to one of the same shape.
Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Read:
    """Where an instruction reads a value: at (row + dy, column + dx)."""

    value: int
    dy: int = 0
    dx: int = 0

    @property
    def is_here(self) -> bool:
        return (self.dy, self.dx) == (0, 0)

    @property
    def label(self) -> str:
        return f"%{self.value}" if self.is_here else str(self)

    def of(self, value: int) -> Read:
        return replace(self, value=value)

    def __str__(self) -> str:
        return f"%{self.value}({self.dy:+d}, {self.dx:+d})"


@cache
def identity(channels: int) -> np.ndarray:
    """Each channel with itself: bool [channels, channels]. Not to be written to."""
    return np.eye(channels, dtype=bool)


@dataclass(frozen=True, eq=False)
class Tap:
    """``weight`` [source's channels, channels of out], applied to the source at (row + dy, column + dx)."""

    source: int
    dy: int
    dx: int
    weight: Tensor

    @property
    def read(self) -> Read:
        return Read(self.source, self.dy, self.dx)

    @cached_property
    def connected(self) -> np.ndarray:
        """Which channels of the source each channel needs: bool [channels of out, channels of source]."""
        connected: np.ndarray = lets_through(self.weight).cpu().numpy().T
        return connected

    @cached_property
    def is_live(self) -> bool:
        return bool(self.connected.any())

    def of(self, read: Read) -> Tap:
        """The same weight, applied to something else."""
        return self._knowing(Tap(read.value, read.dy, read.dx, self.weight))

    def converted(self, convert: Convert) -> Tap:
        """The same with a converted weight, in which what was zero is zero."""
        return self._knowing(replace(self, weight=convert(self.weight)))

    def picked(self, channels: Tensor) -> Tap:
        """What some channels get of the source."""
        chosen = _chosen(channels)
        return self._knowing(replace(self, weight=self.weight[:, chosen]), (chosen, slice(None)))

    def of_part(self, source: int, channels: Tensor) -> Tap:
        """The same for a value that consists of some of the source's channels."""
        chosen = _chosen(channels)
        return self._knowing(replace(self, source=source, weight=self.weight[chosen]), (slice(None), chosen))

    def known(self, connected: np.ndarray) -> Tap:
        """The same, of which it is known what is connected."""
        vars(self)["connected"] = connected
        return self

    def _knowing(self, tap: Tap, part: Any = ...) -> Tap:
        return tap.known(self.connected[part]) if "connected" in vars(self) else tap


def _chosen(channels: Tensor) -> slice | Tensor:
    """An index that takes these channels, quick where they follow each other."""
    numbers = channels.tolist()
    first, end = numbers[0], numbers[0] + len(numbers)
    return slice(first, end) if numbers == [*range(first, end)] else channels


@dataclass(frozen=True, eq=False)
class ConditionOperand:
    """What depends on the condition alone, or on nothing: elements of a recorded call's result.

    node: the call's slot; index: [channels], or [H, W, channels] if it varies over pixels,
    into all elements, or with ``per_image`` into each image's.
    """

    node: int
    index: Tensor
    per_image: bool

    @property
    def varies_over_pixels(self) -> bool:
        return self.index.dim() == 3

    @cached_property
    def layout(self) -> tuple[list[int], int] | None:
        """(strides, offset) of its elements, if they lie evenly: then they need not be looked up one by one."""
        if not self.index.numel():
            return None
        first, strides = self.index.flatten()[0], list[int]()
        expected = first
        for axis, many in enumerate(self.index.shape):
            step = self.index.movedim(axis, -1).flatten()[1] - first if many > 1 else torch.zeros_like(first)
            steps = torch.arange(many, device=first.device) * step
            expected = expected + steps.view(-1, *[1] * (self.index.dim() - 1 - axis))
            strides.append(int(step))
        return (strides, int(first)) if min(strides) >= 0 and torch.equal(expected, self.index) else None

    def picked(self, channels: Tensor) -> ConditionOperand:
        return replace(self, index=self.index[..., channels])

    def shifted(self, dy: int, dx: int) -> ConditionOperand:
        """The operand that has everywhere what this one has (dy, dx) away; outside the image, anything."""
        if not self.varies_over_pixels or (dy, dx) == (0, 0):
            return self
        frame = zip(self.index.shape, (dy, dx), strict=False)
        rows, columns = ((torch.arange(size) + by).clamp(0, size - 1) for size, by in frame)
        return replace(self, index=self.index[rows[:, None], columns])


@dataclass(frozen=True)
class Step:
    """One operation on an instruction's sum x, channel by channel.

    kind: a name in ``program.steps.KINDS``, which says what alpha means and which operand
    it has: ``value``, ``condition``, or ``scale`` and ``shift``, both [channels].
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
        """Whether every channel reads all channels of the operand."""
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

    def connected(self, channels: int, of: int) -> np.ndarray:
        """Which channels of the operand each channel reads: bool [channels, of]."""
        if self.reads_all_channels:
            return np.ones((channels, of), bool)
        return identity(channels)

    def rewired(self, operand: Callable[[Read], Read]) -> Step:
        """The same step with another value as its operand."""
        return self if self.value is None else replace(self, value=operand(self.value))

    def converted(self, convert: Convert) -> Step:
        if self.scale is None or self.shift is None:
            return self
        return replace(self, scale=convert(self.scale), shift=convert(self.shift))

    def shifted(self, dy: int, dx: int) -> Step:
        """The same step with the condition's operand taken from (dy, dx)."""
        return self if self.condition is None else replace(self, condition=self.condition.shifted(dy, dx))

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Step:
        """The same step on some channels, as ``Instruction.picked``."""
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
    """What an instruction reads. channels: [channels of out, channels of the value], bool; tap: None for an operand."""

    read: Read
    channels: np.ndarray
    tap: Tap | None = None
