"""Lowers calls on levels of the image, which tables hold; any pointwise call may be among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.capture.lower.calls.registry import LoweringContext, lowers
from pixelcnn_fast.capture.lower.tables import is_made_by_the_model, of_levels, tabulated, told_apart
from pixelcnn_fast.capture.record.shadow_memory import Map
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, View, functional, plain_name
from pixelcnn_fast.program.steps import ACTIVATIONS

# Calls that are pointwise whether or not PyTorch tags them so.
POINTWISE_TOO = frozenset(
    (*ACTIVATIONS, *"_to_copy floor_divide __and__ __or__ __xor__ _prelu_kernel".split())
)
# Calls on each channel with constants of its own, [C]; their other results are not used.
CHANNELWISE = frozenset(
    "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm _batch_norm_no_update".split()
)


def _looked_up(t: LoweringContext, table: Tensor, levels: View) -> Map:
    width = table[0].numel()

    def rows(column: Tensor) -> Tensor:
        return table.detach().reshape(len(table), width)[column.long()]

    found = tabulated(t.builder, [t.map(levels)], rows, width=width).addresses
    return t.builder.map(found.reshape(*found.shape[:-1], *table.shape[1:]))


lowers("embedding")(lambda t, weight, levels, *_, **named: _looked_up(t, t.constant(weight), levels))


@lowers("index")
def _index(t: LoweringContext, x: View, indices: Sequence[View | None]) -> Map:
    first, *others = indices
    if first is None or any(i is not None for i in others):
        raise Unsupported("an index that is not constant is supported only alone, and on the first axis")
    return _looked_up(t, t.constant(x), first)


@lowers("index_select")
def _index_select(t: LoweringContext, x: View, dim: int, index: View) -> Map:
    found = _looked_up(t, t.constant(x).movedim(dim, 0), index)
    return t.builder.map(found.addresses.movedim(0, dim))


@lowers("scatter")
def _scatter(t: LoweringContext, x: View, dim: int, index: View, value: Any) -> Map:
    into, at = t.map(x).addresses, t.map(index).addresses
    if isinstance(value, View) and bool((t.constant(value) == t.constant(value).view(-1)[:1]).all()):
        value = t.constant(value).view(-1)[0].item()
    if isinstance(value, View) or bool(into.any()) or at.shape[dim] != 1:
        raise Unsupported("its index depends on the image; supported is F.one_hot(x, classes)")
    width = into.shape[dim]

    def one_hot(column: Tensor) -> Tensor:
        return F.one_hot(column.long(), width) * value

    found = tabulated(t.builder, [t.builder.map(at.squeeze(dim))], one_hot, width=width)
    return t.builder.map(found.addresses.movedim(-1, dim))


JUMPS = frozenset("floor ceil round trunc frac sign heaviside floor_divide remainder fmod".split())
ROUNDINGS = 4  # by which what the model compares may differ from what steps give


def _is_pointwise(call: Call) -> bool:
    name = plain_name(call.name)
    is_tagged = torch.Tag.pointwise in call.operator.tags or name in POINTWISE_TOO
    if name in CHANNELWISE:  # not with the batch's statistics; a view with gaps is rounded otherwise
        return True not in call.args and call.args[0].is_contiguous
    return is_tagged and len(call.results) == 1


def has_table(t: LoweringContext, call: Call) -> bool:
    """Whether a call is pointwise and works on functions of levels."""
    return _is_pointwise(call) and all(
        of_levels(t.builder, t.map(x)) for x in call.inputs if t.depends_on_image(x)
    )


def by_table(t: LoweringContext, call: Call, is_needed: bool = True) -> Map:
    """The map of a pointwise call on one level. is_needed: False to refuse a large table."""
    if not _is_pointwise(call):
        raise Unsupported("this call is not supported")
    args = list(call.args)
    images = [i for i, x in enumerate(args) if isinstance(x, View) and t.depends_on_image(x)]
    others = [i for i, x in enumerate(args) if isinstance(x, View) and i not in images]
    operator = functional(call.name)

    def made(columns: Sequence[Tensor], moved: float = 0) -> Tensor:
        filled = [*args]
        for i, column in zip([*images, *others], columns, strict=True):
            if moved and column.is_floating_point():
                column = column + moved * torch.finfo(args[i].dtype).eps * column.abs()
            # No axis is added to a number, as its dtype counts for less.
            filled[i] = (column if args[i].size else column[0]).to(args[i].dtype)
        result = operator(*filled, **call.kwargs)
        return result if isinstance(result, Tensor) else result[0]

    def function(*columns: Tensor) -> Tensor:
        result = made(columns)
        if not are_exact and (not result.is_floating_point() or plain_name(call.name) in JUMPS):
            if any(not torch.equal(made(columns, by), result) for by in (-ROUNDINGS, ROUNDINGS)):
                raise Unsupported(
                    "a level lies where it jumps, and rounding decides on which side: apply it to the image itself, or "
                    "to what is computed from it element by element"
                )
        return result

    maps, is_channelwise = [t.map(args[i]) for i in images], plain_name(call.name) in CHANNELWISE
    are_exact = all(is_made_by_the_model(t.builder, x) for x in maps)
    constants = [t.map(args[i]).addresses for i in others]
    if is_channelwise:
        constants = [c.view(-1, *[1] * (len(args[0].size) - 2)) for c in constants]
    return tabulated(t.builder, maps, function, constants, is_needed=is_needed, is_same=not is_channelwise)


def cast(t: LoweringContext, x: View, dtype: torch.dtype, table: Map | None) -> Map:
    """x converted to another dtype. table: what that gives, if there is a table of it."""
    if table is not None:
        is_cut = x.dtype.is_floating_point and not dtype.is_floating_point
        if is_cut and told_apart(t.builder, table) <= 2 < told_apart(t.builder, t.map(x)):
            raise Unsupported(f"it rounds to {dtype}, and levels become alike: is image_form right?")
        return table
    is_wider = dtype.is_floating_point and not t.rounds_to(dtype)
    if x.dtype == dtype or (is_wider and x.dtype != torch.bool):
        return t.map(x)
    raise Unsupported(f"it rounds to {dtype}")
