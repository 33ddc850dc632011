"""The instruction that averages the values of pixels that are known, weighed by how queries meet their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program import schema
from pixelcnn_fast.program.instruction import Instruction, Surroundings
from pixelcnn_fast.program.operands import (
    AddressOf,
    ConditionOperand,
    Connection,
    Convert,
    Exchange,
    Number,
    Read,
    Tap,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# Scores that are replaced by no more than this, as by -1e4 in bfloat16, are of no pairs, and those to which no more
# than the second is added; both before scores are scaled to less.
ABSENT, ADDED_TO_ABSENT = -9900.0, -9.9e8
# With less, what is masked before it is scaled counts: the exp of a tenth of -9900 is zero in float64, too.
LEAST_SCALE = 0.1
# How far below the largest score exp gives exactly zero.
VANISHES = {torch.float64: 746.0, torch.float32: 104.0, torch.float16: 18.0, torch.bfloat16: 93.0}
MOST_SCORES = 1 << 22  # that are there at once
QUERIES_TOGETHER = 128  # which do not meet the keys behind all of theirs
KEYS_TOGETHER = 64  # of a condition: the C++ runtime's kKeysTogether
# By table, since passes make many instructions with the same one.
_known_offsets: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _offsets(allowed: Tensor, width: int) -> list[tuple[int, int]]:
    pairs = allowed.any(0).cpu().numpy()
    height, (query, key) = len(pairs) // width, np.nonzero(pairs)
    dy, dx = key // width - query // width, key % width - query % width
    found = np.flatnonzero(np.bincount((dy + height) * 2 * width + dx + width))
    return [(at // (2 * width) - height, at % (2 * width) - width) for at in found.tolist()]


@dataclass(frozen=True, eq=False)
class Attention(Instruction):
    """Starts, at pixel i, from the average of pixels' values v_j, head by head:

    the sum over allowed j of factors_ij exp(z_ij - m_i) v_j, divided by that of
    exp(z_ij - m_i) + epsilon, where z_ij is scale_ij times the product of query i and key j,
    plus added_ij, and m_i the largest z_ij; zero where no j is allowed. Without queries and
    keys, it is the sum of factors_ij v_j.

    query, key, value: have the channels of head after head. Those of a condition have one number
    for each of its positions j and channels: keys lie [positions / KEYS_TOGETHER, channels,
    KEYS_TOGETHER], the last of them anything, and values [positions, channels]. width: of the
    image; tables are [heads, pixels, pixels or positions], with 1 for heads if they are alike, for
    i and then j. allowed:
    bool; added: None for zero; scale, factors: None for 1; fill: the largest score in place of
    pairs that are not allowed: NaN where it does not vanish beside m_i; kept: what keys and values
    of pixels are rounded to (None: nothing); pick: the channels that are given, in rising order
    (None: all).
    """

    query: Read | None
    key: int | ConditionOperand | None
    value: int | ConditionOperand
    heads: int
    width: int
    allowed: Tensor
    scale: Tensor | None = None
    added: Tensor | None = None
    factors: Tensor | None = None
    epsilon: float = 0.0
    fill: float = -torch.inf
    kept: torch.dtype | None = None
    pick: Tensor | None = None
    native = "attention"

    @cached_property
    def _read(self) -> list[int]:
        """The values that it reads at other pixels: that of its keys, and of its values."""
        return [x for x in (self.key, self.value) if isinstance(x, int)]

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """Where keys lie, (dy, dx), of all pixels together, in rising order."""
        if not self._read:
            return []
        if (known := _known_offsets.get(self.allowed)) is None:
            known = _known_offsets[self.allowed] = _offsets(self.allowed, self.width)
        return known

    @cached_property
    def _operands(self) -> list[Read]:
        attended = [Read(value, *offset) for value in self._read for offset in self.offsets]
        return [*([] if self.query is None else [self.query]), *attended]

    @property
    def tables(self) -> tuple[Tensor | None, ...]:
        """Numbers for pairs of pixels."""
        return self.scale, self.added, self.factors

    def sources(self) -> list[str]:
        heads = f" of {self.heads} heads" if self.heads > 1 else ""
        if self.query is None:
            return [f"a sum{heads} over the pixels of %{self.value}"]
        if not self._read:
            return [f"attention{heads} from {self.query.label} to the condition"]
        return [f"attention{heads} from {self.query.label} to %{self.key}, averaging %{self.value}"]

    def operands(self) -> list[Read]:
        return [*self._operands, *super().operands()]

    def attended(self) -> dict[int, str]:
        if self.key == self.value and self._read:
            return dict.fromkeys(self._read, "keys values")
        return dict(zip(reversed(self._read), ("values", "keys"), strict=False))

    def given(self) -> list[ConditionOperand]:
        own = [x for x in (self.key, self.value) if isinstance(x, ConditionOperand)]
        return [*own, *super().given()]

    def _values_channels(self, channels_of: Callable[[int], int]) -> int:
        if isinstance(self.value, int):
            return channels_of(self.value)
        return self.value.index.numel() // self.allowed.shape[-1]

    def channelwise(self) -> list[tuple[int, Tensor | None]]:
        return super().channelwise()

    def connections(self, channels_of: Callable[[int], int]) -> Iterator[Connection]:
        head, every = np.arange(self.heads), np.arange(self._values_channels(channels_of))
        kept = every if self.pick is None else self.pick.numpy()
        own = head.repeat(len(every) // self.heads)[kept]
        weighed = len(self._operands) - len(self.offsets)
        by_heads, average = dict[int, np.ndarray](), kept[:, None] == every
        for at, read in enumerate(self._operands):  # which are thousands
            if at < weighed and read.value not in by_heads:
                of = head.repeat(channels_of(read.value) // self.heads)
                by_heads[read.value] = own[:, None] == of
            yield Connection(read, by_heads[read.value] if at < weighed else average)
        yield from list(super().connections(channels_of))

    def picked(self, channels: Tensor, exchanged: Exchange, whole: Callable[[int], int]) -> Self:
        def of(x: Any) -> Any:
            return whole(x) if isinstance(x, int) else x  # a condition stays

        picked = super().picked(channels, exchanged, whole)
        query = None if self.query is None else self.query.of(whole(self.query.value))
        pick = channels if self.pick is None else self.pick[channels]
        return replace(picked, query=query, key=of(self.key), value=of(self.value), pick=pick)

    def rewired(self, operand: Callable[[Read], Read], tap: Callable[[Tap], Tap]) -> Self:
        def moved(value: Any) -> Any:
            if not isinstance(value, int):
                return value
            here = Read(value, *self.offsets[0]) if self.offsets else Read(value)
            there = operand(here)
            if (there.dy, there.dx) != (here.dy, here.dx):
                raise Unsupported(
                    f"{self.name}: it attends to pixels that are not drawn yet, and is shifted later: shift what it "
                    "attends to"
                )
            return there.value

        query = None if self.query is None else operand(self.query)
        return replace(
            super().rewired(operand, tap), query=query, key=moved(self.key), value=moved(self.value)
        )

    def keeping(self, dtype: torch.dtype) -> Self:
        return replace(self, kept=dtype)

    def converted(self, convert: Convert) -> Self:
        scale, added, factors = (None if x is None else convert(x) for x in self.tables)
        return replace(super().converted(convert), scale=scale, added=added, factors=factors)

    def constants(self, channels_of: Callable[[int], int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
        for table in self.tables:
            if table is not None:
                yield table, (len(table), *self.allowed.shape[1:])
        yield from super().constants(channels_of)

    def rules(self, channels_of: Callable[[int], int], image_channels: int) -> Iterator[tuple[bool, str]]:
        value, keys = self._values_channels(channels_of), self.allowed.shape[-1]
        depth = value if self.query is None else channels_of(self.query.value)
        if isinstance(self.key, int):
            yield depth == channels_of(self.key), "queries have a channel for each of the keys'"
        blocks = -(-keys // KEYS_TOGETHER)
        for operand, size in ((self.key, blocks * KEYS_TOGETHER * depth), (self.value, keys * value)):
            if isinstance(operand, ConditionOperand):
                yield [*operand.index.shape] == [size], "the condition has a channel for each of the queries'"
        yield (self.query is None) == (self.key is None), "queries meet keys"
        yield depth % self.heads == value % self.heads == 0, "each head has as many channels as the others"
        yield self.channels == (value if self.pick is None else len(self.pick)), "it has its values' channels"
        tables = [x for x in (self.allowed, *self.tables) if x is not None]
        yield all(len(x) in (1, self.heads) for x in tables), "tables are of all heads, or of one"

    def products(self, channels_of: Callable[[int], int]) -> float:
        depth = 0 if self.query is None else channels_of(self.query.value)
        return float(self.allowed.float().sum(-1).mean()) * (depth + self._values_channels(channels_of))

    def native_start(self, number: Number, address: AddressOf, image_channels: int) -> dict[str, Any]:
        tables = max(len(x) for x in (self.allowed, *self.tables) if x is not None)
        scale, added, factors = (
            address(None if x is None else x.expand(tables, -1, -1)) for x in self.tables
        )
        allowed = self.allowed.expand(tables, -1, -1).cpu().numpy().astype(np.int8)
        steps = np.diff(np.pad(allowed, ((0, 0), (0, 0), (1, 1))), axis=-1)
        (*rows, first), (*_, end) = np.nonzero(steps > 0), np.nonzero(steps < 0)
        _, pixels, keys = allowed.shape
        counts = np.bincount(rows[0] * pixels + rows[1], minlength=tables * pixels)
        attention = schema.Attention(
            query=-1 if self.query is None else number(self.query.value),
            key=-1 if self.key is None else number(self.key),
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
            keys=keys,
            of_condition=not self._read,
        )
        return {"attention": attention}

    def said_of(self, read: Read, image_channels: int) -> str:
        pixels = self.allowed.shape[-1]
        own = self.allowed.diagonal(dim1=1, dim2=2)
        of_sums_here = self.query is None and read.is_here
        if of_sums_here and image_channels > 1 and bool((own != own[:1]).any()):
            raise Unsupported(
                f"{self.name}: its sums over pixels count some features of the pixel itself and others not: colours in "
                "order within a pixel are not supported there"
            )
        query = torch.arange(pixels)
        y, x = query // self.width + read.dy, query % self.width + read.dx
        found = (y >= 0) & (y < pixels // self.width) & (x >= 0) & (x < self.width)
        allowed = self.allowed.any(0).cpu()
        key = y * self.width + x
        found[found.clone()] &= allowed[query[found], key[found]]
        first = int(found.to(torch.uint8).argmax())
        how = "reads" if self.query is None else "attends to"
        at = f"pixel {divmod(first, self.width)} {how} {(int(y[first]), int(x[first]))}"
        is_filled = self.scale is not None and not bool(((self.scale != 0) & self.allowed)[:, first].any())
        if is_filled or self.added is not None and float(self.added[:, first].max()) <= LEAST_SCALE * ABSENT:
            return f"{at}: its mask leaves it no key, and the softmax of equal scores is over all pixels"
        if self.added is not None and float(less := self.added[:, first, key[first]].max()) <= ABSENT:
            return f"{at}, since {less:g} is added to its score and does not remove it: use masked_fill, or add -1e9"
        return at

    def start(self, around: Surroundings) -> Tensor:
        pixels, value = around.pixels(), self._whole(around, self.value)
        flat = pixels.view(-1)
        query, key = flat.new_empty(len(value), len(flat), 0), None
        if self.query is not None and self.key is not None:
            query = around.value(self.query).reshape(len(value), len(flat), -1)
            key = self._whole(around, self.key)
        most = MOST_SCORES // (len(value) * self.heads * self.allowed.shape[-1])
        together = min(QUERIES_TOGETHER, max(1, most))
        parts = zip(query.split(together, 1), flat.split(together), strict=True)
        found = torch.cat([self._average(*part, key, value) for part in parts], 1)
        found = found if self.pick is None else found[..., self.pick]
        return found.view(len(value), *pixels.shape, self.channels)

    def _whole(self, around: Surroundings, x: int | ConditionOperand) -> Tensor:
        """A value at all pixels, or a condition at all its positions: [n, pixels or positions, channels]."""
        if isinstance(x, int):
            found = around.whole(x)
            return found if self.kept is None else found.to(self.kept).to(found)
        found, keys = around.condition(x), self.allowed.shape[-1]
        found = found.reshape(len(found), -1)
        if x is self.value:
            return found.unflatten(1, (keys, -1))
        blocks = found.unflatten(1, (-(-keys // KEYS_TOGETHER), -1, KEYS_TOGETHER))
        return blocks.transpose(2, 3).flatten(1, 2)[:, :keys]

    def _average(self, query: Tensor, pixels: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
        """query [n, pixels, channels]; key and value [n, all pixels, channels]."""
        end = int(self._ends[pixels.cpu().numpy()].max(initial=1))
        allowed = self.allowed[:, pixels, :end]
        scale, added, factors = (None if x is None else x[:, pixels, :end] for x in self.tables)
        values = value[:, :end].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if key is None:
            weights = allowed.to(value)
        else:
            q, k = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key[:, :end]))
            weights = self._weights(q @ k.mT, allowed, scale, added)
        if factors is not None:
            weights = weights * factors
        return (weights @ values).transpose(1, 2).flatten(2)

    def _weights(self, scores: Tensor, allowed: Tensor, scale: Tensor | None, added: Tensor | None) -> Tensor:
        """scores: [n, heads, queries, keys]"""
        if scale is not None:
            scores *= scale
        if added is not None:
            scores += added
        scores = scores.masked_fill(~allowed, -torch.inf)
        largest = scores.amax(-1, keepdim=True)
        largest = largest.where(largest > -torch.inf, 0)
        weights = (scores - largest).exp()
        total = weights.sum(-1, keepdim=True) + self.epsilon
        total = total.where(total > 0, 1)
        # Where what stands for masked scores would count, the result is told as not finite.
        return weights / total.where(largest - self.fill >= VANISHES[scores.dtype], torch.nan)

    @cached_property
    def _ends(self) -> np.ndarray:
        """By query, the number of its last key, in any head, plus 1."""
        allowed = self.allowed.any(0).cpu().numpy()
        return np.where(allowed.any(1), allowed.shape[1] - allowed[:, ::-1].argmax(1), 0)
