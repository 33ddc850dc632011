"""What a tracer has found so far: values, the instructions that define them, and the calls on conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.shadow import AddressSpace, Segment, ShadowMap
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.conditions import Call, Condition
from pixelcnn_fast.program.program import (
    ConditionOperand,
    Convolution,
    FromLevels,
    Instruction,
    Pointwise,
    Read,
    Step,
    Tap,
)

Kernel = Sequence[tuple[int, int, Tensor]]  # taps (dy, dx, weight [in, out])


class Builder:
    """Instructions in the order of the model's calls; instruction k defines value k.

    ``where`` names the module whose forward is running, for the instructions' names.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        n, channels, height, width = shape
        self.space = AddressSpace(n, height, width)
        self.instructions: list[Instruction] = []
        self.calls: list[Call] = [Call(lambda: None, (), {})]  # node 0: what the model was given
        self.dtype, self.device = dtype, device
        self.where: Callable[[], str] = lambda: "model"
        self._shifted: dict[tuple[int, int, int], int] = {}
        self._selected: dict[tuple[int, ...], int] = {}
        self.distributions: list[Tensor] = []  # addresses of each log-softmax, its axis last
        self.closings: dict[int, str] = {}  # by value: the part of a closing softmax that it is
        self.images = self.emit(FromLevels, channels)

    def emit(
        self, kind: type[Instruction], channels: int, frame: tuple[int, int] | None = None, **fields: Any
    ) -> ShadowMap:
        result = self.space.allot(channels, frame or self.space.grid)
        name = "input" if kind is FromLevels else self.where()
        self.instructions.append(kind(len(self.instructions), channels, name, **fields))
        return result

    def zeros_like(self, x: ShadowMap) -> ShadowMap:
        """A map whose elements are those of new values, which are zero everywhere, laid out like x."""
        zeros = {
            value: self.emit(Convolution, self.space.channels(value), self.space.frame(value), taps=()).value()
            for value in self.space.values(x.addresses)
        }
        return ShadowMap(self.space, addresses=self.space.moved(x.addresses, zeros))

    # -- channel by channel

    def pointwise(self, x: ShadowMap, steps: Callable[[int], Sequence[Step]]) -> ShadowMap:
        """Applies steps to every value that x is made of; ``steps`` returns those for one value."""
        value = x.whole()
        if value is not None:
            return self._stepped(value, steps(value))
        values = self.space.values(x.addresses)
        if not values or not all(step.keeps_zero for v in values for step in steps(v)):
            x = self._without_zeros(x)
            values = self.space.values(x.addresses)
        moved = {v: self._stepped(v, steps(v)).value() for v in values}
        return ShadowMap(self.space, addresses=self.space.moved(x.addresses, moved))

    def _without_zeros(self, x: ShadowMap) -> ShadowMap:
        """The same map, whose zeros, if it has any, are elements of a value."""
        if x.whole() is None and bool((x.addresses == 0).any()):
            return self.copied(x)
        return x

    def _stepped(self, value: int, steps: Sequence[Step]) -> ShadowMap:
        frame = self.space.frame(value)
        if frame != self.space.grid and any(step.condition is not None for step in steps):
            if any(step.condition is not None and step.condition.varies_over_pixels for step in steps):
                raise Unsupported(
                    f"an operand that varies over pixels is combined with a map of {list(frame)} pixels, which is not "
                    "the size of the image"
                )
        return self.emit(Pointwise, self.space.channels(value), frame, base=Read(value), steps=tuple(steps))

    def affine(self, x: ShadowMap, scale: float, shift: float) -> ShadowMap:
        return self.pointwise(x, lambda value: [self._affine(value, scale, shift)])

    def _affine(self, value: int, scale: float | Tensor, shift: float | Tensor) -> Step:
        channels = self.space.channels(value)

        def vector(x: float | Tensor) -> Tensor:
            return torch.as_tensor(x, dtype=self.dtype, device=self.device).expand(channels).clone()

        return Step("affine", scale=vector(scale), shift=vector(shift))

    def with_constant(self, kind: str, x: ShadowMap, constant: Tensor, alpha: float = 1.0) -> ShadowMap:
        """x + alpha * constant, or x * constant; the constant may have any shape that broadcasts against that of x."""
        constant = constant.detach()
        if constant.numel() == 1:
            number = constant.item()
            return self.affine(x, 1.0, alpha * number) if kind == "add" else self.affine(x, number, 0.0)
        x, tables = self._aligned(kind, x, constant.to(self.dtype).cpu())

        def steps(value: int) -> list[Step]:
            table = tables[value].to(self.device)
            if table.dim() == 1:
                return [self._affine(value, *((1.0, alpha * table) if kind == "add" else (table, 0.0)))]
            index = torch.arange(table.numel()).view(table.shape)
            return [
                Step(
                    f"{kind}_condition",
                    alpha,
                    condition=ConditionOperand(self.constant(table), index, per_image=False),
                )
            ]

        return self.pointwise(x, steps)

    def constant(self, tensor: Tensor) -> int:
        self.calls.append(Call(lambda: tensor, (), {}))
        return len(self.calls) - 1

    def with_condition(
        self, kind: str, x: ShadowMap, condition: Condition, tensor: Tensor, alpha: float = 1.0
    ) -> ShadowMap:
        """x + alpha * condition, or x * condition; ``tensor`` is the condition's value on the example."""
        shape = torch.broadcast_shapes(x.addresses.shape, tensor.shape)
        per_image = tensor.numel() // tensor.shape[0] if tensor.dim() else 0
        if tensor.dim() != len(shape) or tensor.shape[0] != self.space.images:
            raise Unsupported(
                f"a condition of shape {list(tensor.shape)} is combined with a feature map of shape {list(shape)}: it "
                "needs as many dimensions, the first being the batch"
            )
        x, tables = self._aligned(kind, x, torch.arange(tensor.numel()).view(tensor.shape), per_image)

        def steps(value: int) -> list[Step]:
            return [
                Step(
                    f"{kind}_condition",
                    alpha,
                    condition=ConditionOperand(condition.node, tables[value], per_image=True),
                )
            ]

        return self.pointwise(x, steps)

    def _aligned(
        self, kind: str, x: ShadowMap, operand: Tensor, per_image: int = 0, is_copy: bool = False
    ) -> tuple[ShadowMap, dict[int, Tensor]]:
        """Broadcasts x against an operand -> (x, for each of its values the operand by channel, [C], or by pixel,
        [H, W, C]).

        per_image: if not 0, the operand holds indices of elements, that many for each image, and the tables hold
        indices within an image. is_copy: whether x was copied to make this possible.
        """
        value = x.whole()
        if value is not None and _is_one_per_channel(operand, self.space.channels(value)):
            table = operand.reshape(-1, operand.shape[-3])[0].expand(self.space.channels(value))
            return x, {value: table}
        shape = torch.broadcast_shapes(x.addresses.shape, operand.shape)
        if shape != x.addresses.shape or (kind == "add" and bool((x.addresses == 0).any())):
            x = self.copied(ShadowMap(self.space, addresses=x.addresses.expand(shape)))
        elements = self.space.decode(x.addresses)
        whole_operand = operand
        operand = operand.expand(shape)
        if per_image:
            if not bool(((operand // per_image == elements.image) | (elements.value < 0)).all()):
                raise Unsupported("the condition of one image is combined with another image")
            operand = operand % per_image
        tables = {}
        for value in self.space.values(x.addresses):
            here = elements.value == value
            found, channel, y, y_x = operand[here], elements.channel[here], elements.y[here], elements.x[here]
            table = operand.new_zeros(self.space.channels(value))
            table[channel] = found
            if not torch.equal(table[channel], found):
                table = operand.new_zeros(*self.space.frame(value), self.space.channels(value))
                table[y, y_x, channel] = found
                if not torch.equal(table[y, y_x, channel], found):
                    if not is_copy:  # features occur in it several times, perhaps shifted against each other
                        return self._aligned(kind, self.copied(x), whole_operand, per_image, is_copy=True)
                    raise Unsupported("a constant differs from image to image")
            tables[value] = table
        return x, tables

    def pairwise(self, kind: str, x: ShadowMap, y: ShadowMap, alpha: float = 1.0) -> ShadowMap:
        """x + alpha * y, or x * y, element by element."""
        a, b = x.whole(), y.whole()
        if a is not None and b is not None and self._agree(a, b):
            return self._paired(kind, a, b, alpha)
        shape = torch.broadcast_shapes(x.addresses.shape, y.addresses.shape)
        x, y = (ShadowMap(self.space, addresses=m.addresses.expand(shape)) for m in (x, y))
        left, right = (self.space.decode(m.addresses) for m in (x, y))
        frames = {self.space.frame(value) for m in (x, y) for value in self.space.values(m.addresses)}
        if len(frames) > 1 or not self._same_pixels(left, right):
            x, y = self.copied(x), self.copied(y)
            left, right = (self.space.decode(m.addresses) for m in (x, y))
            if not self._same_pixels(left, right):
                raise Unsupported("it combines different pixels, or rows with columns")
        most = 1 + max(self.space.channels(v) for v in range(len(self.instructions)))
        values = len(self.instructions)
        key = ((left.value * values + right.value) * most + left.channel) * most + right.channel
        corner = (left.image == 0) & (left.y == 0) & (left.x == 0)
        combinations = torch.unique(key[corner])
        found = torch.searchsorted(combinations, key.contiguous()).clamp_max(len(combinations) - 1)
        if not torch.equal(combinations[found], key):
            raise Unsupported("it combines different features at different pixels")
        out = torch.zeros_like(key)
        pair = combinations // (most * most)
        for first in pair.unique().tolist():
            chosen = (pair == first).nonzero()[:, 0]
            a, b = divmod(first, values)
            channels = combinations[chosen] % (most * most)
            a = self.selected(a, (channels // most).tolist())
            b = self.selected(b, (channels % most).tolist())
            value = self._paired(kind, a, b, alpha).value()
            here = (found >= chosen[0]) & (found <= chosen[-1])
            spot = self.space.at(value, left.image, found - chosen[0], left.y, left.x)
            out = torch.where(here, spot, out)
        return ShadowMap(self.space, addresses=out)

    def _agree(self, a: int, b: int) -> bool:
        return self.space.channels(a) == self.space.channels(b) and self.space.frame(a) == self.space.frame(b)

    def _same_pixels(self, left: Any, right: Any) -> bool:
        known = bool((left.value >= 0).all()) and bool((right.value >= 0).all())
        return known and all(
            torch.equal(*pair) for pair in ((left.image, right.image), (left.y, right.y), (left.x, right.x))
        )

    def _paired(self, kind: str, a: int, b: int, alpha: float) -> ShadowMap:
        if self.space.frame(a) != self.space.frame(b):
            raise Unsupported("it combines maps of different sizes")
        step = Step(kind, alpha, value=Read(b))
        return self.emit(Pointwise, self.space.channels(a), self.space.frame(a), base=Read(a), steps=(step,))

    def selected(self, value: int, channels: Sequence[int]) -> int:
        """A value that consists of these channels of another value, in this order."""
        count = self.space.channels(value)
        if list(channels) == list(range(count)):
            return value
        key = (value, *channels)
        if key not in self._selected:
            self._selected[key] = self._select(value, torch.tensor(channels)).value()
        return self._selected[key]

    def _select(self, value: int, pick: Tensor) -> ShadowMap:
        definition, frame, n = self.instructions[value], self.space.frame(value), len(pick)
        if bool((pick[1:] > pick[:-1]).all()):
            return self.emit(Pointwise, n, frame, base=Read(value), pick=pick)
        if isinstance(definition, Convolution):  # other columns of its weights
            taps = tuple(replace(tap, weight=tap.weight[:, pick]) for tap in definition.taps)
            bias = None if definition.bias is None else definition.bias[pick]
            return self.emit(Convolution, n, frame, taps=taps, bias=bias)
        if isinstance(definition, Pointwise) and all(step.value is None for step in definition.steps):
            copy = definition.picked(
                pick, lambda base, inner: self.selected(base, inner.tolist()), whole=_no_operand
            )
            result = self.emit(Pointwise, n, frame, base=copy.base, steps=copy.steps)
            return self._marked_alike(value, result)
        identity = self._identity(value, pick.tolist(), range(n), n)
        return self.emit(Convolution, n, frame, taps=(Tap(value, 0, 0, identity),))

    def _marked_alike(self, value: int, copy: ShadowMap) -> ShadowMap:
        """Returns the copy of a value, marked as part of a closing softmax if the value is."""
        if value in self.closings:
            self.closings[copy.value()] = self.closings[value]
        return copy

    def _identity(self, value: int, channels: Sequence[int], at: Sequence[int], count: int) -> Tensor:
        weight = torch.zeros(self.space.channels(value), count, dtype=self.dtype, device=self.device)
        weight[list(channels), list(at)] = 1
        return weight

    # -- over pixels

    def convolution(self, x: ShadowMap, kernel: Kernel, bias: Tensor | None, out: torch.Size) -> ShadowMap:
        """x: laid out as [N, C, h, w]; out: the shape of the result, [N, channels, h, w]."""
        frame = (out[2], out[3])
        live = [(dy, dx, weight) for dy, dx, weight in kernel if bool(weight.any())]
        taps: dict[tuple[int, int, int], Tensor] = {}
        for segment in self._segments(x):
            reads = [(dy, dx) for dy, dx, weight in live if bool(weight[segment.at].any())]
            segment = self._readable(segment, frame, reads)
            rows, at = torch.tensor(segment.channels), torch.tensor(segment.at)
            for dy, dx, weight in live:
                if (dy, dx) in reads:
                    full, count = weight, self.space.channels(segment.value)
                    if not (segment.channels == segment.at and len(rows) == count == len(weight)):
                        full = weight.new_zeros(count, out[1])
                        full.index_add_(0, rows.to(weight.device), weight[at.to(weight.device)])
                    key = (segment.value, dy + segment.dy, dx + segment.dx)
                    taps[key] = taps[key] + full if key in taps else full
        return self.emit(
            Convolution,
            out[1],
            frame,
            bias=None if bias is None else bias.detach().clone(),
            taps=tuple(Tap(*key, weight) for key, weight in taps.items()),
        )

    def _segments(self, x: ShadowMap) -> list[Segment]:
        value = x.whole()
        if value is None:
            return self.space.segments(x.addresses)
        channels, (height, width) = list(range(self.space.channels(value))), self.space.frame(value)
        return [Segment(value, channels, channels, 0, 0, (0, height), (0, width))]

    def _readable(self, segment: Segment, frame: tuple[int, int], taps: Sequence[tuple[int, int]]) -> Segment:
        """A segment from which these taps read, for every element of the frame, what PyTorch reads there. A value is
        zero outside the grid only, so zeros that the segment has inside the grid are multiplied in."""
        if self.space.frame(segment.value) != self.space.grid and (segment.dy, segment.dx) != (0, 0):
            value = self._shifted_value(segment.value, segment.dy, segment.dx)
            segment = segment._replace(value=value, dy=0, dx=0)
        masked = False
        for axis, (live, shift) in enumerate(((segment.rows, segment.dy), (segment.columns, segment.dx))):
            size = self.space.grid[axis]
            for tap in taps:
                for at in range(tap[axis], frame[axis] + tap[axis]):
                    inside, given = 0 <= at + shift < size, live[0] <= at < live[1]
                    if given and not inside:
                        raise Unsupported(
                            "a convolution reads a feature map that is larger than the image at pixels outside the "
                            "image: crop the map first"
                        )
                    masked |= inside and not given
        if masked:
            mask = torch.zeros(*self.space.grid, 1, dtype=self.dtype, device=self.device)
            (top, bottom), (left, right) = segment.rows, segment.columns
            dy, dx = segment.dy, segment.dx
            mask[top + dy : bottom + dy, left + dx : right + dx] = 1
            channels = self.space.channels(segment.value)
            mask = mask.expand(-1, -1, channels).contiguous()
            index = torch.arange(mask.numel()).view(mask.shape)
            step = Step(
                "multiply_condition", condition=ConditionOperand(self.constant(mask), index, per_image=False)
            )
            masked_value = self.emit(Pointwise, channels, base=Read(segment.value), steps=(step,)).value()
            segment = segment._replace(value=masked_value)
        return segment

    def _shifted_value(self, value: int, dy: int, dx: int) -> int:
        """A value that holds at (y, x) what this one, whose frame is not the grid, holds at (y + dy, x + dx)."""
        key = (value, dy, dx)
        if key not in self._shifted:
            i = self.instructions[value]
            if any(step.condition is not None and step.condition.varies_over_pixels for step in i.steps):
                raise Unsupported(
                    "a map that is larger or smaller than the image is combined with an operand that varies over pixels"
                )
            copy = i.rewired(
                operand=lambda read: read.of(self._shifted_value(read.value, dy, dx)),
                tap=lambda tap: replace(tap, dy=tap.dy + dy, dx=tap.dx + dx),
            )
            result = self.space.allot(i.channels, self.space.grid)
            self.instructions.append(replace(copy, out=len(self.instructions), name=self.where()))
            self._shifted[key] = self._marked_alike(value, result).value()
        return self._shifted[key]

    def copied(self, x: ShadowMap) -> ShadowMap:
        """The same map as one value, which holds its shifts, zeros and repeated channels as elements of its own."""
        standard, back = self._standard(x.addresses)
        n, channels, height, width = standard.shape
        if (height, width) != self.space.grid:
            raise Unsupported(
                f"a map of {[height, width]} pixels, which is not the size of the image, is shifted and combined with "
                "something else"
            )
        whole = self.gathered(ShadowMap(self.space, addresses=standard))
        return ShadowMap(self.space, addresses=back(self.space.of(whole)))

    def gathered(self, x: ShadowMap) -> int:
        """The value that x, laid out as [N, C, H, W], equals; a new one unless x is some channels of one value."""
        channels, frame = x.addresses.shape[1], self.space.grid
        segments = self._segments(x)
        for s in segments:
            if len(segments) == 1 and len(s.at) == channels and self.space.frame(s.value) == frame:
                if (s.dy, s.dx, s.rows, s.columns) == (0, 0, (0, frame[0]), (0, frame[1])):
                    return self.selected(s.value, s.channels)
        identity = torch.eye(channels, dtype=self.dtype, device=self.device)
        return self.convolution(x, [(0, 0, identity)], None, x.addresses.shape).value()

    def _standard(self, addresses: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Addresses laid out as [N, C, H, W], and a function that restores their own shape."""
        whole = (self.space.images, *addresses.shape[1:2], *self.space.grid)
        try:
            spatial, channels = self.space.layout(addresses)
        except Unsupported:
            if addresses.shape != whole:
                raise
            return addresses, lambda standard: standard  # channels that are shifted against each other
        if addresses.shape == whole and all(
            dim in (-1, usual) for dim, usual in zip(spatial, (0, 2, 3), strict=True)
        ):
            return (
                addresses,
                lambda standard: standard,
            )  # also if an axis can't be told: its size is 1, or all is zero
        present = [dim for dim in spatial if dim >= 0]
        order = [*spatial[:1], *channels, *spatial[1:]]
        order = [dim for dim in order if dim >= 0]
        sizes = [addresses.shape[dim] if dim >= 0 else 1 for dim in spatial]
        rearranged = addresses.permute(order)
        kept = rearranged.shape
        assert len(present) + len(channels) == addresses.dim()

        def back(standard: Tensor) -> Tensor:
            return standard.reshape(kept).permute([order.index(dim) for dim in range(addresses.dim())])

        return rearranged.reshape(sizes[0], -1, sizes[1], sizes[2]), back

    def linear(self, x: ShadowMap, weight: Tensor, bias: Tensor | None) -> ShadowMap:
        """x: [..., channels in], the other dimensions being those of the image; weight: [out, in]."""
        addresses = x.addresses
        standard, back = self._standard(addresses)
        spatial, channels = self.space.layout(addresses)
        if channels[-1:] != [addresses.dim() - 1] or standard.shape[1] != addresses.shape[-1]:
            raise Unsupported(
                f"a linear layer on shape {list(addresses.shape)}, whose last axis does not hold the channels"
            )
        out = self.convolution(
            ShadowMap(self.space, addresses=standard),
            [(0, 0, weight.detach().T)],
            bias,
            torch.Size((standard.shape[0], weight.shape[0], *standard.shape[2:])),
        )
        order = [dim for dim in (spatial[0], addresses.dim() - 1, *spatial[1:]) if dim >= 0]
        kept = [weight.shape[0] if dim == addresses.dim() - 1 else addresses.shape[dim] for dim in order]
        result = out.addresses.reshape(kept).permute([order.index(d) for d in sorted(order)])
        return ShadowMap(self.space, addresses=result.reshape(*addresses.shape[:-1], weight.shape[0]))

    def layer_norm(self, x: ShadowMap, dims: int, eps: float) -> ShadowMap:
        """The norm over the last ``dims`` dimensions of x, which must be channels."""
        addresses = x.addresses.flatten(-dims)
        spatial, channels = self.space.layout(addresses)
        if channels[-1:] != [addresses.dim() - 1]:
            raise Unsupported(f"a norm over axes of shape {list(x.addresses.shape)} that do not hold channels")
        out = torch.zeros_like(addresses)
        others = channels[:-1]
        for group in _indices([addresses.shape[dim] for dim in others]):
            at = [slice(None)] * addresses.dim()
            for dim, index in zip(others, group, strict=True):
                at[dim] = slice(index, index + 1)
            standard, back = self._standard(addresses[tuple(at)])
            value = self.gathered(ShadowMap(self.space, addresses=standard))
            norm = Step("layer_norm", eps, value=Read(value))
            normed = self.emit(Pointwise, standard.shape[1], base=Read(value), steps=(norm,))
            out[tuple(at)] = back(normed.addresses)
        return ShadowMap(self.space, addresses=out.view(x.addresses.shape))

    def log_softmax(self, x: ShadowMap, dim: int) -> ShadowMap:
        """The log-softmax over ``dim``; see ``closing``."""
        result = self.closing("log_softmax", x)
        self.distributions.append(result.addresses.movedim(dim, -1))
        return result

    def closing(self, kind: str, x: ShadowMap) -> ShadowMap:
        """A closing 'softmax' or 'log_softmax' of x. A program has no step for it, so the new values only carry a mark;
        once the model has returned, the tracer removes the softmax or refuses it."""
        result = self.pointwise(self._without_zeros(x), lambda _: [])
        for value in self.space.values(result.addresses):
            self.closings[value] = kind
        return result

    def made_by(self, kind: str, x: ShadowMap) -> dict[int, int] | None:
        """Maps each value that x is made of to the value that this one step, or part of a closing softmax, was applied
        to; None if any was computed otherwise."""
        taken_of = {}
        for value in self.space.values(x.addresses):
            i = self.instructions[value]
            steps = [step.kind for step in i.steps]
            if not isinstance(i, Pointwise) or not (self.closings.get(value) == kind or steps == [kind]):
                return None
            taken_of[value] = i.base.value
        return taken_of if bool(x.addresses.all()) else None

    def looked_up(self, x: ShadowMap, table: Tensor) -> ShadowMap:
        """Looks up levels x, of any shape, in ``table`` [levels, width] -> [..., width]."""
        elements = self.space.decode(x.addresses)
        if not bool((elements.value == 0).all()):
            raise Unsupported("it looks up something other than the image's levels")
        width = table.shape[1]
        channels = self.space.channels(0)
        own_table = table.detach().to(self.dtype).clone()
        value = self.emit(FromLevels, channels * width, table=own_table).value()
        image, channel, y, x_ = (part[..., None] for part in elements[1:])
        return ShadowMap(
            self.space, addresses=self.space.at(value, image, channel * width + torch.arange(width), y, x_)
        )


def _no_operand(value: int) -> int:
    raise AssertionError(f"value {value} is read by a step")


def _is_one_per_channel(operand: Tensor, channels: int) -> bool:
    """Whether an operand of [N, C, H, W] is laid out [C, 1, 1], or [N or 1, C, 1, 1]: the most frequent case."""
    return operand.dim() in (3, 4) and operand.shape[-2:] == (1, 1) and operand.shape[-3] in (1, channels)


def _indices(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    result: list[tuple[int, ...]] = [()]
    for size in sizes:
        result = [(*before, i) for before in result for i in range(size)]
    return result
