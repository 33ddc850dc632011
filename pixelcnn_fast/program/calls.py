"""Recorded ATen calls, which can run again for a batch of another size.

A tensor of a call is a strided view of a numbered storage, a slot. So views need not be
recorded, and what writes into one is seen by all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchSize:
    """A number that follows the batch: ``times`` for each image, and ``plus`` once."""

    times: int
    plus: int = 0


Size = int | BatchSize
Sizes = tuple[Size, ...]


def size_at(size: Any, n: int) -> Any:
    return size.times * n + size.plus if isinstance(size, BatchSize) else size


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: elements of a slot, from ``offset`` on."""

    slot: int
    size: Sizes
    stride: Sizes
    offset: Size
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, slot: int) -> View:
        return cls(slot, tuple(x.shape), tuple(x.stride()), int(x.storage_offset()), x.dtype)

    def at(self, n: int) -> tuple[Any, Any, Any]:
        """(size, stride, offset) for n images."""
        if BatchSize not in map(type, (*self.size, *self.stride, self.offset)):  # the usual case
            return self.size, self.stride, self.offset
        size, stride = (tuple(size_at(s, n) for s in sizes) for sizes in (self.size, self.stride))
        return size, stride, size_at(self.offset, n)

    @property
    def follows_batch(self) -> bool:
        return any(isinstance(size, BatchSize) for size in self.size)

    @property
    def is_contiguous(self) -> bool:
        expected: Size = 1
        for size, stride in zip(self.size[::-1], self.stride[::-1], strict=True):
            if stride != expected or isinstance(expected, BatchSize):
                return False
            expected = expected * size if isinstance(size, int) else size
        return True


@dataclass(frozen=True, eq=False)
class Call:
    """One call. Tensors are ``View``s; a result that is not a tensor is None. name: such as
    'aten::add.Tensor'; where: the path of the module that made it."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    results: tuple[View | None, ...]
    where: str = ""

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the operator, which is found again by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def operator(self) -> torch._ops.OpOverload:
        return _operator(self.name)

    @property
    def is_random(self) -> bool:
        return draws(self.operator, self.args, self.kwargs)

    @cached_property
    def inputs(self) -> list[View]:
        return [x for x in leaves((self.args, self.kwargs)) if isinstance(x, View)]

    @cached_property
    def read(self) -> frozenset[int]:
        return frozenset(view.slot for view in self.inputs)

    @property
    def outputs(self) -> list[View]:
        return [x for x in self.results if x is not None]

    @cached_property
    def follows_batch(self) -> bool:
        """Whether a number among the arguments follows the batch."""
        return any(isinstance(x, BatchSize) for x in leaves((self.args, self.kwargs)))

    @property
    def has_size_of_values(self) -> bool:
        """Whether the size of its result depends on the values of its arguments."""
        if plain_name(self.name) == "index":
            return any(view.dtype is torch.bool for view in self.inputs[1:])
        return torch.Tag.dynamic_output_shape in self.operator.tags

    @property
    def given(self) -> list[tuple[Any, Any]]:
        """The arguments that it was given, each with its declaration."""
        arguments = self.operator._schema.arguments
        named = [
            (argument, self.kwargs[argument.name]) for argument in arguments if argument.name in self.kwargs
        ]
        return [*zip(arguments, self.args, strict=False), *named]

    @cached_property
    def written(self) -> set[int]:
        """The slots that it creates or writes into."""
        slots = {view.slot for view in self.outputs}
        for argument, x in self.given if self.operator._schema.is_mutable else ():
            if argument.alias_info is not None and argument.alias_info.is_write:
                slots |= {view.slot for view in leaves(x) if isinstance(view, View)}
        return slots


@cache
def _operator(name: str) -> torch._ops.OpOverload:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def draws(operator: torch._ops.OpOverload, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws random numbers. Attention has a seed, but draws none without dropout."""
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    for at, argument in enumerate(operator._schema.arguments):
        if argument.name == "dropout_p":
            default = argument.default_value if argument.has_default_value() else 1.0
            return kwargs.get("dropout_p", args[at] if at < len(args) else default) != 0
    return True


def functional(name: str) -> Callable[..., Any]:
    """The out-of-place operation of a call; its arguments select the overload."""
    namespace, _, rest = out_of_place(name).partition("::")
    return getattr(getattr(torch.ops, namespace), rest.partition(".")[0])


def out_of_place(name: str) -> str:
    """aten::add_.Tensor -> aten::add.Tensor, aten::__ilshift__.Scalar -> aten::__lshift__.Scalar"""
    packet, _, overload = name.partition(".")
    packet = packet.replace("::__i", "::__") if packet.endswith("__") else packet.removesuffix("_")
    return packet + ("." + overload if overload else "")


@cache
def plain_name(name: str) -> str:
    """An operation's name: 'add' for 'aten::add_.Tensor'."""
    return out_of_place(name).partition("::")[2].partition(".")[0]


