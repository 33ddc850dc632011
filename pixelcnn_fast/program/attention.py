"""The instruction that averages the values of pixels that are known, weighed by how queries meet their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program import schema
from pixelcnn_fast.program.instruction import Instruction, Surroundings
from pixelcnn_fast.program.operands import AddressOf, Connection, Convert, Exchange, Number, Read, Tap

if TYPE_CHECKING:
    from typing_extensions import Self

ABSENT = -9900.0  # scores that are replaced by no more than this, as by -1e4 in bfloat16, are of no pairs
ADDED_TO_ABSENT = -1e9  # and scores to which no more than this is added
# How far below the largest score exp gives exactly zero.
VANISHES = {torch.float64: 746.0, torch.float32: 104.0, torch.float16: 18.0, torch.bfloat16: 93.0}
MOST_SCORES = 1 << 22  # that are there at once


@dataclass(frozen=True, eq=False)
class Attention(Instruction):
    """Starts, at pixel i, from the average of pixels' values v_j, head by head:

    the sum over allowed j of factors_ij exp(z_ij - m_i) v_j, divided by that of
    exp(z_ij - m_i) + epsilon, where z_ij is scale_ij times the product of query i and key j,
    plus added_ij, and m_i the largest z_ij; zero where no j is allowed.

    query, key, value: have the channels of head after head. width: of the image; tables are
    [heads, pixels, pixels], with 1 for heads if they are alike, for i and then j. allowed:
    bool; added: None for zero; scale, factors: None for 1; fill: the largest score in place of
    pairs that are not allowed: NaN where it does not vanish beside m_i; pick: the channels that are
    kept, in rising order (None: all).
    """

    query: Read
    key: int
    value: int
    heads: int
    width: int
    allowed: Tensor
    scale: Tensor | None = None
    added: Tensor | None = None
    factors: Tensor | None = None
    epsilon: float = 0.0
    fill: float = -torch.inf
    pick: Tensor | None = None
    native = "attention"

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """Where keys lie, (dy, dx), of all pixels together, in rising order."""
        allowed = self.allowed.any(0).cpu().numpy()
        height, width = len(allowed) // self.width, self.width
        query, key = np.nonzero(allowed)
        dy, dx = key // width - query // width, key % width - query % width
        found = np.flatnonzero(np.bincount((dy + height) * 2 * width + dx + width))
        return [(at // (2 * width) - height, at % (2 * width) - width) for at in found.tolist()]

    @cached_property
    def _operands(self) -> list[Read]:
        attended = [Read(value, *offset) for value in (self.key, self.value) for offset in self.offsets]
        return [self.query, *attended]

    @property
    def _tables(self) -> tuple[Tensor | None, ...]:
        return self.scale, self.added, self.factors

    def sources(self) -> list[str]:
        heads = f" of {self.heads} heads" if self.heads > 1 else ""
        return [f"attention{heads} from {self.query.label} to %{self.key}, averaging %{self.value}"]

    def operands(self) -> list[Read]:
        return [*self._operands, *super().operands()]

    def attended(self) -> dict[int, str]:
        return (
            {self.key: "keys values"} if self.key == self.value else {self.key: "keys", self.value: "values"}
        )

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        return super().channelwise()

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        head, every = np.arange(self.heads), np.arange(channels_of(self.value))
        kept = every if self.pick is None else self.pick.numpy()
        own = head.repeat(len(every) // self.heads)[kept]
        of = {value: head.repeat(channels_of(value) // self.heads) for value in (self.query.value, self.key)}
        weighed = {value: own[:, None] == heads for value, heads in of.items()}
        average = kept[:, None] == every
        for number, read in enumerate(self._operands):
            is_value = number > len(self.offsets)
            yield Connection(read, average if is_value else weighed[read.value])
        yield from list(super().connections(channels_of))

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        query, key, value = (whole(x) for x in (self.query.value, self.key, self.value))
        picked = super().picked(channels, exchanged, whole)
        pick = channels if self.pick is None else self.pick[channels]
        return replace(picked, query=self.query.of(query), key=key, value=value, pick=pick)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        def moved(value: int) -> int:
            here = Read(value, *self.offsets[0]) if self.offsets else Read(value)
            there = operand(here)
            if (there.dy, there.dx) != (here.dy, here.dx):
                raise Unsupported(
                    f"{self.name}: it attends to pixels that are not drawn yet, and is shifted later"
                )
            return there.value

        query = operand(self.query)
        return replace(
            super().rewired(operand, tap), query=query, key=moved(self.key), value=moved(self.value)
        )

    def converted(self, convert: Convert) -> Self:
        scale, added, factors = (None if x is None else convert(x) for x in self._tables)
        return replace(super().converted(convert), scale=scale, added=added, factors=factors)

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        pixels = self.allowed.shape[-1]
        for table in self._tables:
            if table is not None:
                yield table, (len(table), pixels, pixels)
        yield from super().constants(channels_of)

    def rules(self, channels_of: Callable[[int], int], image_channels: int) -> Iterator[tuple[bool, str]]:
        query, key, value = (channels_of(x) for x in (self.query.value, self.key, self.value))
        yield query == key, "queries have a channel for each of the keys'"
        yield key % self.heads == value % self.heads == 0, "each head has as many channels as the others"
        yield self.channels == (value if self.pick is None else len(self.pick)), "it has its values' channels"
        tables = [x for x in (self.allowed, *self._tables) if x is not None]
        yield all(len(x) in (1, self.heads) for x in tables), "tables are of all heads, or of one"

    def products(self, channels_of: Callable[[int], int]) -> float:
        return float(self.allowed.float().sum(-1).mean()) * (channels_of(self.key) + channels_of(self.value))

    def native_start(self, number: Number, address: AddressOf, image_channels: int) -> dict[str, Any]:
        tables = max(len(x) for x in (self.allowed, *self._tables) if x is not None)
        scale, added, factors = (
            address(None if x is None else x.expand(tables, -1, -1)) for x in self._tables
        )
        allowed = self.allowed.expand(tables, -1, -1).cpu().numpy().astype(np.int8)
        steps = np.diff(np.pad(allowed, ((0, 0), (0, 0), (1, 1))), axis=-1)
        (*rows, first), (*_, end) = np.nonzero(steps > 0), np.nonzero(steps < 0)
        pixels = allowed.shape[-1]
        counts = np.bincount(rows[0] * pixels + rows[1], minlength=tables * pixels)
        attention = schema.Attention(
            query=number(self.query.value),
            key=number(self.key),
            value=number(self.value),
            heads=self.heads,
            reach=max(-dy for dy, _ in self.offsets) if self.offsets else 0,
            tables=tables,
            starts=np.concatenate([[0], counts.cumsum()]).tolist(),
            ranges=[schema.KeyRange(*each) for each in zip(first.tolist(), end.tolist(), strict=True)],
            scale=scale,
            added=added,
            factors=factors,
            epsilon=self.epsilon,
            fill=self.fill,
            pick=[] if self.pick is None else self.pick.tolist(),
        )
        return {"attention": attention}

    def said_of(self, read: Read) -> str:
        pixels = self.allowed.shape[-1]
        query = torch.arange(pixels)
        y, x = query // self.width + read.dy, query % self.width + read.dx
        found = (y >= 0) & (y < pixels // self.width) & (x >= 0) & (x < self.width)
        allowed = self.allowed.any(0).cpu()
        found[found.clone()] &= allowed[query[found], (y * self.width + x)[found]]
        first = int(found.to(torch.uint8).argmax())
        at = f"pixel {divmod(first, self.width)} attends to {(int(y[first]), int(x[first]))}"
        all_of = allowed.all(1)
        if bool(all_of[first]) and not bool(all_of.all()):
            return f"{at}: its mask leaves it no key, and the softmax of equal scores is over all pixels"
        return at

    def start(self, around: Surroundings) -> Tensor:
        query, pixels = around.value(self.query), around.pixels()
        key, value = around.whole(self.key), around.whole(self.value)
        n, wide = len(key), query.shape[-1]
        together = max(1, MOST_SCORES // (n * self.heads * key.shape[1]))
        parts = zip(query.reshape(n, -1, wide).split(together, 1), pixels.split(together), strict=True)
        found = torch.cat([self._average(*part, key, value) for part in parts], 1)
        found = found if self.pick is None else found[..., self.pick]
        return found.view(*query.shape[:-1], self.channels)

    def _average(self, query: Tensor, pixels: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [n, pixels, channels]; key and value [n, all pixels, channels]."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        scores = q @ k.mT  # [n, heads, queries, keys]
        if self.scale is not None:
            scores *= self.scale[:, pixels]
        if self.added is not None:
            scores += self.added[:, pixels]
        scores = scores.masked_fill(~self.allowed[:, pixels], -torch.inf)
        largest = scores.amax(-1, keepdim=True)
        largest = largest.where(largest > -torch.inf, 0)
        weights = (scores - largest).exp()
        total = weights.sum(-1, keepdim=True) + self.epsilon
        total = total.where(total > 0, 1)
        # Where what stands for masked scores would count, the result is told as not finite.
        weights = weights / total.where(largest - self.fill >= VANISHES[query.dtype], torch.nan)
        if self.factors is not None:
            weights = weights * self.factors[:, pixels]
        return (weights @ v).transpose(1, 2).flatten(2)
