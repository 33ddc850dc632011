"""Compares two recordings of one model: what differs depends on the example, and has no program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.record.recorder import Escape, Leaf, Recording
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import BatchSize, Call, View, flat, needed, read_by

Batches = tuple[int, int]  # how many images each of the two had


def differs_for_one(recording: Recording) -> bool:
    """Whether PyTorch is likely to make other calls for a batch of one, whose heads it need not copy to multiply them,
    and which it multiplies with a constant as one matrix."""
    copies = {view.slot for call in recording.calls if call.name == "aten::clone" for view in call.outputs}
    factors = (view for call in recording.calls if call.name == "aten::bmm" for view in call.inputs)
    return any(view.slot in copies or view.stride[0] == 0 for view in factors)


def agreed(one: Recording, two: Recording) -> Recording:
    """The first recording, with the numbers that follow the batch; the second has an image more or less.

    Where they differ otherwise, it raises Unsupported, naming the last number that Python read before.
    """
    n, escapes, calls = (one.n, two.n), one.escapes + two.escapes, list[Call]()
    for at, (a, b) in enumerate(zip(one.calls, two.calls, strict=False)):
        with _explained(escapes, at, a.where):
            calls.append(_call(a, b, n))
    if len(one.calls) != len(two.calls):
        extra = max(one.calls, two.calls, key=len)[len(calls)]
        with _explained(escapes, len(calls), extra.where):
            raise Unsupported(f"only one of them called {extra.name}")
    with _explained(escapes, len(calls), "model"):
        outputs = _merged(one.outputs, two.outputs, n)
    read = read_by(needed(calls, [view.slot for view in outputs]))
    leaves, repeated = {**one.leaves}, list[Call]()
    whole = {slot: _merged(view, two.whole[slot], n) for slot, view in one.whole.items() if slot in two.whole}
    for slot in sorted(read & one.leaves.keys() & two.leaves.keys() - one.inputs()):
        x, y = one.leaves[slot], two.leaves[slot]
        if elements := _elements_of_an_image(x, y, n):
            number = max(one.whole) + 1 + len(repeated)
            leaves[number] = Leaf(leaves.pop(slot).tensor)
            whole[number] = replace(one.whole[slot], slot=number)
            repeated.append(_repeated(number, slot, elements, x.tensor.dtype))
            continue
        with _explained(escapes, len(calls), x.name or "model"):
            _check_alike(x, y)
    later = len(repeated)
    return replace(
        one,
        calls=repeated + calls,
        escapes=[
            replace(
                a,
                at=a.at + later,
                call=a.call if a.call is None or b.call is None else _call(a.call, b.call, n),
            )
            for a, b in zip(one.escapes, two.escapes, strict=False)
        ],
        leaves=leaves,
        whole=whole,
        constants_read=[(at + later, view) for at, view in one.constants_read],
        images=_merged(one.images, two.images, n),
        given=_merged(one.given, two.given, n),
        outputs=outputs,
    )


@contextmanager
def _explained(escapes: Sequence[Escape], at: int, where: str) -> Iterator[None]:
    """Within the context, which is at a call, an Unsupported error also names a possible cause."""
    try:
        yield
    except Unsupported as difference:
        why = (
            "Its forward may keep something from call to call, draw random numbers, loop over the images of the "
            "batch, or compute one number for all of them, as a quantile does; it must be a function of each image, "
            "for the whole batch at once"
        )
        if before := [escape for escape in escapes if escape.at <= at]:
            last = max(before, key=lambda escape: escape.at)
            why = (
                f"Before, Python took {last}: compute with the tensor itself (torch.where in place of an if, indexing "
                "in place of a loop)"
            )
        what = f"the model did not do the same for two examples: {difference}"
        raise Unsupported(f"{where}: {what}. {why}") from None


def _call(a: Call, b: Call, n: Batches) -> Call:
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
                is_size = "int" in str(x.type).lower()
                if a.inputs and not is_size and isinstance(one, (int, float)) and one != two:
                    raise Unsupported(f"{one} and {two}")
                merged[x.name] = _merged(one, two, n)
        args, kwargs = tuple(merged.values())[:positions], {name: merged[name] for name in named}
        return replace(a, args=args, kwargs=kwargs, results=_merged(a.results, b.results, n))
    except Unsupported as difference:
        raise Unsupported(f"{a.name} was given {difference}") from None


def _merged(a: Any, b: Any, n: Batches) -> Any:
    """``a`` and ``b``, for so many images, as functions of the batch."""
    if isinstance(a, View) and isinstance(b, View):
        if a.slot != b.slot or a.dtype != b.dtype or len(a.size) != len(b.size):
            raise Unsupported("different tensors")
        size = _merged(a.size, b.size, n)
        # Where there is one image, the stride of the batch may be any.
        steps = tuple(x if many == 1 else y for x, y, many in zip(a.stride, b.stride, b.size, strict=True))
        stride = _merged(a.stride, steps, n)
        offset = a.offset if a.offset == b.offset else _following(a.offset, b.offset, n)
        return View(a.slot, size, stride, offset, a.dtype)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        if len(a) != len(b):
            raise Unsupported(f"{len(a)} and {len(b)} items")
        return type(a)(_merged(x, y, n) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {name: _merged(x, b[name], n) for name, x in a.items()}
    if isinstance(a, int) and isinstance(b, int) and a != b and not isinstance(a, bool):
        size = _following(a, b, n)
        if size.plus != 0 and (size.times != 1 or abs(size.plus) != 1):
            raise Unsupported(f"{a} and {b}")
        return size
    with suppress(NotImplementedError):  # some of PyTorch's own objects can't be compared
        if a is b or (type(a) is type(b) and (a == b or (a != a and b != b))):
            return a
    raise Unsupported(f"{_short(a)} and {_short(b)}")


def _following(a: Any, b: Any, n: Batches) -> BatchSize:
    times = (b - a) * (n[1] - n[0])  # which is 1 or -1
    return BatchSize(times, a - times * n[0])


def _check_alike(a: Leaf, b: Leaf) -> None:
    x, y = a.tensor, b.tensor
    if x is y or (a.name is not None and a.name == b.name):
        return
    if x.shape != y.shape or x.dtype != y.dtype or not torch.equal(_bits(x), _bits(y)):
        raise Unsupported("random numbers, or constants that were made outside of PyTorch, differ")


def _elements_of_an_image(a: Leaf, b: Leaf, n: Batches) -> int:
    """How many elements both hold for each image, if they are the same for all: what a forward
    keeps by the batch's size. Else 0."""
    x, y = flat(a.tensor), flat(b.tensor)
    many, rest = divmod(len(x), n[0])
    if rest or not many or len(y) != many * n[1] or x.dtype != y.dtype:
        return 0
    return many if all(bool((each.view(-1, many) == x[:many]).all()) for each in (x, y)) else 0


def _repeated(of: int, slot: int, elements: int, dtype: torch.dtype) -> Call:
    """Makes a slot, for any batch, of the first image of another."""
    image = View(of, (1, elements), (elements, 1), 0, dtype)
    result = View(slot, (BatchSize(1), elements), (elements, 1), 0, dtype)
    return Call("aten::repeat", (image, (BatchSize(1), 1)), {}, (result,))


def _given(call: Call, at: int, argument: Any) -> Any:
    return call.args[at] if at < len(call.args) else call.kwargs.get(argument.name, argument.default_value)


def _bits(x: Tensor) -> Tensor:
    return x.nan_to_num() if x.is_floating_point() else x


def _short(x: Any) -> str:
    if isinstance(x, (tuple, list)):
        return f"{len(x)} items"
    return repr(x) if isinstance(x, (int, float, str, BatchSize)) else f"a {type(x).__name__}"
