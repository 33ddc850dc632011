"""Makes tables of functions of one level of the image that have no step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.builder import Builder, broadcast_shape, no_operand
from pixelcnn_fast.capture.record.shadow_memory import Constant, Map, Source, Value, unrecorded
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.formulas import apply_steps
from pixelcnn_fast.program.instruction import Instruction
from pixelcnn_fast.program.instructions import FromLevels

MOST_COLUMNS = 4096  # of a table


def _from_levels(b: Builder, out: int) -> list[Instruction]:
    """The instructions that make each channel of a value a function of one level, if it is one."""
    found: list[Instruction] = []
    while b.levels is not None:  # no recursion: a thousand steps may follow one another
        i = b.instructions[out]
        if any(s.value is not None or s.condition is not None for s in i.steps):
            break
        found.append(i)
        if i.reads_levels:
            return found[::-1]
        read, _ = i.repeated() or (None, None)
        if read is None or not read.is_here:
            break
        out = read.value
    return []


def by_level(b: Builder, out: int) -> tuple[Tensor, Tensor] | None:
    """-> (what each level makes of a value's channels, [L, channels]; their image channels), or None"""
    count, made = b.space.channels(b.images), None
    for i in _from_levels(b, out):
        if made is None:
            assert isinstance(i, FromLevels) and b.levels is not None
            table = b.levels[:, None] if i.table is None else i.table
            start, channel = table.repeat(1, count), torch.arange(count).repeat_interleave(i.width)
        else:
            _, pick = i.repeated() or (None, None)
            start, channel = made if pick is None else (made[0][:, pick], made[1][pick])
        made = apply_steps(start, i.steps, no_operand, no_operand), channel
    return made


def _values(b: Builder, x: Map) -> list[int]:
    return [source.out for s in x.sources if isinstance(source := b.space.sources[s], Value)]


def of_levels(b: Builder, x: Map) -> bool:
    return x.kinds <= {Constant, Value} and all(_from_levels(b, out) for out in _values(b, x))


def told_apart(b: Builder, x: Map) -> int:
    """The least number of levels that the functions of levels in a map tell apart."""
    found = [by_level(b, out) for out in _values(b, x)]
    return min((len(table[0].unique(dim=0)) for table in found if table is not None), default=0)


def is_made_by_the_model(b: Builder, x: Map) -> bool:
    """Whether tables of levels hold x as the model rounds it: without steps after them."""
    made = [_from_levels(b, out) for out in _values(b, x)]
    return all(each and not any(i.steps for i in each) for each in made)


def tabulated(
    b: Builder,
    maps: Sequence[Map],
    function: Callable[..., Tensor],
    constants: Sequence[Tensor] = (),
    width: int | None = None,
    is_needed: bool = True,
    is_same: bool = True,
) -> Map:
    """A function of one level at a time, and of constants, for which there is no step.

    maps: what depends on that level, or is a constant, broadcast; constants: addresses that broadcast to them.
    function: (what the levels make of elements of each map, [L, n]; their constants, [n])
    -> [L, n], or [L, n, width], whose last axis becomes one of the result. is_needed: False
    to raise Unsupported where pixels have different functions; is_same: whether elements
    differ in constants only.
    """
    if width is None and is_same and (whole := _of_whole_tables(b, maps, function, constants)) is not None:
        return whole
    shape = broadcast_shape(*(x.shape for x in maps), *(x.shape for x in constants))
    at = torch.stack([x.addresses.expand(shape) for x in maps])
    elements, (sources, index) = b.space.decode(at), b.space.joined(at)
    tables, channels = zip(*(_table_of(b, s) for s in (Constant(b.imageless.zero), *sources)), strict=True)
    level = torch.stack([torch.cat(channels)[index], elements.image, elements.y, elements.x])
    varies = level[0] >= 0
    found = level.gather(1, varies.int().argmax(0, keepdim=True).expand(4, 1, *shape))
    if bool(((level != found) & varies).any()):
        raise Unsupported(
            "there is no such step, and it is a function of several levels, which no table holds"
        )
    columns, which = _alike(torch.cat(tables, 1))
    others = [b.space.relative(x).expand(shape).flatten() for x in constants]
    keys, inverse = _distinct(torch.stack([*which.cpu()[index].flatten(1), *others]))
    of_level = varies.any(0)
    count = len(inverse[of_level.flatten()].unique())
    rows, across = (int(part.max() - part.min()) + 1 for part in found[2:])
    if not is_needed and count > 1 and count * b.space.images * rows * across > shape.numel():
        raise Unsupported("its table would be large")
    if count > MOST_COLUMNS:
        raise Unsupported(f"it consists of {count} functions of a level, which is more than a table holds")
    given = [columns[:, key.to(columns.device)] for key in keys[: len(maps)]]
    made = _real(function(*given, *(b.imageless.constants(key) for key in keys[len(maps) :]))).to(b.dtype)
    if width is None and torch.equal(made, given[0]):
        return b.map(at[0])
    steps = torch.arange(width or 1)
    inverse, made = inverse.view(shape)[..., None] * len(steps) + steps, made.flatten(1)
    of_level = of_level[..., None].expand(inverse.shape)
    if constants:  # such as a mask, which makes zeros of all levels
        of_level = of_level & (made != 0).any(0).cpu()[inverse]
    live, column = inverse[of_level].unique(), torch.zeros(made.shape[1], dtype=torch.long)
    column[live] = torch.arange(len(live))
    out = torch.zeros_like(inverse)
    if len(live):
        table = made[:, live.to(made.device)].contiguous()
        value = b.emit(FromLevels, b.space.channels(b.images) * len(live), table=table)
        channel, image, y, x_ = (part[0, ..., None] for part in found)
        out = b.space.at(value, image, channel * len(live) + column[inverse], y, x_)
    if not bool(of_level.all()):
        out = torch.where(of_level, out, b.imageless.of_constant(made[0])[inverse])
    return b.map(out[..., 0] if width is None else out)


def _of_whole_tables(
    b: Builder, maps: Sequence[Map], function: Callable[..., Tensor], constants: Sequence[Tensor]
) -> Map | None:
    """``tabulated`` for one function of all elements, which is applied to existing tables."""
    (x, *more), found = maps, [b.space.sources[s] for s in maps[0].sources]
    if more or any(c.numel() != 1 for c in constants) or not all(isinstance(f, Value) for f in found):
        return None
    if not bool(x.addresses.all()):
        return None
    numbers = [b.imageless.constants(c.flatten()) for c in constants]
    to = {}
    for s in x.sources:
        i = b.instruction(s)
        if not isinstance(i, FromLevels) or i.table is None or i.steps or i.pick is not None:
            return None
        table = _real(function(i.table, *numbers)).to(b.dtype)
        to[s] = b.emit(FromLevels, i.channels, table=table.contiguous())
    return b.moved(x, to)


def _real(x: Tensor) -> Tensor:
    if x.is_complex():
        raise Unsupported("it computes complex numbers")
    return x


def _alike(columns: Tensor) -> tuple[Tensor, Tensor]:
    """-> (the distinct columns, in their order; which of them each is). Other weights must leave alike what is."""
    first, which = _first_alike(columns)
    bool((columns == columns[:, first[which]]).all())  # which makes a guard
    return columns[:, first], which


@unrecorded
def _first_alike(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Past the recorder of weights, as their order does not matter."""
    _, which = torch.unique(columns, dim=1, return_inverse=True)
    places = torch.arange(len(which), device=which.device)
    first = torch.full_like(which, len(which)).scatter_reduce(0, which, places, "amin")
    first, order = first[: int(which.max()) + 1].sort()
    return first, order.argsort()[which]


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    which = torch.zeros_like(rows[0])
    for row in rows:
        _, one = torch.unique(row, return_inverse=True)
        _, which = torch.unique(which * (int(one.max()) + 1) + one if len(one) else one, return_inverse=True)
    first = torch.zeros(int(which.max()) + 1 if len(which) else 0, dtype=torch.long)
    first[which] = torch.arange(len(which))
    return rows[:, first], which


def _table_of(b: Builder, source: Source) -> tuple[Tensor, Tensor]:
    """-> (what each level makes of a source's elements, [L, n]; their image channels; -1: constants)"""
    if isinstance(source, Constant):
        table = source.elements.to(b.dtype).expand(1 if b.levels is None else len(b.levels), -1)
        return table, torch.full(table.shape[1:], -1)
    found = by_level(b, source.out) if isinstance(source, Value) else None
    if found is None:
        raise Unsupported(
            "there is no such step, and it is not a function of one level, which a table could hold"
        )
    return found