class Memory:
    """The storages while recorded calls run for n images."""

    def __init__(self, n: int, leaves: Mapping[int, Tensor]) -> None:
        """leaves: the slots that no call creates; calls may write into these tensors."""
        self.n = n
        self._slots = dict(leaves)

    @classmethod
    def before(
        cls,
        calls: Iterable[Call],
        n: int,
        leaves: Mapping[int, Tensor],
        converted: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> Memory:
        """The storages before these calls, converted, with copies of those that they write into."""
        written, held = written_by(calls), dict[int, Tensor]()
        for slot, x in leaves.items():
            found = converted(x)
            is_shared = found.untyped_storage()._cdata == x.untyped_storage()._cdata
            held[slot] = found.clone() if slot in written and is_shared else found
        return cls(n, held)

    def __contains__(self, slot: int) -> bool:
        return slot in self._slots

    def __getitem__(self, slot: int) -> Tensor:
        return self._slots[slot]

    def __setitem__(self, slot: int, tensor: Tensor) -> None:
        self._slots[slot] = tensor

    def tensor(self, view: View) -> Tensor:
        base = self._slots[view.slot]
        size, stride, offset = view.at(self.n)
        if base.dtype != view.dtype:
            base = flat(base).view(view.dtype)
        return base.as_strided(size, stride, offset)

    def result(self, call: Call) -> Any:
        args, kwargs = map_leaves(self._filled, (call.args, call.kwargs))
        return call.operator(*args, **kwargs)

    def run(self, call: Call) -> None:
        self.keep(call, self.result(call))

    def keep(self, call: Call, results: Any) -> None:
        """Puts a call's results into the slots that it creates."""
        for view, result in zip(call.results, leaves(results), strict=False):
            if view is not None and view.slot not in call.read:
                self.put(view, result)

    def forget(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._slots.pop(slot, None)

    def _filled(self, x: Any) -> Any:
        return self.tensor(x) if isinstance(x, View) else size_at(x, self.n)

    def put(self, view: View, result: Tensor) -> None:
        """Puts a tensor into a slot, in the layout of the view."""
        size, stride, offset = view.at(self.n)
        if result.is_floating_point() and view.dtype.is_floating_point:
            result = result.to(view.dtype)  # a call that names no dtype gives PyTorch's default
        assert result.dtype == view.dtype and result.shape == size, (
            "a recorded call gave another kind of result"
        )
        alike = all(s == t for s, t, many in zip(stride, result.stride(), size, strict=True) if many > 1)
        if not alike or offset != result.storage_offset():
            whole = result.new_empty(extent(size, stride, offset))
            result = whole.as_strided(size, stride, offset).copy_(result)
        self._slots[view.slot] = result


def for_images(x: Tensor, view: View, of: int, n: int) -> tuple[Tensor, Callable[[Tensor], Tensor]] | None:
    """What a constant of so many images is for n of them, expanded, and what joins its axes: an axis that
    has several batches comes in two. None if x is not alike for all images, but for how a call on a batch
    may round them; view: where it has them."""
    axes = [(axis, size) for axis, size in enumerate(view.size) if isinstance(size, BatchSize)]
    if not axes:
        return x, lambda joined: joined
    (axis, size), *others = axes
    if others or size.plus:
        return None
    few, times = x.new_zeros(()), size.times
    if x.is_floating_point() and x.numel():
        few = 4 * torch.finfo(x.dtype).eps * x.nan_to_num(0, 0, 0).abs().max()
    # A batch after the other, or all of an image after all of another.
    for split, images in (((times, of), axis + 1), ((of, times), axis)):
        each = x.unflatten(axis, split)
        first = each.narrow(images, 0, 1)
        is_alike = each == first  # no number is read but the last: weights may be other ones later
        if x.is_floating_point():
            is_alike |= (each - first).abs() <= few
        if bool(is_alike.all()):
            shape = [n if at == images else many for at, many in enumerate(each.shape)]
            return first.expand(shape), partial(torch.flatten, start_dim=axis, end_dim=axis + 1)
    return None


def extent(size: Sequence[int], stride: Sequence[int], offset: int) -> int:
    """How many elements a view needs of its storage."""
    return 0 if 0 in size else 1 + offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))


def flat(x: Tensor) -> Tensor:
    """All elements of the storage, in order."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def read_by(calls: Iterable[Call]) -> set[int]:
    """The slots that any of the calls reads."""
    return set[int]().union(*(call.read for call in calls))


def written_by(calls: Iterable[Call]) -> set[int]:
    """The slots that any of the calls creates or writes into."""
    return set[int]().union(*(call.written for call in calls))


def needed(calls: Sequence[Call], slots: Iterable[int]) -> list[Call]:
    """The calls, in order, on which what some slots hold in the end may depend."""
    wanted, found = set(slots), []
    for call in reversed(calls):
        if not wanted.isdisjoint(call.written):
            found.append(call)
            wanted |= call.read
    return found[::-1]


def unread(calls: Sequence[Call], kept: Iterable[int]) -> list[list[int]]:
    """For each call, the slots that no later call uses, except ``kept``."""
    last = {slot: at for at, call in enumerate(calls) for slot in (*call.read, *call.written)}
    found: list[list[int]] = [[] for _ in calls]
    for slot in last.keys() - set(kept):
        found[last[slot]].append(slot)
    return found


def leaves(x: Any) -> list[Any]:
    """The items of nested tuples, lists and dictionaries."""
    if not isinstance(x, (tuple, list, dict)):
        return [x]
    found: list[Any] = []
    for item in x.values() if isinstance(x, dict) else x:
        if isinstance(item, (tuple, list, dict)):
            found += leaves(item)
        else:
            found.append(item)
    return found


def map_leaves(f: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        items = [map_leaves(f, item) if isinstance(item, (tuple, list, dict)) else f(item) for item in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    if isinstance(x, dict):
        return {key: map_leaves(f, item) for key, item in x.items()}
    return f(x)
