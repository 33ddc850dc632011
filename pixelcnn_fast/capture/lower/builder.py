"""Collects the instructions that capture finds, and makes new ones of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.alignment import Segment, grid_of, segments
from pixelcnn_fast.capture.lower.imageless import Imageless, Steps
from pixelcnn_fast.capture.record.shadow_memory import AddressSpace, Elements, Map, OfCondition, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.attention import Attention
from pixelcnn_fast.program.grids import WHOLE, Every, Meeting, meeting, stretch
from pixelcnn_fast.program.in_turn import made
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import Convolution, FromLevels, Pointwise
from pixelcnn_fast.program.operands import ConditionOperand, Read, Step, Tap
from pixelcnn_fast.program.zeros import lets_through

Key = tuple[int, ...]
Frame = tuple[int, int] | None  # None: the rows and columns of a grid that are in the image


class Builder:
    """The instructions so far, each of which defines the value of its number. where: the present call's module;
    outputs: how many numbers the model gives for an image."""

    def __init__(
        self, space: AddressSpace, imageless: Imageless, channels: int, levels: Tensor | None, outputs: int
    ) -> None:
        self.space, self.imageless, self.outputs = space, imageless, outputs
        self.dtype, self.device = imageless.dtype, imageless.device
        self.instructions: list[Instruction] = []
        self.where = "input"
        self.levels = levels
        self._sources: list[int] = []  # by value
        self._windows: dict[Key, int] = {}
        self._selected: dict[Key, int] = {}
        self.states: set[int] = set()  # sources that are what a recurrence gives
        # By the source of an attention, some of whose queries weigh all keys because they are allowed none: the pixels
        # of the other queries, [H, W], and the source that holds their results alone.
        self.where_asked: dict[int, tuple[Tensor, int]] = {}
        self.distributions: list[Tensor] = []  # addresses of each log-softmax, its axis last
        self.softmaxes = count()
        self.inner_softmaxes: Collection[int] = ()  # the numbers of those that are computed
        self.final_softmaxes: dict[int, tuple[str, int]] = {}  # by source: which one it is, and its number
        table = (
            None if levels is None or torch.equal(levels, torch.arange(len(levels)).to(levels)) else levels
        )
        self.images = self.emit(FromLevels, channels, table=None if table is None else table[:, None])

    def emit(self, kind: type[Instruction], channels: int, frame: Any = None, **fields: Any) -> int:
        """frame: how many rows and columns of its grid PyTorch computes, if not those in the image."""
        return self._added(kind(0, channels, self.where, **fields), frame)

    def _added(self, instruction: Instruction, frame: Frame) -> int:
        out, every = len(self.instructions), instruction.every
        self.instructions.append(replace(instruction, out=out))
        frame = frame or self.space.size(every)
        self._sources.append(self.space.allot(Value(out), instruction.channels, frame, every))
        return self._sources[-1]

    def _added_copy(self, copy: Instruction, of: int, frame: Frame) -> int:
        source = self._added(copy, frame)
        if of in self.final_softmaxes:
            self.final_softmaxes[source] = self.final_softmaxes[of]
        return source

    def out(self, source: int) -> int:
        found = self.space.sources[source]
        assert isinstance(found, Value)
        return found.out

    def source(self, out: int) -> int:
        return self._sources[out]

    def instruction(self, source: int) -> Instruction:
        return self.instructions[self.out(source)]

    def map(self, addresses: Tensor) -> Map:
        return Map(self.space, addresses)

    def whole(self, source: int) -> Map:
        return Map(self.space, window=self.space.window(source))

    def moved(self, x: Map, to: dict[int, int], zero: int = 0) -> Map:
        """x with other sources of the same shapes in place of its own; zero: what stands for a zero."""
        if x.window is not None and (zero == 0 or not x.has_zeros):
            channels = self.space.moved(x.window.channels, to)
            return Map(self.space, window=x.window._replace(channels=channels))
        return self.map(self.space.moved(x.addresses, to, zero))

    # -- steps

    def step(self, source: int, steps: Steps) -> int:
        return self.emit(
            Pointwise,
            self.space.channels(source),
            self.space.frame(source),
            base=Read(self.out(source)),
            steps=tuple(self._affine(source, *s) if isinstance(s, tuple) else s for s in steps),
            every=self.space.every(source),
        )

    def _affine(self, source: int, scale: float | Tensor, shift: float | Tensor) -> Step:
        channels = self.space.channels(source)

        def vector(x: float | Tensor) -> Tensor:
            return torch.as_tensor(x, dtype=self.dtype, device=self.device).expand(channels).clone()

        return Step("affine", scale=vector(scale), shift=vector(shift))

    def pair(self, kind: str, a: int, b: int, alpha: float = 1.0) -> int:
        return self.step(a, [Step(kind, alpha, value=Read(self.out(b)))])

    def shifted_state(self, x: Map, beside: int) -> Read | None:
        """Where a step can read x, if that is a recurrence's whole state, shifted. Others
        are left to convolutions, which their readers can take over."""
        shape = (self.space.channels(beside), *self.space.grid)
        if not self.states or x.source is not None or x.shape[1:] != shape:
            return None
        is_state = self.states.issuperset(x.sources) and len(x.sources) == 1
        if not is_state or self.space.frame(beside) != self.space.grid:
            return None
        segment, *others = segments(self.space, x, WHOLE)
        channels = list(range(self.space.channels(segment.source)))
        is_whole = segment.at == segment.channels == channels and not others
        if not is_whole or not self._met(segment, None, WHOLE, 0, 0).all():
            return None
        return Read(self.out(segment.source), segment.dy, segment.dx)

    def with_operand(
        self, kind: str, x: Map, y: Map, alpha: float = 1.0, of: Map | None = None
    ) -> Map | None:
        """x + alpha * y, or x * y, for an imageless y that broadcasts to x; None if no table holds y.
        of: what x is a copy of; whatever multiplies a zero of it counts as zero."""
        if OfCondition in y.kinds:
            self._check_same_images(x, y)
        has_gaps = kind == "multiply" and of is not None and of.source is None
        if x.source is not None and (y.shape[-2:] == (1, 1) or not has_gaps):
            if (table := self._whole_table(x.source, y, x.shape)) is None:
                return None
            tables = {x.source: table}
        else:
            elements = self.space.decode(x.addresses)
            operand = self.space.relative(y.addresses).expand(x.shape)
            if has_gaps and of is not None:
                elements = elements._replace(source=elements.source.where(of.addresses != 0, -1))
            found = {s: self._table(s, elements, operand) for s in x.sources}
            tables = {s: table for s, table in found.items() if table is not None}
            if len(tables) < len(found):
                return None
        operands = {s: self.imageless.picked(table) for s, table in tables.items()}
        to = {s: self._stepped(kind, s, y, alpha) for s, y in operands.items()}
        result = self.moved(x, to)
        if kind == "multiply":
            for s, factors in operands.items():
                result = self._without_zeros(result, to[s], factors)
        return result

    def _without_zeros(self, x: Map, source: int, operand: Tensor | ConditionOperand) -> Map:
        """x with zeros in place of the source's channels that were multiplied by a constant that is zero at all
        pixels, [C] or [H, W, C]."""
        if isinstance(operand, ConditionOperand):
            return x
        live = lets_through(operand).view(-1, operand.shape[-1]).any(0).cpu()
        if bool(live.all()):
            return x
        elements = self.space.decode(x.addresses)
        dead = ~live[elements.channel.clamp_min(0)] & (elements.source == source)
        return self.map(x.addresses.where(~dead, 0))

    def _check_same_images(self, x: Map, y: Map) -> None:
        """Raises Unsupported if y, which broadcasts to x, has a condition of another image."""
        if x.source is not None:
            of_y = y.addresses if y.window is None else y.window.channels[:, :, None, None]
            given = self.space.decode(self.space.only(of_y, OfCondition))
            differ = given.image != torch.arange(x.shape[0]).view(-1, *[1] * (of_y.dim() - 1))
        else:
            given = self.space.decode(self.space.only(y.addresses.expand(x.shape), OfCondition))
            mine = self.space.decode(self.space.only(x.addresses, (Value, OfCondition)))
            differ = (given.image != mine.image) & (mine.source >= 0)
        if bool((differ & (given.source >= 0)).any()):
            raise Unsupported("the condition of one image is combined with another image")

    def _table(self, source: int, elements: Elements, operand: Tensor) -> Tensor | None:
        """The operand's addresses by channel, [C], or [H, W, C] if pixels differ, if a table holds it."""
        here = elements.source == source
        found, channel, y, x = operand[here], elements.channel[here], elements.y[here], elements.x[here]
        table = operand.new_zeros(self.space.channels(source))
        table[channel] = found
        if torch.equal(table[channel], found):
            return table
        table = operand.new_zeros(*self.space.frame(source), self.space.channels(source))
        table[y, x, channel] = found
        fits = torch.equal(table[y, x, channel], found) and self.space.has_whole_frame(source)
        return self._at_pixels(table, source) if fits else None

    def _whole_table(self, source: int, y: Map, shape: torch.Size) -> Tensor | None:
        """``_table`` of y for all of a value, to whose shape it broadcasts."""
        window = None if y.has_zeros else y.window
        of_y = y.addresses if window is None else window.channels[:, :, None, None]
        operand = self.space.relative(of_y)[(None,) * (4 - of_y.dim())]
        first, *others = operand.expand(*shape[:2], -1, -1)
        if any(not torch.equal(other, first) for other in others):
            return None
        if window is not None:
            first = first + window.pixels
        if bool((first == first[:, :1, :1]).all()):
            return first[:, 0, 0]
        if not self.space.has_whole_frame(source):
            return None
        return self._at_pixels(first.expand(shape[1:]).permute(1, 2, 0).contiguous(), source)

    def _at_pixels(self, table: Tensor, source: int) -> Tensor:
        """[rows, columns, C] for the grid of a value -> [H, W, C], zero between its pixels."""
        if (every := self.space.every(source)) == WHOLE:
            return table
        whole = table.new_zeros(*self.space.grid, table.shape[-1])
        whole[:: every[0], :: every[1]] = table
        return whole

    def _stepped(self, kind: str, source: int, operand: Tensor | ConditionOperand, alpha: float = 1.0) -> int:
        """A value's sum or product with a constant, [C] or [H, W, C], or with what depends on the condition."""
        if isinstance(operand, Tensor):
            if operand.dim() == 1:
                affine = (1.0, alpha * operand) if kind == "add" else (operand, 0.0)
                return self.step(source, [affine])
            if kind == "multiply":
                source = self._asked(source, lets_through(operand).any(-1).cpu())
            operand = self.imageless.per_pixel(operand)
        return self.step(source, [Step(f"{kind}_condition", alpha, condition=operand)])

    def _asked(self, source: int, pixels: Tensor) -> int:
        """The source, or one that holds the same at these pixels, [H, W]: others need no keys."""
        first = next((i.out for i in self.instructions if isinstance(i, Attention)), len(self.instructions))
        found: dict[Key, int] = {}

        def less(source: int) -> int | list[Key]:
            i = self.instruction(source)
            if isinstance(i, Attention):
                return self._with_queries(source, i, pixels)
            can_be_less = source not in self.states and self.space.has_whole_frame(source)
            if i.out < first or i.every != WHOLE or not can_be_less:
                return source
            to: dict[int, Key] = {
                read.value: (self.source(read.value),) for read in i.reads() if read.is_here
            }
            if missing := [key for key in to.values() if key not in found]:
                return missing
            if all(found[key] == key[0] for key in to.values()):
                return source

            def moved(read: Read) -> Read:
                return read.of(self.out(found[to[read.value]])) if read.is_here else read

            return self._added_copy(i.rewired(moved, lambda tap: tap.of(moved(tap.read))), source, None)

        return made(found, (source,), less)

    def _with_queries(self, source: int, i: Attention, pixels: Tensor) -> int:
        """An attention with queries at some pixels, if others have keys that are not earlier."""
        if source in self.where_asked:
            has_key, other = self.where_asked[source]
            return source if bool((pixels & ~has_key).any()) else other
        allowed = i.allowed & pixels.view(-1, 1).to(i.allowed.device)
        others = i.allowed & ~allowed
        if i.key is None or not isinstance(i.value, int) or not bool(others.triu().any() & allowed.any()):
            return source
        return self._added(replace(i, allowed=allowed), None)

    # -- parts of values

    def selected(self, source: int, channels: Sequence[int]) -> int:
        """A value that consists of these channels of another, in this order."""
        return made(self._selected, (source, *channels), self._select)

    def _select(self, source: int, *channels: int) -> int | list[Key]:
        definition, frame, n = self.instruction(source), self.space.frame(source), len(channels)
        every = definition.every
        pick, missing = torch.tensor(channels), list[Key]()
        if list(channels) == list(range(self.space.channels(source))):
            return source
        if bool((pick[1:] > pick[:-1]).all()):
            return self.emit(Pointwise, n, frame, base=Read(self.out(source)), pick=pick, every=every)
        is_made_once = definition.reads_levels or isinstance(definition, Attention)
        if is_made_once or any(step.value is not None for step in definition.steps):
            weight = torch.eye(self.space.channels(source), dtype=self.dtype, device=self.device)[:, pick]
            return self.emit(Convolution, n, frame, taps=(Tap(self.out(source), 0, 0, weight),), every=every)

        def exchanged(base: int, inner: Tensor) -> int:
            key = (self.source(base), *inner.tolist())
            if key not in self._selected:
                missing.append(key)
            return self.out(self._selected.get(key, source))

        copy = definition.picked(pick, exchanged, whole=no_operand)
        return missing or self._added_copy(replace(copy, name=self.where), source, frame)

    def window(self, source: int, dy: int, dx: int) -> int:
        """A value with a whole frame that holds at (y, x) of its grid what the source holds at (y + dy, x + dx)."""
        return made(self._windows, (source, dy, dx), self._window)

    def _window(self, source: int, dy: int, dx: int) -> int | list[Key]:
        missing, every = list[Key](), self.space.every(source)
        if (dy, dx) == (0, 0) and self.space.has_whole_frame(source):
            return source

        def moved(value: int, dy: int, dx: int) -> int:
            key = (self.source(value), dy, dx)
            if key not in self._windows:
                missing.append(key)
            return self.out(self._windows.get(key, source))

        def moved_tap(tap: Tap) -> Tap:
            to = tap.dy + dy * every[0], tap.dx + dx * every[1]
            if self.space.has_whole_frame(of := self.source(tap.source)):
                return replace(tap, dy=to[0], dx=to[1])
            # Some channels of such a value, on the same grid.
            by = [at // each for at, each in zip(to, self.space.every(of), strict=True)]
            return replace(tap, source=moved(tap.source, *by), dy=0, dx=0)

        copy = self.instruction(source).rewired(lambda read: read.of(moved(read.value, dy, dx)), moved_tap)
        copy = copy.with_taps(
            tap
            for tap in copy.taps
            if self._reaches(tap.dy, tap.dx, None, every, self.space.every(self.source(tap.source)))
        )
        return missing or self._added_copy(copy, source, None)

    # -- over pixels

    def convolution(
        self,
        parts: Sequence[Map],
        offsets: Sequence[tuple[int, int]],
        weights: Tensor,
        bias: Tensor | None,
        every: Every,
        to: Every,
        frame: tuple[int, int] | None = None,
    ) -> Map:
        """The sum of convolutions of maps [N, C, h, w], of values with whole frames -> [N, channels, *frame].
        weights: [taps, C, channels], for taps at ``offsets``, in pixels, in any dtype; every:
        the grid of the maps; to: that of the result."""
        connected: np.ndarray = lets_through(weights).cpu().numpy().transpose(0, 2, 1)
        live: np.ndarray = np.logical_or.reduce(connected, axis=1)
        of_live = np.flatnonzero(live.any(1)).tolist() or [0]
        first, end = of_live[0], of_live[-1] + 1  # those after the present pixel's are masked
        each = weights[first:end].to(self.dtype, memory_format=torch.contiguous_format).unbind()
        taps: dict[tuple[int, int, int], Tensor] = {}
        known: dict[tuple[int, int, int], np.ndarray] = {}
        for segment in chain.from_iterable(segments(self.space, part, every) for part in parts):
            reading = np.flatnonzero(live[:, segment.at].any(1)).tolist()
            segment = self._readable(segment, frame, to, [offsets[tap] for tap in reading])
            rows, count = segment.channels, self.space.channels(segment.source)
            for tap in reading:
                dy, dx = offsets[tap][0] + segment.dy, offsets[tap][1] + segment.dx
                if not self._met(segment, frame, to, *offsets[tap]).any():
                    continue
                full, lets_pass, start = each[tap - first], connected[tap], segment.at[0]
                if rows == [*range(count)] and segment.at == [*range(start, start + count)]:  # the usual case
                    full, lets_pass = full[start : start + count], lets_pass[:, start : start + count]
                else:
                    own, of_own = full[torch.tensor(segment.at, device=full.device)], lets_pass[:, segment.at]
                    full = full.new_zeros(count, full.shape[1])
                    full.index_add_(0, torch.tensor(rows, device=full.device), own)
                    lets_pass = np.zeros(full.shape[::-1], bool)
                    for row, more in zip(rows, of_own.T, strict=True):
                        lets_pass[:, row] |= more
                key = (self.out(segment.source), dy, dx)
                taps[key] = taps[key] + full if key in taps else full
                known[key] = known[key] | lets_pass if key in known else lets_pass
        value = self.emit(
            Convolution,
            weights.shape[2],
            frame,
            bias=None if bias is None else bias.detach().to(self.dtype).clone(),
            taps=tuple(Tap(*key, weight).known(known[key]) for key, weight in taps.items()),
            every=to,
        )
        return self.whole(value)

    def _reaches(self, dy: int, dx: int, frame: Frame, to: Every, source: Every) -> bool:
        """Whether some pixel of a result, of this frame on its grid, finds a value's grid at (dy, dx)."""
        return all(len(met.source) > 0 for met in self._found(dy, dx, frame, to, source))

    def _found(self, dy: int, dx: int, frame: Frame, to: Every, source: Every) -> list[Meeting]:
        """Which rows and columns of a value it finds there, by their numbers in the value's grid."""
        axes = zip(frame or self.space.size(to), to, source, (dy, dx), self.space.size(source), strict=True)
        return [
            meeting((many - 1) * each + 1, each, other, by).inside(size)
            for many, each, other, by, size in axes
        ]

    def every(self, *maps: Map) -> Every:
        """The grid that maps [N, C, h, w] are on."""
        return grid_of(self.space, *maps)

    def _met(self, segment: Segment, frame: Frame, to: Every, dy: int, dx: int) -> np.ndarray:
        """Which of the pixels that a tap finds are the segment's: others are zero."""
        at = segment.dy + dy, segment.dx + dx
        rows, columns = self._found(*at, frame, to, self.space.every(segment.source))
        return segment.pixels[stretch(rows.source), stretch(columns.source)]

    def _readable(
        self, segment: Segment, frame: Frame, to: Every, taps: Sequence[tuple[int, int]]
    ) -> Segment:
        """Multiplies zeros inside the image in, so that taps read what PyTorch reads."""
        if all(self._met(segment, frame, to, *tap).all() for tap in taps):
            return segment
        mask = torch.from_numpy(segment.pixels).to(self.device, self.dtype)[..., None]
        mask = mask.expand(-1, -1, self.space.channels(segment.source)).contiguous()
        table = self._at_pixels(mask, segment.source)
        return segment._replace(source=self._stepped("multiply", segment.source, table))


def broadcast_shape(*shapes: Sequence[int]) -> torch.Size:
    """As torch.broadcast_shapes, which takes a third of a second to import what it needs."""
    return torch.Size(np.broadcast_shapes(*map(tuple, shapes)))


def no_operand(value: Any) -> Any:
    raise AssertionError(f"value {value} is read by a step")
