"""Keeps what a model computes without the image: from weights alone, or labels and conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Recording
from pixelcnn_fast.capture.record.shadow_memory import (
    AddressSpace,
    Constant,
    Map,
    OfCondition,
    Source,
    seen_whole,
)
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import (
    BatchSize,
    Call,
    Memory,
    View,
    for_images,
    functional,
    needed,
    plain_name,
    read_by,
)
from pixelcnn_fast.program.conditions import ConditionProgram
from pixelcnn_fast.program.operands import ConditionOperand, Step
from pixelcnn_fast.program.steps import KINDS

Affine = tuple["float | Tensor", "float | Tensor"]  # (scale, shift), numbers or [channels]
Steps = Sequence["Step | Affine"]
# The calls of kinds of step that have other names, with their settings.
CALLS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "at_least": ("clamp_min", {}),
    "at_most": ("clamp_max", {}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}),
    "power": ("pow.Tensor_Scalar", {}),
}


class Imageless:
    """Runs the calls on weights as they come, and collects those on conditions."""

    def __init__(
        self, recording: Recording, space: AddressSpace, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.space, self.dtype, self.device = space, dtype, device
        self.zero = torch.zeros(1, dtype=dtype, device=device)
        self.leaves = {slot: leaf.tensor for slot, leaf in recording.leaves.items()}
        self.memory = recording.memory(recording.n)
        self.calls: list[Call] = []
        self._of_weights = {slot for slot, leaf in recording.leaves.items() if leaf.name is not None}
        self._inputs = {view.slot for view in recording.given if view is not None}
        self._given = {*self._inputs}
        self._next = 1 + max([*recording.whole, 0])
        self.whole = recording.whole  # by slot: a view of all that was in it at first
        self._flat: dict[int, View] = {}  # the elements of sources, [N, R]
        self._in_order: dict[int, Tensor] = {}  # 0...n-1, by n: one for all operands of a size

    def run(self, call: Call) -> None:
        """Takes a call that does not depend on the image."""
        self.calls.append(call)
        if any(view.slot in self._of_weights for view in call.inputs):
            self._of_weights |= call.written
        if any(map(self.is_given, call.inputs)):
            if call.has_size_of_values:
                raise Unsupported(
                    f"{call.where}: {call.name}: the size of its result depends on the labels or the condition: use "
                    "torch.where, or multiply by a mask"
                )
            self._given |= call.written
        else:
            self.memory.run(call)
            if plain_name(call.name).startswith("empty"):  # all of its memory is written over
                for view in call.outputs:
                    self.memory.tensor(view).zero_()

    def is_given(self, view: View) -> bool:
        return view.slot in self._given

    def conditions(
        self, operands: Sequence[ConditionOperand], given: Sequence[View | None]
    ) -> ConditionProgram:
        """The program of calls that operands of steps need. given: the views of labels and condition."""
        slots = {operand.node for operand in operands}
        calls = needed(self.calls, slots)
        slots |= read_by(calls)
        return ConditionProgram(calls, {slot: x for slot, x in self.leaves.items() if slot in slots}, given)

    # -- as sources of elements

    def map(self, view: View) -> Map:
        """What a tensor that does not depend on the image is made of."""
        if self.is_given(view):
            return seen_whole(self.space, self._of_given(view))
        of_weights = view.slot in self._of_weights
        return seen_whole(self.space, self.of_images(self.memory.tensor(view), view, of_weights=of_weights))

    def of_images(self, x: Tensor, view: View, **flags: bool) -> Tensor:
        """The addresses of a constant, the first image's for all. view: where x has the batch."""
        if found := for_images(x, view, self.memory.n, self.memory.n):
            each, joined = found
            return joined(self.of_constant(each, **flags))
        if BatchSize(1) in view.size:
            raise Unsupported("a constant differs from image to image")
        return self.of_constant(x, **flags)  # whatever it mixes

    def of_constant(self, x: Tensor, of_weights: bool = False, is_exact: bool = False) -> Tensor:
        """The addresses of a constant. What repeats along an axis is there once; zeros are
        left out, unless they are weights, which may change. For the flags, see
        ``Constant``."""
        x = x.detach()
        if not x.numel():
            return torch.zeros(x.shape, dtype=torch.long)
        once = x
        for axis, many in enumerate(x.shape):
            first = once.narrow(axis, 0, 1)
            if many > 1 and (
                x.stride(axis) == 0 if of_weights else torch.equal(once, first.expand(once.shape))
            ):
                once = first
        source = self.space.allot(Constant(once.reshape(-1).clone(), of_weights, is_exact), once.numel())
        addresses = self.space.of(source).view(once.shape)
        return (addresses if of_weights else addresses.where((once != 0).cpu(), 0)).expand(x.shape)

    def _of_given(self, view: View) -> Tensor:
        """The addresses of a tensor of the calls on conditions: of a contiguous copy, batch first."""
        n, size = self.memory.n, view.size
        found = [(axis, many) for axis, many in enumerate(size) if isinstance(many, BatchSize)]
        if len(found) != 1 or found[0][1].plus:
            raise Unsupported(
                f"a condition of shape {list(view.at(n)[0])} that has no axis for the batch, or mixes the batch with "
                "others: what is computed from the conditions of several images can't be used for one"
            )
        ((axis, batch),) = found
        stride = view.stride[axis]
        is_repeated, of_image, of_others = False, stride, stride
        if batch.times > 1:
            if isinstance(stride, BatchSize):
                raise Unsupported("a condition whose batch is not the outermost part of its axis")
            if is_repeated := self._is_repeated(view, axis, batch.times):
                of_others = BatchSize(stride)
            else:
                of_image = stride * batch.times
        size = (BatchSize(1), *size[:axis], batch.times, *size[axis + 1 :])
        strides = (of_image, *view.stride[:axis], of_others, *view.stride[axis + 1 :])
        split = View(view.slot, size, strides, view.offset, view.dtype)
        copy = self.record("aten::clone", (split,), size, view.dtype, memory_format=torch.contiguous_format)
        shape = split.at(n)[0]
        source = self.space.allot(OfCondition(copy.slot), math.prod(shape[1:]))
        return self.space.of(source).view(shape).movedim(0, axis + is_repeated).reshape(view.at(n)[0])

    def _is_repeated(self, view: View, axis: int, times: int) -> bool:
        """Whether an axis has one whole batch after the other, as cat([x, y]) does, by what happens to it when the
        images' conditions change places; else it has all of the first image, and then all of the next."""
        calls, n = needed(self.calls, {view.slot}), self.memory.n

        def result(moved: Callable[[Tensor], Tensor]) -> Tensor:
            leaves = {slot: moved(x) if slot in self._inputs else x for slot, x in self.leaves.items()}
            memory = Memory.before(calls, n, leaves)
            for call in calls:
                memory.run(call)
            return memory.tensor(view)

        before, after = result(lambda x: x), result(lambda x: x.roll(1, 0))

        def moved(split: tuple[int, int], images: int) -> Tensor:
            """How far off it is that the images lie there; not by nothing, where rows of a product are rounded."""
            expected = before.unflatten(axis, split).roll(1, images).flatten(axis, axis + 1)
            return (expected.double() - after.double()).abs().nan_to_num().max()

        return bool(moved((times, n), axis + 1) <= moved((n, times), axis))

    def record(self, name: str, args: tuple, size: tuple, as_dtype: torch.dtype, **kwargs: Any) -> View:
        """Adds a call on conditions whose result is contiguous, batch first -> the result."""
        strides = [1]
        for s in size[:0:-1]:
            strides.insert(0, strides[0] * s)
        view = View(self._next, tuple(size), tuple(strides), 0, as_dtype)
        self._flat[self._next] = View(self._next, (BatchSize(1), strides[0]), (strides[0], 1), 0, as_dtype)
        self._next += 1
        self.calls.append(Call(name, args, kwargs, (view,)))
        self._given.add(view.slot)
        return view

    def stepped(self, source: int, steps: Steps) -> int:
        """The source that holds what steps make of each element of another source."""
        for step in steps:
            if isinstance(step, tuple):
                for name, number, unchanged in (("mul.Scalar", step[0], 1), ("add.Scalar", step[1], 0)):
                    if number != unchanged:
                        source = self._applied(source, name, number)
            else:
                name, settings = CALLS.get(step.kind, (step.kind, {}))
                source = self._applied(
                    source, name, *([step.alpha] if KINDS[step.kind].alpha else []), **settings
                )
        return source

    def _applied(self, source: int, name: str, *args: Any, **kwargs: Any) -> int:
        found, count, name = self.space.sources[source], self.space.channels(source), f"aten::{name}"
        if isinstance(found, Constant):
            made = functional(name)(found.elements.to(self.dtype), *args, **kwargs)
            return self.space.allot(found._replace(elements=made), count)
        view = self.record(name, (self._elements(found), *args), (BatchSize(1), count), self.dtype, **kwargs)
        return self.space.allot(OfCondition(view.slot), count)

    def zero_stepped(self, steps: Steps) -> int:
        found = self.space.sources[self.stepped(self.space.allot(Constant(self.zero), 1), steps)]
        assert isinstance(found, Constant)
        return int(self.of_constant(found.elements))

    def _elements(self, found: Source) -> View:
        """The elements of an imageless source, [N, R], in the model's dtype."""
        if isinstance(found, Constant):
            return self.constant(found.elements.to(self.dtype))
        assert isinstance(found, OfCondition)
        x, dtype = self._flat[found.slot], self.dtype
        return x if x.dtype == dtype else self.record("aten::_to_copy", (x,), x.size, dtype, dtype=dtype)

    def convolved(
        self,
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Map:
        """The convolution of imageless elements. x: addresses, [N, C, h, w]."""
        first = self.space.relative(x)
        if bool((first != first[:1]).any()):
            raise Unsupported("a constant differs from image to image")
        found = self.picked(first[0])
        settings = (None, list(stride), list(padding), list(dilation), False, [0, 0], 1)
        example = found if isinstance(found, Tensor) else found.index.to(weight)
        result = torch.ops.aten.convolution.default(example[None], weight, *settings)
        if isinstance(found, Tensor):
            return Map(self.space, self.of_constant(result).expand(len(x), -1, -1, -1))
        taken = self.tensor_of(first[0], self.dtype)
        size = (BatchSize(1), *result.shape[1:])
        return self.map(
            self.record("aten::convolution", (taken, self.leaf(weight), *settings), size, self.dtype)
        )

    def tensor_of(self, addresses: Tensor, as_dtype: torch.dtype) -> View:
        """Imageless elements of one image, by address, as a tensor [N, ...] of the calls on conditions."""
        found, size = self.picked(addresses), (BatchSize(1), *addresses.shape)
        if isinstance(found, Tensor):
            return self.constant(found.to(as_dtype).contiguous())
        index = [None, self.leaf(found.index)]
        elements = self._elements(OfCondition(found.node))
        taken = self.record("aten::index.Tensor", (elements, index), size, self.dtype)
        return self.record("aten::_to_copy", (taken,), size, as_dtype, dtype=as_dtype)

    # -- as operands of steps

    def picked(self, addresses: Tensor) -> Tensor | ConditionOperand:
        """Imageless elements of one image, by address: a constant, or what is looked up for each condition."""
        found, index = self.space.joined(addresses)
        given = [source for source in found if isinstance(source, OfCondition)]
        if not given:
            return self._chosen(found, index)
        if len(found) == 1 and bool((addresses != 0).all()):
            return ConditionOperand(given[0].slot, index - 1, per_image=True)
        parts = [self._elements(source) for source in (Constant(self.zero), *found)]
        count = sum(part.at(1)[0][1] for part in parts)
        whole = self.record("aten::cat", (parts, 1), (BatchSize(1), count), self.dtype)
        return ConditionOperand(whole.slot, index, per_image=True)

    def constants(self, addresses: Tensor) -> Tensor:
        return self._chosen(*self.space.joined(addresses))

    def _chosen(self, found: Sequence[Source], index: Tensor) -> Tensor:
        """Constants by their places in a row of a zero and all that were found."""
        constants = [source.elements.to(self.dtype) for source in found if isinstance(source, Constant)]
        if len(constants) < len(found):
            raise Unsupported("it depends on more than the weights")
        return torch.cat([self.zero, *constants])[index.to(self.device)]

    def leaf(self, x: Tensor) -> View:
        slot, self._next = self._next, self._next + 1
        self.leaves[slot] = x
        return View.of(x, slot)

    def constant(self, x: Tensor) -> View:
        """A constant in the calls on conditions, the same for each image: [N, ...]."""
        view = self.leaf(x)
        return replace(view, size=(BatchSize(1), *view.size), stride=(0, *view.stride))

    def per_pixel(self, table: Tensor) -> ConditionOperand:
        """A constant [H, W, channels] as the operand of a step."""
        view = self.constant(table.reshape(-1))
        count = table.numel()
        if count not in self._in_order:
            self._in_order[count] = torch.arange(count)
        return ConditionOperand(view.slot, self._in_order[count].view(table.shape), per_image=False)
