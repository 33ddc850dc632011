"""The kinds of instruction: from the levels, from a sum of taps, and from another value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.program.instruction import Instruction, Surroundings
from pixelcnn_fast.program.operands import (
    AddressOf,
    Connection,
    Convert,
    Exchange,
    Number,
    Read,
    Tap,
    identity,
)
from pixelcnn_fast.program.schema import ImageInput

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class FromLevels(Instruction):
    """Starts from its own pixel's levels, each as a number or as a row of a table.

    pick: the image channels, in rising order (None: all). table: [levels, width], one-hot vectors or an embedding.
    """

    pick: Tensor | None = None
    table: Tensor | None = None
    native = "from_levels"

    @property
    def width(self) -> int:
        """How many channels an image channel becomes."""
        return 1 if self.table is None else self.table.shape[1]

    picked_together = width

    @property
    def reads_levels(self) -> bool:
        return True

    def image_channels(self, of: int) -> Tensor:
        """The image channels that are taken from an image with ``of`` of them."""
        return torch.arange(of) if self.pick is None else self.pick

    def sources(self) -> list[str]:
        if self.pick is None:
            return ["levels"]
        return [f"levels of channel {', '.join(map(str, self.pick.tolist()))}"]

    def levels_seen(self, image_channels: int) -> np.ndarray | None:
        own = self.image_channels(image_channels).repeat_interleave(self.width)
        seen: np.ndarray = own.numpy()[:, None] == np.arange(image_channels)
        return seen

    def start(self, around: Surroundings) -> Tensor:
        levels = around.image()
        if self.pick is not None:
            levels = levels[..., self.pick]
        return levels.to(around.dtype) if self.table is None else self.table[levels.long()].flatten(-2)

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        image_channels = channels[:: self.width] // self.width
        pick = image_channels if self.pick is None else self.pick[image_channels]
        return replace(super().picked(channels, exchanged, whole), pick=pick)

    def converted(self, convert: Convert) -> Self:
        return replace(super().converted(convert), table=None if self.table is None else convert(self.table))

    def native_start(self, number: Number, address: AddressOf, image_channels: int) -> dict[str, Any]:
        channels = self.image_channels(image_channels).tolist()
        assert channels == list(range(channels[0], channels[-1] + 1)), "each draw has its own input"
        table, levels = address(self.table), 0 if self.table is None else len(self.table)
        return {"input": ImageInput(channels[0], len(channels), self.width, table, levels)}

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        if self.table is not None:
            yield self.table, self.table.shape
        yield from super().constants(channels_of)

    def rules(self, channels_of: Callable[[int], int], image_channels: int) -> Iterator[tuple[bool, str]]:
        yield self.table is None or self.table.dim() == 2, "the table has a row for each level"
        taken = self.image_channels(image_channels)
        yield _rises(taken, image_channels), "picked image channels rise and exist"
        is_whole = self.channels == len(taken) * self.width
        yield is_whole, "each picked image channel gives as many as the table is wide"


@dataclass(frozen=True, eq=False)
class Convolution(Instruction):
    """Starts from a bias, [channels] (None: zero), plus its taps; with neither it is a constant."""

    taps: tuple[Tap, ...] = ()
    bias: Tensor | None = None
    native = "convolution"

    def sources(self) -> list[str]:
        return (["bias"] if self.bias is not None else []) + [str(tap.read) for tap in self.taps]

    def repeated(self) -> tuple[Read, Tensor | None] | None:
        if self.bias is not None or len(self.taps) != 1 or not self.taps[0].read.is_here:
            return None
        weight = self.taps[0].weight
        repeats = bool(((weight == 1).sum(0) == 1).all()) and bool(((weight != 0).sum(0) == 1).all())
        return (self.taps[0].read, weight.argmax(0).cpu()) if repeats else None

    def start(self, around: Surroundings) -> Tensor:
        return around.summed(self)

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        picked = super().picked(channels, exchanged, whole)
        if torch.equal(channels, torch.arange(self.channels)):
            return picked
        taps = tuple(tap.picked(channels) for tap in self.taps)
        return replace(picked, taps=taps, bias=None if self.bias is None else self.bias[channels])

    def with_taps(self, taps: Iterable[Tap], bias: Tensor | None = None) -> Self:
        return replace(self, taps=tuple(taps), bias=self.bias if bias is None else bias)

    def converted(self, convert: Convert) -> Self:
        taps = tuple(tap.converted(convert) for tap in self.taps)
        bias = None if self.bias is None else convert(self.bias)
        return replace(super().converted(convert), taps=taps, bias=bias)

    def native_start(self, number: Number, address: AddressOf, image_channels: int) -> dict[str, Any]:
        return {"bias": address(self.bias)}

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        for tap in self.taps:
            yield tap.weight, (channels_of(tap.source), self.channels)
        if self.bias is not None:
            yield self.bias, (self.channels,)
        yield from super().constants(channels_of)


@dataclass(frozen=True, eq=False)
class Pointwise(Instruction):
    """Starts from a value, or its channels ``pick``, in rising order (None: all)."""

    base: Read
    pick: Tensor | None = None
    native = "pointwise"

    def sources(self) -> list[str]:
        return [self.base.label if self.pick is None else f"{len(self.pick)} channels of {self.base.label}"]

    def operands(self) -> list[Read]:
        return [self.base, *super().operands()]

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        return [(self.base.value, self.pick), *super().channelwise()]

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        every = identity(channels_of(self.base.value))
        yield Connection(self.base, every if self.pick is None else every[self.pick.numpy()])
        yield from super().connections(channels_of)

    def repeated(self) -> tuple[Read, Tensor | None] | None:
        return self.base, self.pick

    def start(self, around: Surroundings) -> Tensor:
        x = around.value(self.base)
        return x if self.pick is None else x[..., self.pick]

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        base = exchanged(self.base.value, channels if self.pick is None else self.pick[channels])
        return replace(super().picked(channels, exchanged, whole), base=self.base.of(base), pick=None)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        return replace(super().rewired(operand, tap), base=operand(self.base))

    def native_start(self, number: Number, address: AddressOf, image_channels: int) -> dict[str, Any]:
        return {"value": number(self.base.value), "dy": self.base.dy, "dx": self.base.dx}

    def rules(self, channels_of: Callable[[int], int], image_channels: int) -> Iterator[tuple[bool, str]]:
        base = channels_of(self.base.value)
        if self.pick is not None:
            yield _rises(self.pick, base), "picked channels rise and exist"
        yield self.channels == (base if self.pick is None else len(self.pick)), "it has its base's channels"


def _rises(channels: Tensor, below: int) -> bool:
    return bool((channels[1:] > channels[:-1]).all()) and bool(((channels >= 0) & (channels < below)).all())
