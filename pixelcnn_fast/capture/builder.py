"""The instructions that capture has found so far, and how each way of computing with features adds to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.operands import Operands
from pixelcnn_fast.capture.shadow import AddressSpace, Constant, Elements, Map, OfCondition, Segment, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.formulas import apply_steps
from pixelcnn_fast.program.program import (
    Convolution,
    FromLevels,
    Instruction,
    Pointwise,
    Read,
    Step,
    Tap,
)

OPERANDS = (Constant, OfCondition)
Affine = tuple["float | Tensor", "float | Tensor"]  # (scale, shift), numbers or [channels]
Steps = Sequence["Step | Affine"]


class Builder:
    """Instructions in the order of the model's calls; instruction k defines value k.

    ``where`` names the module whose forward made the call, for the instructions' names. levels: what the model is
    given for each level, or None if it is given real numbers.
    """

    def __init__(self, space: AddressSpace, operands: Operands, channels: int, levels: Tensor | None) -> None:
        self.space, self.operands = space, operands
        self.dtype, self.device = operands.dtype, operands.device
        self.instructions: list[Instruction] = []
        self.where = "input"
        self.levels = levels
        self._windows: dict[tuple[int, int, int], int] = {}
        self._selected: dict[tuple[int, ...], int] = {}
        self.distributions: list[Tensor] = []  # addresses of each log-softmax, its axis last
        self.closings: dict[int, str] = {}  # by source: the kind of closing softmax that it is
        self.images = self.emit(FromLevels, channels)

    def emit(self, kind: type[Instruction], channels: int, frame: Any = None, **fields: Any) -> int:
        """Adds an instruction -> the source that is its value."""
        out = len(self.instructions)
        self.instructions.append(kind(out, channels, self.where, **fields))
        return self.space.allot(Value(out), channels, frame or self.space.grid)

    def out(self, source: int) -> int:
        """The number of the value."""
        found = self.space.sources[source]
        assert isinstance(found, Value)
        return found.out

    def source(self, out: int) -> int:
        """The source that is a value, as it was first emitted."""
        return next(
            i for i, found in enumerate(self.space.sources) if isinstance(found, Value) and found.out == out
        )

    def instruction(self, source: int) -> Instruction:
        return self.instructions[self.out(source)]

    def map(self, addresses: Tensor) -> Map:
        return Map(self.space, addresses)

    def whole(self, source: int) -> Map:
        return Map(self.space, source=source)

    # -- channel by channel

    def stepped(self, x: Map, steps: Steps, on_operand: Callable[[int], int]) -> Map:
        """Puts x through steps. on_operand: what they make of an operand."""
        if x.source is not None:
            return self.whole(self.step(x.source, steps))
        to = {
            s: self.step(s, steps) if isinstance(self.space.sources[s], Value) else on_operand(s)
            for s in x.sources
        }
        zero = self._at_zero(steps) if bool((x.addresses == 0).any()) else 0
        return self.map(self.space.moved(x.addresses, to, zero))

    def _at_zero(self, steps: Steps) -> int:
        """The address of what steps make of a zero."""
        x = torch.zeros(1, dtype=self.dtype, device=self.device)
        for step in steps:
            x = (
                x * step[0] + step[1]
                if isinstance(step, tuple)
                else apply_steps(x, [step], no_operand, no_operand)
            )
        return int(self.operands.of_constant(x))

    def step(self, source: int, steps: Steps) -> int:
        return self.emit(
            Pointwise,
            self.space.channels(source),
            self.space.frame(source),
            base=Read(self.out(source)),
            steps=tuple(self._affine(source, *s) if isinstance(s, tuple) else s for s in steps),
        )

    def affine(self, x: Map, scale: float, shift: float) -> Map:
        """A number times x, plus a number."""
        return self.stepped(x, [(scale, shift)], lambda source: self.operands.affine(source, scale, shift))

    def _affine(self, source: int, scale: float | Tensor, shift: float | Tensor) -> Step:
        channels = self.space.channels(source)

        def vector(x: float | Tensor) -> Tensor:
            return torch.as_tensor(x, dtype=self.dtype, device=self.device).expand(channels).clone()

        return Step("affine", scale=vector(scale), shift=vector(shift))

    def combined(self, kind: str, x: Map, y: Map, alpha: float = 1.0) -> Map:
        """x + alpha * y, or x * y or another kind of step on two maps; at least one of them depends on the image."""
        shape = torch.broadcast_shapes(x.shape, y.shape)
        if kind in ("add", "multiply"):
            if (number := self._number(y)) is not None:
                x = self.affine(x, 1.0, alpha * number) if kind == "add" else self.affine(x, number, 0.0)
                return self._expanded(x, shape)
            if (number := self._number(x)) is not None:
                y = self.affine(y, alpha, number) if kind == "add" else self.affine(y, number, 0.0)
                return self._expanded(y, shape)
        if not self._has_value(x) and not self._has_value(y):
            x = self.copied(x)
        elif not self._has_value(x):
            if alpha != 1.0:
                y, alpha = self.affine(y, alpha, 0.0), 1.0
            x, y = y, x
        if self._has_value(y):
            x, y = self.materialised(x), self.materialised(y)
            if (alike := self._alike(kind, x, y, alpha)) is not None:
                return alike
            return self._paired(kind, self._expanded(x, shape), self._expanded(y, shape), alpha)
        if kind not in ("add", "multiply"):
            x = self._expanded(self.materialised(x), shape)
            return self.combined(kind, x, self.combined("add", self.affine(x, 0.0, 0.0), y))
        return self._with_operand(kind, x, y, shape, alpha)

    def _has_value(self, x: Map) -> bool:
        return Value in x.kinds

    def _number(self, x: Map) -> float | None:
        """The one number that a map consists of, if it is a constant that never changes."""
        found = [self.space.sources[source] for source in x.sources]
        if x.shape.numel() != 1 or any(not isinstance(f, Constant) or f.of_weights for f in found):
            return None
        return self.operands.constants(x.addresses).item()

    def _expanded(self, x: Map, shape: Sequence[int]) -> Map:
        return x if x.shape == torch.Size(shape) else self.map(x.addresses.expand(shape))

    def materialised(self, x: Map) -> Map:
        """The same map without operands among its elements: these are elements of a value."""
        if not x.kinds.isdisjoint(OPERANDS):
            return self.copied(x)
        return x

    def _with_operand(self, kind: str, x: Map, y: Map, shape: Sequence[int], alpha: float) -> Map:
        """x with an operand y."""
        source, operand = x.source, self.space.relative(y.addresses)
        if OfCondition in y.kinds:
            self._check_same_images(self._expanded(x, shape), self._expanded(y, shape))
        if source is not None and _is_one_per_channel(operand, self.space.channels(source)):
            table = operand.reshape(-1, operand.shape[-3])[0].expand(self.space.channels(source))
            return self.whole(self.step(source, [self._operand_step(kind, source, table, alpha)]))
        x, operand = self.materialised(self._expanded(x, shape)), operand.expand(shape)
        if kind == "add" and bool(((x.addresses == 0) & (operand != 0)).any()):
            x = self.copied(x)
        for arranged in (lambda: x, lambda: self.windowed(x), lambda: self.copied(x)):
            found = arranged()
            elements = self.space.decode(found.addresses)
            tables = {s: self._table(s, elements, operand) for s in found.sources}
            if None not in tables.values():
                break
        else:
            raise Unsupported("a constant differs from image to image")
        to = {
            s: self.step(s, [self._operand_step(kind, s, table, alpha)])
            for s, table in tables.items()
            if table is not None
        }
        return self.map(self.space.moved(found.addresses, to))

    def _check_same_images(self, x: Map, operand: Map) -> None:
        """Raises Unsupported if a condition is combined with features of another image than its own."""
        mine, given = (
            self.space.decode(self.space.only(of.addresses, kinds))
            for of, kinds in ((x, (Value, OfCondition)), (operand, OfCondition))
        )
        if bool(((given.image != mine.image) & (given.source >= 0) & (mine.source >= 0)).any()):
            raise Unsupported("the condition of one image is combined with another image")

    def _table(self, source: int, elements: Elements, operand: Tensor) -> Tensor | None:
        """The addresses of the operand for each channel of a value, [C], or if it varies [H, W, C]; None: no table."""
        here = elements.source == source
        found, channel, y, x = operand[here], elements.channel[here], elements.y[here], elements.x[here]
        table = operand.new_zeros(self.space.channels(source))
        table[channel] = found
        if torch.equal(table[channel], found):
            return table
        table = operand.new_zeros(*self.space.frame(source), self.space.channels(source))
        table[y, x, channel] = found
        return (
            table if torch.equal(table[y, x, channel], found) and self.space.has_whole_frame(source) else None
        )

    def _operand_step(self, kind: str, source: int, table: Tensor, alpha: float) -> Step:
        operand = self.operands.picked(table)
        if isinstance(operand, Tensor):
            if operand.dim() == 1:
                return self._affine(source, *((1.0, alpha * operand) if kind == "add" else (operand, 0.0)))
            operand = self.operands.per_pixel(operand)
        return Step(f"{kind}_condition", alpha, condition=operand)

    def _alike(self, kind: str, x: Map, y: Map, alpha: float) -> Map | None:
        """Two whole values of one shape, combined."""
        a, b = x.source, y.source
        if a is None or b is None or x.shape != y.shape:
            return None
        return self.whole(self._pair(kind, a, b, alpha))

    def _pair(self, kind: str, a: int, b: int, alpha: float) -> int:
        step = Step(kind, alpha, value=Read(self.out(b)))
        return self.emit(
            Pointwise, self.space.channels(a), self.space.frame(a), base=Read(self.out(a)), steps=(step,)
        )

    def _paired(self, kind: str, x: Map, y: Map, alpha: float) -> Map:
        """x and y of one shape, element by element."""
        pairs = self._pairs(x, y)
        if pairs is None:
            place = self.place_of(x)
            pairs = self._pairs(self.copied(x, place), self.copied(y, place))
        if pairs is None:
            raise Unsupported("it combines different pixels, or rows with columns")
        (a, channel_a, b, channel_b), which, pixel = pairs
        out = torch.zeros_like(which)
        for first, second in torch.stack([a, b], 1).unique(dim=0).tolist():
            chosen = ((a == first) & (b == second)).nonzero()[:, 0]
            one = self.selected(first, channel_a[chosen].tolist())
            other = self.selected(second, channel_b[chosen].tolist())
            source = self._pair(kind, one, other, alpha)
            channel = torch.searchsorted(chosen, which).clamp_max(len(chosen) - 1)
            at = self.space.at(source, pixel.image, channel, pixel.y, pixel.x)
            out = torch.where(chosen[channel] == which, at, out)
        return self.map(out)

    def _pairs(self, x: Map, y: Map) -> tuple[Tensor, Tensor, Elements] | None:
        """Which channels of which sources meet in x and y -> (sources and channels, [4, pairs]; for each element its
        pair; x, decoded); None unless each pixel meets itself, and the same features everywhere."""
        if len({self.space.frame(s) for m in (x, y) for s in m.sources}) != 1:
            return None
        left, right = self.space.decode(x.addresses), self.space.decode(y.addresses)
        if not _same_pixels(left, right):
            return None
        sizes = [
            len(self.space.sources),
            1 + max(self.space.channels(s) for m in (x, y) for s in m.sources),
        ] * 2
        key = torch.zeros_like(left.source)
        for part, size in zip((left.source, left.channel, right.source, right.channel), sizes, strict=True):
            key = key * size + part
        corner = (left.image == 0) & (left.y == left.y.min()) & (left.x == left.x.min())
        keys = torch.unique(key[corner])
        which = torch.searchsorted(keys, key.contiguous()).clamp_max(len(keys) - 1)
        if not torch.equal(keys[which], key):
            return None
        parts: list[Tensor] = []
        for size in reversed(sizes):
            parts.insert(0, keys % size)
            keys = keys // size
        return torch.stack(parts), which, left

    def selected(self, source: int, channels: Sequence[int]) -> int:
        """A value that consists of these channels of another value, in this order."""
        if list(channels) == list(range(self.space.channels(source))):
            return source
        key = (source, *channels)
        if key not in self._selected:
            self._selected[key] = self._select(source, torch.tensor(channels))
        return self._selected[key]

    def _select(self, source: int, pick: Tensor) -> int:
        definition, frame, n = self.instruction(source), self.space.frame(source), len(pick)
        out = self.out(source)
        if bool((pick[1:] > pick[:-1]).all()):
            return self.emit(Pointwise, n, frame, base=Read(out), pick=pick)
        if isinstance(definition, Convolution):  # other columns of its weights
            taps = tuple(replace(tap, weight=tap.weight[:, pick]) for tap in definition.taps)
            bias = None if definition.bias is None else definition.bias[pick]
            return self.emit(Convolution, n, frame, taps=taps, bias=bias)
        if isinstance(definition, Pointwise) and all(step.value is None for step in definition.steps):

            def exchanged(base: int, inner: Tensor) -> int:
                return self.out(self.selected(self.source(base), inner.tolist()))

            copy = definition.picked(pick, exchanged, whole=no_operand)
            result = self.emit(Pointwise, n, frame, base=copy.base, steps=copy.steps)
            return self._marked_alike(source, result)
        identity = self._identity(self.space.channels(source), pick.tolist(), range(n), n)
        return self.emit(Convolution, n, frame, taps=(Tap(out, 0, 0, identity),))

    def _marked_alike(self, source: int, copy: int) -> int:
        """Returns the copy of a value, marked as part of a closing softmax if the value is."""
        if source in self.closings:
            self.closings[copy] = self.closings[source]
        return copy

    def _identity(self, rows: int, channels: Sequence[int], at: Sequence[int], count: int) -> Tensor:
        weight = torch.zeros(rows, count, dtype=self.dtype, device=self.device)
        weight[list(channels), list(at)] = 1
        return weight

    # -- over pixels

    def convolution(
        self,
        parts: Sequence[Map],
        offsets: Sequence[tuple[int, int]],
        weights: Tensor,
        bias: Tensor | None,
        out: Sequence[int],
    ) -> Map:
        """parts: maps laid out as [N, C, h, w], whose sum is taken; weights: [taps, C, channels], of taps at
        ``offsets``; out: the shape of the result, [N, channels, h, w]."""
        live = (weights != 0).any(2).cpu()
        taps: dict[tuple[int, int, int], Tensor] = {}
        for segment in [segment for part in parts for segment in self._segments(part)]:
            at = torch.tensor(segment.at)
            reading = live[:, at].any(1).nonzero()[:, 0].tolist()
            segment = self._readable(segment, (out[2], out[3]), [offsets[tap] for tap in reading])
            rows, count = torch.tensor(segment.channels), self.space.channels(segment.source)
            for tap in reading:
                key = (
                    self.out(segment.source),
                    offsets[tap][0] + segment.dy,
                    offsets[tap][1] + segment.dx,
                )
                if any(abs(shift) >= size for shift, size in zip(key[1:], self.space.grid, strict=True)):
                    continue  # outside the image from every pixel
                full = weights[tap]
                if not (segment.channels == segment.at and len(rows) == count == len(full)):
                    full = full.new_zeros(count, out[1])
                    full.index_add_(0, rows.to(full.device), weights[tap][at.to(full.device)])
                taps[key] = taps[key] + full if key in taps else full
        value = self.emit(
            Convolution,
            out[1],
            (out[2], out[3]),
            bias=None if bias is None else bias.detach().to(self.dtype).clone(),
            taps=tuple(Tap(*key, weight) for key, weight in taps.items()),
        )
        return self.whole(value)

    def _segments(self, x: Map) -> list[Segment]:
        """The segments of a map that was windowed."""
        if x.source is None:
            return self.space.segments(x.addresses)
        channels = list(range(self.space.channels(x.source)))
        return [Segment(x.source, channels, channels, 0, 0, torch.ones(self.space.grid, dtype=torch.bool))]

    def _readable(self, segment: Segment, frame: tuple[int, int], taps: Sequence[tuple[int, int]]) -> Segment:
        """A segment from which these taps read, for every element of the frame, what PyTorch reads there: a value is
        zero outside the grid only, so zeros that the segment has inside the grid are multiplied in."""

        def read(axis: int, tap: tuple[int, int]) -> slice:
            first = tap[axis] + (segment.dy, segment.dx)[axis]
            return slice(max(0, first), max(0, first + frame[axis]))

        if all(bool(segment.given[read(0, tap), read(1, tap)].all()) for tap in taps):
            return segment
        mask = segment.given.to(self.device, self.dtype)[..., None]
        mask = mask.expand(-1, -1, self.space.channels(segment.source)).contiguous()
        step = Step("multiply_condition", condition=self.operands.per_pixel(mask))
        return segment._replace(source=self.step(segment.source, [step]))

    # -- maps of other sizes than the image

    def windowed(self, x: Map) -> Map:
        """The same map, whose elements are of values that have the size of the image: of a larger one, the window that
        is read, which is a value of its own.

        x: where it is laid out as [N, C, H, W], a window is chosen that x is not shifted against.
        """
        if x.source is not None and self.space.has_whole_frame(x.source):
            return x
        found = [
            s
            for s in x.sources
            if isinstance(self.space.sources[s], Value) and not self.space.has_whole_frame(s)
        ]
        if not found:
            return x
        addresses = x.addresses.clone()
        elements = self.space.decode(addresses)
        for s in found:
            here = elements.source == s
            at = [
                self._window(axis, index[here], here, addresses)
                for axis, index in enumerate((elements.y, elements.x))
            ]
            window = self._window_of(s, *at)
            y, x_ = elements.y[here] - at[0], elements.x[here] - at[1]
            addresses[here] = self.space.at(window, elements.image[here], elements.channel[here], y, x_)
        return self.map(addresses)

    def _window(self, axis: int, index: Tensor, here: Tensor, addresses: Tensor) -> int:
        """Which row, or column, of a larger map is the first of its window. index: those that are read."""
        size = self.space.grid[axis]
        first, last = int(index.min()), int(index.max())
        if last - first >= size:
            raise Unsupported(
                "it reads more of a feature map that is larger than the image than fits into the image: crop the map "
                "first"
            )
        wanted = first
        if addresses.dim() == 4 and addresses.shape[2 + axis] == size:
            place = here.nonzero()[int(index.argmin()), 2 + axis]
            wanted = first - int(place)
        return min(max(wanted, last - size + 1), first)

    def _window_of(self, source: int, dy: int, dx: int) -> int:
        """A value that holds at (y, x) what this one holds at (y + dy, x + dx)."""
        if (dy, dx) == (0, 0) and self.space.has_whole_frame(source):
            return source
        key = (source, dy, dx)
        if key not in self._windows:
            i = self.instruction(source)
            copy = i.rewired(
                operand=lambda read: read.of(self.out(self._window_of(self.source(read.value), dy, dx))),
                tap=lambda tap: replace(tap, dy=tap.dy + dy, dx=tap.dx + dx),
            )
            out = len(self.instructions)
            self.instructions.append(replace(copy, out=out))
            result = self.space.allot(Value(out), i.channels, self.space.grid)
            self._windows[key] = self._marked_alike(source, result)
        return self._windows[key]

    def copied(self, x: Map, place: tuple[int, int] | None = None) -> Map:
        """The same map as one value, which holds its shifts, zeros, operands and repeated channels as elements of its
        own. place: the row and column of the image that the first element of a smaller map is put at."""
        x = self.windowed(x)
        standard, back = self.space.standard(x.addresses)
        n, channels, height, width = standard.shape
        if height > self.space.grid[0] or width > self.space.grid[1]:
            raise Unsupported(
                f"a map of {[height, width]} pixels, which is larger than the image, is shifted and combined with "
                "something else"
            )
        top, left = self._place(standard) if place is None else place
        whole = standard.new_zeros(n, channels, *self.space.grid)
        whole[:, :, top : top + height, left : left + width] = standard
        copy = self.space.of(self.gathered(self.map(whole)))
        return self.map(back(copy[:, :, top : top + height, left : left + width]))

    def place_of(self, x: Map) -> tuple[int, int]:
        """The place at which a map that is no larger than the image is least shifted."""
        return self._place(self.space.standard(self.windowed(x).addresses)[0])

    def _place(self, x: Tensor) -> tuple[int, int]:
        """The row and column of the image at which a map that is no larger, [N, C, h, w], is least shifted."""
        values = self.space.only(x, Value)
        place = [0, 0]
        if bool(values.any()):
            _, _, y, x_ = (int(i) for i in values.nonzero()[0])
            found = self.space.decode(values[values != 0][:1])
            place = [int(found.y) - y, int(found.x) - x_]
        sizes = zip(place, self.space.grid, x.shape[2:], strict=True)
        top, left = (min(max(at, 0), whole - size) for at, whole, size in sizes)
        return top, left

    def gathered(self, x: Map) -> int:
        """The value that x, laid out as [N, C, H, W], equals; a new one unless x is some channels of one value."""
        x = self.windowed(x)
        channels, frame = x.shape[1], self.space.grid
        operands = self.space.only(x.addresses, OPERANDS)
        features = self.map(self.space.only(x.addresses, Value)) if bool(operands.any()) else x
        segments = self._segments(features)
        for s in segments:
            if len(segments) == 1 and len(s.at) == channels and features is x:
                if (s.dy, s.dx) == (0, 0) and bool(s.given.all()):
                    return self.selected(s.source, s.channels)
        identity = torch.eye(channels, dtype=self.dtype, device=self.device)[None]
        out = self.convolution([features], [(0, 0)], identity, None, (self.space.images, channels, *frame))
        if bool(operands.any()):
            out = self._with_operand("add", out, self.map(operands), operands.shape, 1.0)
        assert out.source is not None
        return out.source

    def divided(self, x: Map) -> tuple[Map, Tensor | None]:
        """x: laid out as [N, C, h, w] -> (the same with zeros in place of operands, addresses of the operands)."""
        operands = self.space.only(x.addresses, OPERANDS) if x.source is None else None
        if operands is None or not bool(operands.any()):
            return x, None
        return self.map(self.space.only(x.addresses, Value)), operands

    def of_operands(self, operands: Tensor) -> Map | None:
        """A value that holds operands, such as a plane of ones; None if they don't fit into the image.

        operands: addresses laid out as [N, C, h, w] -> the same in terms of the value.
        """
        height, width = self.space.grid
        first = self.space.relative(operands)
        live = first != 0
        rows, columns = live.any(3).any(1).any(0), live.any(2).any(1).any(0)
        (top, bottom), (left, right) = (_bounds_of(x) for x in (rows, columns))
        top, left = (0 if bottom <= height else top), (0 if right <= width else left)
        if bottom - top > height or right - left > width or bool((first != first[:1]).any()):
            return None
        used = live[0].flatten(1).any(1).nonzero()[:, 0]
        box = first[0, used, top:bottom, left:right]
        one = torch.where(box == 0, box.flatten(1).amax(1)[:, None, None], box)
        if bool((one == one[:, :1, :1]).all()):
            table = one[:, 0, 0]
        else:
            table = box.new_zeros(height, width, len(used))
            table[: bottom - top, : right - left] = box.permute(1, 2, 0)
        found = self.operands.picked(table)
        if isinstance(found, Tensor) and found.dim() == 1:
            source = self.emit(Convolution, len(used), bias=found)
        else:
            condition = self.operands.per_pixel(found) if isinstance(found, Tensor) else found
            empty = self.emit(Convolution, len(used))
            source = self.step(empty, [Step("add_condition", condition=condition)])
        out, of = torch.zeros_like(operands), self.space.of(source)
        out[:, used, top:bottom, left:right] = of[:, :, : bottom - top, : right - left]
        return self.map(out.where(live, 0))

    # -- over the channels of a pixel

    def by_pixel(self, x: Map, apply: Callable[[Map], Map]) -> Map:
        """Applies a function to the features of each pixel, which are the last axis of x: [..., C] -> [..., D].

        apply: maps [N, C, h, w] to [N, D, h, w].
        """
        split, spatial, channels = self.space.placed(self.windowed(x).addresses)
        last = split.dim() - 1
        if channels[-1:] != [last]:
            raise Unsupported(
                f"it takes the last axis of shape {list(x.addresses.shape)} for features, but pixels lie along it"
            )
        present = [dim for dim in spatial if dim >= 0]
        order = [*channels[:-1], *present, last]
        arranged = split.permute(order)
        groups = arranged.reshape(
            -1, *(split.shape[dim] if dim >= 0 else 1 for dim in spatial), split.shape[last]
        )
        if len(groups) > 256:
            raise Unsupported(f"it works on {len(groups)} groups of features of a pixel, one by one")
        parts = [apply(self.map(group.permute(0, 3, 1, 2))).addresses.permute(0, 2, 3, 1) for group in groups]
        result = torch.stack(parts).reshape(*arranged.shape[:-1], -1)
        result = result.permute([order.index(dim) for dim in range(split.dim())])
        return self.map(result.reshape(*x.addresses.shape[:-1], -1))

    def layer_norm(self, x: Map, eps: float) -> Map:
        """The norm over the last axis."""

        def normed(part: Map) -> Map:
            value = self.gathered(part)
            step = Step("layer_norm", eps, value=Read(self.out(value)))
            return self.whole(self.step(value, [step]))

        return self.by_pixel(x, normed)


def no_operand(value: Any) -> Any:
    raise AssertionError(f"value {value} is read by a step")


def _bounds_of(live: Tensor) -> tuple[int, int]:
    """live: bool [size], some of them true -> the first, and the one after the last."""
    found = live.nonzero()
    return int(found[0]), int(found[-1]) + 1


def _same_pixels(left: Elements, right: Elements) -> bool:
    known = bool((left.source >= 0).all()) and bool((right.source >= 0).all())
    return known and all(
        torch.equal(*pair) for pair in ((left.image, right.image), (left.y, right.y), (left.x, right.x))
    )


def _is_one_per_channel(operand: Tensor, channels: int) -> bool:
    """Whether an operand of [N, C, H, W] is laid out [C, 1, 1], or [N or 1, C, 1, 1]: the most frequent case."""
    return operand.dim() in (3, 4) and operand.shape[-2:] == (1, 1) and operand.shape[-3] in (1, channels)
