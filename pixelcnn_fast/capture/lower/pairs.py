"""What a tensor of scores or weights holds, an element for each pair of pixels, followed without its elements.

A frame is the product of two features, left [B, I, D] and right [B, J, D]: an element for
each b, i and j. What is made of it is kept as a formula, so that none of its elements, of
which there are many, needs an address; a constant in one is broadcast to [B, I, J].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.shadow_memory import AddressSpace, Layout, Map, Value, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.attention import ABSENT, ADDED_TO_ABSENT, LEAST_SCALE

NO_PLACE = "only what averages features with it may follow: a softmax, constants and a product with values"


class Features(NamedTuple):
    """Features [B, I, D] by pixel. arranged: their addresses as [N, C, H, W]; image: [B];
    channels: [B, D]; pixel: [B, I], y * W + x.

    Those of a condition are by position. arranged: the addresses of the first image's,
    [B, I, D]; channels: those of the first position, [B, D]; pixel: the position."""

    arranged: Tensor
    image: Tensor
    channels: Tensor
    pixel: Tensor
    of_condition: bool = False


@dataclass(frozen=True, eq=False)
class Frame:
    """The product of two features. left: [B, I, D]; right: [B, J, D]."""

    left: Features
    right: Features

    @property
    def size(self) -> tuple[int, int, int]:
        return (*self.left.pixel.shape, self.right.pixel.shape[1])


@dataclass(frozen=True, eq=False)
class Formula:
    """scores = scale * product + shift; powers = exp(scores - the largest of each query's) * factors;
    weights = powers / (their total, with ``counted`` for ``factors``, + epsilon).

    keys: the frame's axis along which a query's keys lie, once it is known; cleared: where
    not even a NaN is left of a weight; is_centred: whether the largest is subtracted;
    is_safe: whether the weights of a query without keys are zero, and not NaN.
    """

    frame: Frame
    scale: Tensor
    shift: Tensor
    stage: str = "scores"
    keys: int = 2
    factors: Tensor | None = None
    cleared: Tensor | None = None
    counted: Tensor | None = None
    epsilon: float = 0.0
    is_centred: bool = False
    is_safe: bool = False

    @cached_property
    def is_absent(self) -> Tensor:
        """Which scores, broadcasting to [B, I, J], are so small that they stand for none."""
        scaled = self.scale.abs().amax().clamp(LEAST_SCALE, 1)  # perhaps after the mask
        return self.shift <= scaled * torch.where(self.scale == 0, ABSENT, ADDED_TO_ABSENT)


class OfPairs(Map):
    """A map without addresses: a view of a formula's elements, or of one number for each query.

    layout: of the view in a dense array of all of them; of_queries: the number, if it is one.
    """

    def __init__(self, space: AddressSpace, formula: Formula, layout: Layout, of_queries: str = "") -> None:
        super().__init__(space)
        self.formula, self.layout, self.of_queries = formula, layout, of_queries

    is_symbolic = True

    @property
    def addresses(self) -> Tensor:
        raise Unsupported(f"it takes what is there for each pair of pixels: {NO_PLACE}")

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.layout[0])

    @property
    def sources(self) -> list[int]:
        return []

    @property
    def kinds(self) -> set[type]:
        return {Value}

    @property
    def source(self) -> int | None:
        return None

    @property
    def has_zeros(self) -> bool:
        return False

    @property
    def frame(self) -> tuple[int, ...]:
        """The size of the dense array."""
        size = list(self.formula.frame.size)
        if self.of_queries:
            size[self.formula.keys] = 1
        return tuple(size)

    def of(self, formula: Formula) -> OfPairs:
        return self.seen(formula, self.layout, self.of_queries)

    def seen(self, formula: Formula, layout: Layout, of_queries: str = "") -> OfPairs:
        return OfPairs(self._space, formula, layout, of_queries)

    @unrecorded
    def viewed(self, written: Layout, read: Layout) -> OfPairs:
        """The same seen otherwise. written: the memory's layout when it was written; read: now."""
        size, _, first = written
        digits = sorted(zip(written[1], size, self.layout[1], strict=True), reverse=True)

        def place(offset: Tensor) -> Tensor:
            """Of elements in memory, where they are in the dense array."""
            rest, found = offset - first, torch.full_like(offset, self.layout[2])
            for stride, count, to in digits:
                if count > 1:
                    digit = rest // stride
                    rest, found = rest - digit * stride, found + digit * to
            return found

        start = place(torch.tensor(read[2]))
        strides, last, sum_of_lasts = [], read[2], int(start)
        for count, stride in zip(*read[:2], strict=True):
            at = place(read[2] + stride * torch.arange(count))
            steps = at.diff().unique().tolist() or [0]
            if len(steps) > 1:
                raise Unsupported(f"it views pairs of pixels as {list(read[0])}, which mixes them")
            strides.append(steps[0])
            last, sum_of_lasts = last + stride * (count - 1), sum_of_lasts + steps[0] * (count - 1)
        if int(place(torch.tensor(last))) != sum_of_lasts:
            raise Unsupported(f"it views pairs of pixels as {list(read[0])}, which mixes them")
        return self.seen(self.formula, (read[0], strides, int(start)), self.of_queries)

    @property
    def is_all(self) -> bool:
        """Whether each element of the dense array is there once."""
        size, strides, offset = self.layout
        dims = sorted((stride, count) for stride, count in zip(strides, size, strict=True) if count > 1)
        dense = [prod(count for _, count in dims[:number]) for number in range(len(dims) + 1)]
        return offset == 0 and [stride for stride, _ in dims] + [prod(self.frame)] == dense

    def is_axis(self, dim: int, axis: int) -> bool:
        """Whether a dimension is all of one of the frame's axes."""
        size, strides, _ = self.layout
        count, stride = self.frame[axis], prod(self.frame[axis + 1 :])
        return size[dim] == count and (count == 1 or strides[dim] == stride)

    def constant(self, x: Tensor) -> Tensor:
        """A constant that broadcasts to the view, as one that broadcasts to [B, I, J]."""
        size, strides, _ = self.layout
        if not self.is_all:
            raise Unsupported("it changes some pairs of pixels of many: use a mask over all of them")
        if x.dim() > len(size):
            raise Unsupported(f"a constant of shape {list(x.shape)} makes more of {list(size)}")
        if x.numel() == 1:
            return x.reshape(1, 1, 1)
        x = x.reshape(*[1] * (len(size) - x.dim()), *x.shape)
        order = sorted(range(len(size)), key=lambda dim: (size[dim] > 1, -strides[dim]))
        within = [prod(self.frame[axis:]) for axis in range(4)]  # elements of an axis and those after it
        dims: list[list[int]] = [
            [d for d in order if size[d] > 1 and low <= strides[d] < high] for high, low in pairwise(within)
        ]
        if any(prod(size[d] for d in own) != count for own, count in zip(dims, self.frame, strict=True)):
            raise Unsupported(f"it changes pairs of pixels as {list(size)}, which mixes their axes")
        varies = [any(x.shape[d] > 1 for d in own) for own in dims]
        kept = {d for own, does in zip(dims, varies, strict=True) if does for d in own}
        x = x.expand([count if d in kept else 1 for d, count in enumerate(size)]).permute(order)
        return x.reshape([count if does else 1 for count, does in zip(self.frame, varies, strict=True)])


def dense(size: Sequence[int]) -> Layout:
    return size, [prod(size[k + 1 :]) if size[k] > 1 else 0 for k in range(len(size))], 0


def product(space: AddressSpace, left: Features, right: Features, one: Tensor) -> OfPairs:
    """left [B, I, D] times right [B, J, D]; one: 1, in the program's dtype."""
    frame = Frame(left, right)
    formula = Formula(frame, one.view(1, 1, 1), torch.zeros_like(one).view(1, 1, 1))
    return OfPairs(space, formula, dense(frame.size))
