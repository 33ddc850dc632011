"""Finds the masks where weights of a graph are zero."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from pixelcnn_fast.ops.masked_conv2d.op import expands
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import (
    DIV,
    MUL,
    MUL_IN_PLACE,
    NEW_DATA,
    MemoryView,
    Writes,
    evaluated,
    is_call,
    name_of,
    storages,
    value,
    view,
    written,
)

WHERE = frozenset((torch.where, "where"))
MASKED_FILL = frozenset((torch.masked_fill, "masked_fill"))
KEEPING_ZEROS = frozenset(
    (operator.neg, torch.neg, *"neg to float double half bfloat16 type_as contiguous clone".split())
)


class MaskedWeight(NamedTuple):
    """A weight that is zero where ``mask`` is zero, or, inverted, where it isn't.

    since: the call that made it so. in_place: whether that wrote into the weight itself,
    whose own gradient is then the convolution's. through: the calls that hand the zeros on
    to the weight.
    """

    mask: fx.Node
    since: fx.Node
    inverted: bool = False
    in_place: bool = False
    through: tuple[fx.Node, ...] = ()

    def reads(self) -> list[fx.Node]:
        """What nobody may write into, or the weight is not zero there any more."""
        return [self.mask, *self.through]

    def kept(self, captured: CapturedGraph) -> Tensor | None:
        """Where the weight isn't masked now, if that can be known."""
        now = evaluated(self.mask, captured.real, captured.writes)
        return None if now is None or now.is_meta else (now == 0 if self.inverted else now != 0)

    def inserted(self, graph: fx.Graph) -> fx.Node:
        """A new node that says where the weight isn't masked."""
        return graph.call_function(torch.eq if self.inverted else torch.ne, (self.mask, 0))

    def repeated(self) -> list[fx.Node]:
        """The calls of the graph that write these zeros again."""
        masking = _masking(self.since) if self.in_place else None
        return [node for node in self.mask.graph.nodes if masking and _masking(node) == masking]


class MaskedInPlace:
    """The weights that are masked in place, as far as a graph has been walked."""

    def __init__(self, writes: Writes) -> None:
        self._writes = writes
        self._found: dict[MemoryView, tuple[MaskedWeight, ...]] = {}
        self._moved: set[int] = set()  # storages of tensors with other data

    def __getitem__(self, node: Any) -> tuple[MaskedWeight, ...]:
        where = view(node)
        return () if where is None else self._found.get(where, ())

    def follow(self, node: fx.Node) -> None:
        """Notes what a call masks, and forgets what it overwrites."""
        masked, into = self._masked_by(node), written(node)
        for where, found in list(self._found.items()):
            if where.storage in into:
                del self._found[where]
            else:
                self._found[where] = tuple(old for old in found if into.isdisjoint(storages(old.mask)))
        if name_of(node) in NEW_DATA:
            self._moved |= storages(node.args[0])
        elif not self._moved.isdisjoint(into):  # it may be another's data by now
            return
        if masked and (where_now := view(node.args[0])) is not None:
            self._found[where_now] = masked

    def _masked_by(self, node: fx.Node) -> tuple[MaskedWeight, ...]:
        if (masking := _masking(node)) is not None:
            mask, inverted, _ = masking
            return (MaskedWeight(mask, node, inverted, True),)
        if name_of(node) in (*NEW_DATA, "copy_") and len(node.args) == 2:
            return tuple(
                found._replace(since=node, in_place=True, through=())
                for found in masks_of(node.args[1], self)
                if self._writes.none_between(found.since, node, found.reads())
            )
        return ()


def masks_of(weight: Any, in_place: MaskedInPlace) -> Iterator[MaskedWeight]:
    """The ways in which a weight is known to be masked."""
    if isinstance(weight, fx.Node):
        for found in _masks_of(weight, in_place):
            yield found._replace(through=(*found.through, weight))


def _masks_of(weight: fx.Node, in_place: MaskedInPlace) -> Iterator[MaskedWeight]:
    yield from in_place[weight]
    if is_call(weight, WHERE) and len(weight.args) == 3:
        condition, kept, other = weight.args
        if weight.op == "call_method":
            condition, kept = kept, condition
        if isinstance(condition, fx.Node) and (_is_zero(kept) or _is_zero(other)):
            yield MaskedWeight(condition, weight, inverted=_is_zero(kept))
    elif is_call(weight, MASKED_FILL) and len(weight.args) == 3:
        if isinstance(weight.args[1], fx.Node) and _is_zero(weight.args[2]):
            yield MaskedWeight(weight.args[1], weight, inverted=True)
    elif is_call(weight, MUL) and len(weight.args) == 2:
        for mask, other in (weight.args, weight.args[::-1]):
            if isinstance(mask, fx.Node) and _is_mask(mask, weight):
                yield MaskedWeight(mask, weight)
            yield from masks_of(other, in_place)
    elif is_call(weight, DIV | KEEPING_ZEROS):
        yield from masks_of(weight.args[0], in_place)


def _masking(node: fx.Node) -> tuple[fx.Node, bool, MemoryView | None] | None:
    """The mask of a call that masks in place, whether it zeroes where that isn't zero, and what it masks."""
    if is_call(node, MUL_IN_PLACE) and len(node.args) == 2 and _is_mask(node.args[1], node.args[0]):
        return cast(fx.Node, node.args[1]), False, view(node.args[0])
    is_fill = is_call(node, ("masked_fill_",)) and len(node.args) == 3 and _is_zero(node.args[2])
    if is_fill and isinstance(node.args[1], fx.Node):
        return node.args[1], True, view(node.args[0])
    return None


def _is_mask(mask: Any, weight: Any) -> bool:
    m, w = value(mask), value(weight)
    if m is None or w is None or m.requires_grad or m.dim() < 2:
        return False
    return expands(m, w.shape)


def _is_zero(x: Any) -> bool:
    if isinstance(x, fx.Node):
        made = is_call(x, (torch.zeros_like, torch.zeros, "new_zeros")) or (
            is_call(x, (torch.tensor,)) and isinstance(x.args[0], (int, float)) and x.args[0] == 0
        )
        # Nobody writes into it.
        return made and all(is_call(user, WHERE | MASKED_FILL) for user in x.users)
    return isinstance(x, (int, float)) and x == 0
