"""Compares two recordings of one model, which must agree: what differs between them depends on the example, and can't
be followed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Escape, Leaf, Recording
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import BatchSize, Call, View, needed, read_by


def agreed(one: Recording, two: Recording) -> Recording:
    """The first recording, in which the numbers that follow the batch are marked as such; the second one is of one
    image more.

    Raises Unsupported, naming the last number that Python read before, where the recordings differ otherwise.
    """
    return _Agreement(one, two).recording()


@dataclass
class _Agreement:
    one: Recording
    two: Recording

    def recording(self) -> Recording:
        calls: list[Call] = []
        for at, (a, b) in enumerate(zip(self.one.calls, self.two.calls, strict=False)):
            calls.append(self._at(at, a.where, partial(self.call, a, b)))
        if len(self.one.calls) != len(self.two.calls):
            extra = max(self.one.calls, self.two.calls, key=len)[len(calls)]
            raise self._refusal(len(calls), extra.where, f"only one of them called {extra.name}")
        outputs = self._at(len(calls), "model", partial(self.merged, self.one.outputs, self.two.outputs))
        read = read_by(needed(calls, [view.slot for view in outputs]))
        for slot in read & self.one.leaves.keys() & self.two.leaves.keys() - self.one.inputs():
            constants = self.one.leaves[slot], self.two.leaves[slot]
            self._at(len(calls), constants[0].name or "model", partial(_check_alike, *constants))
        whole = {
            slot: self.merged(view, self.two.whole[slot])
            for slot, view in self.one.whole.items()
            if slot in self.two.whole
        }
        return replace(
            self.one,
            calls=calls,
            escapes=[self.escape(*pair) for pair in zip(self.one.escapes, self.two.escapes, strict=False)],
            whole=whole,
            images=self.merged(self.one.images, self.two.images),
            given=self.merged(self.one.given, self.two.given),
            outputs=outputs,
        )

    def escape(self, a: Escape, b: Escape) -> Escape:
        return a if a.call is None or b.call is None else replace(a, call=self.call(a.call, b.call))

    def _at(self, at: int, where: str, merge: Any) -> Any:
        try:
            return merge()
        except Unsupported as difference:
            raise self._refusal(at, where, str(difference)) from None

    def _refusal(self, at: int, where: str, what: str) -> Unsupported:
        before = [escape for escape in self.one.escapes + self.two.escapes if escape.at <= at]
        message = f"{where}: the model did not do the same for two examples: {what}. "
        if not before:
            return Unsupported(
                message
                + "Its forward may keep something from call to call, draw random numbers, loop over the images of the "
                "batch, or compute one number for all of them, as a quantile does; it must be a function of each "
                "image, for the whole batch at once"
            )
        last = max(before, key=lambda escape: escape.at)
        advice = "compute with the tensor itself (torch.where in place of an if, indexing in place of a loop)"
        return Unsupported(f"{message}Before, Python took {last}: {advice}")

    def call(self, a: Call, b: Call) -> Call:
        if a.name != b.name:
            raise Unsupported(f"one called {a.name}, the other {b.name}")
        if a.where != b.where:
            raise Unsupported(f"{a.name} was called in {a.where} and in {b.where}")
        positions, named = max(len(a.args), len(b.args)), {**a.kwargs, **b.kwargs}
        try:
            merged = {}
            for at, x in enumerate(a.operator._schema.arguments):
                if at < positions or x.name in named:
                    one, two = _given(a, at, x), _given(b, at, x)
                    if a.inputs and not _is_size(x.type) and isinstance(one, (int, float)) and one != two:
                        raise Unsupported(f"{one} and {two}")
                    merged[x.name] = self.merged(one, two)
            args, kwargs = tuple(merged.values())[:positions], {name: merged[name] for name in named}
            results = self.merged(a.results, b.results)
        except Unsupported as difference:
            raise Unsupported(f"{a.name} was given {difference}") from None
        return replace(a, args=args, kwargs=kwargs, results=results)

    def merged(self, a: Any, b: Any) -> Any:
        if isinstance(a, View) and isinstance(b, View):
            if a.slot != b.slot or a.dtype != b.dtype or len(a.size) != len(b.size):
                raise Unsupported("different tensors")
            size, stride = self.merged(a.size, b.size), self.merged(a.stride, b.stride)
            offset = a.offset if a.offset == b.offset else self.following(a.offset, b.offset)
            return View(a.slot, size, stride, offset, a.dtype)
        if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
            if len(a) != len(b):
                raise Unsupported(f"{len(a)} and {len(b)} items")
            return type(a)(self.merged(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {name: self.merged(x, b[name]) for name, x in a.items()}
        if isinstance(a, int) and isinstance(b, int) and a != b and not isinstance(a, bool):
            size = self.following(a, b)
            if size.plus != 0 and (size.times != 1 or abs(size.plus) != 1):
                raise Unsupported(f"{a} and {b}")
            return size
        with suppress(NotImplementedError):  # some of PyTorch's own objects can't be compared
            if a is b or (type(a) is type(b) and (a == b or (a != a and b != b))):
                return a
        raise Unsupported(f"{_short(a)} and {_short(b)}")

    def following(self, a: Any, b: Any) -> BatchSize:
        """The number that is ``a`` for one batch and ``b`` for the other."""
        times = b - a
        return BatchSize(times, a - times * self.one.n)


def _check_alike(a: Leaf, b: Leaf) -> None:
    x, y = a.tensor, b.tensor
    if x is y or (a.name is not None and a.name == b.name):
        return
    if x.shape != y.shape or x.dtype != y.dtype or not torch.equal(_bits(x), _bits(y)):
        raise Unsupported("random numbers, or constants that were made outside of PyTorch, differ")


def _given(call: Call, at: int, argument: Any) -> Any:
    """What a call was given for an argument of its operator. PyTorch leaves out arguments that have their default."""
    return call.args[at] if at < len(call.args) else call.kwargs.get(argument.name, argument.default_value)


def _is_size(kind: Any) -> bool:
    return "int" in str(kind).lower()


def _bits(x: Tensor) -> Tensor:
    return x.nan_to_num() if x.is_floating_point() else x


def _short(x: Any) -> str:
    if isinstance(x, (tuple, list)):
        return f"{len(x)} items"
    return repr(x) if isinstance(x, (int, float, str, BatchSize)) else f"a {type(x).__name__}"
