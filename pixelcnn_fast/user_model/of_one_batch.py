"""Runs modules that keep something for the size of their first batch with others, and those that squeeze one image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pixelcnn_fast.errors import ModelFailed, UnknownLayout

T = TypeVar("T")


class _Kept(NamedTuple):
    """A tensor that may be kept for the images of a batch, which are alike in it, and where."""

    held: dict[str, Any]
    name: str
    tensor: Tensor

    def serve(self, n: int) -> None:
        self.held[self.name] = self.tensor[:1].repeat(n, *[1] * (self.tensor.dim() - 1))

    def put_back(self) -> None:
        self.held[self.name] = self.tensor


def with_any_batch(run: Callable[[nn.Module], T], module: nn.Module, n: int) -> T:
    """Runs a module on n images, if need be with tensors that it keeps for another number of images, all alike.

    Such as the maps of ones that some forwards make in their first call. In the module they
    are then of n images, if it ran, and else as before. Raises what ``run`` raises at first.
    """
    try:
        return run(module)
    except RuntimeError:
        for kept in _kept(module, n) if n else ():  # of none, they would serve no batch after it
            for some in ([each] for each in kept):
                if found := _run(run, module, some, n):
                    return found[0]
            if len(kept) > 1 and (found := _run(run, module, kept, n)):
                for each in kept:  # weights may be among them: no more than need be
                    each.put_back()
                    try:
                        found = (run(module),)
                    except Exception:
                        each.serve(n)
                return found[0]
        raise


def _run(run: Callable[[nn.Module], T], module: nn.Module, kept: Sequence[_Kept], n: int) -> tuple[T] | None:
    for each in kept:
        each.serve(n)
    with suppress(Exception):
        return (run(module),)
    for each in kept:
        each.put_back()
    return None


def _kept(module: nn.Module, n: int) -> Iterable[list[_Kept]]:
    """For each size of a batch, tensors that may be kept for one. Weights go with others of the same module,
    whose rows differ."""
    by_size: dict[int, list[_Kept]] = defaultdict(list)
    for each in module.modules():
        registered: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        others = [x for held in registered for x in held.values() if x is not None and x.dim()]
        rows = {len(x) for x in others if not _is_repeated(x)}
        for held in (vars(each), *registered):
            for name, x in held.items():
                if isinstance(x, Tensor) and x.dim() > 1 and len(x) != n and _is_repeated(x):
                    if held is vars(each) or len(x) not in rows:
                        by_size[len(x)].append(_Kept(held, name, x))
    return by_size.values()


def _is_repeated(x: Tensor) -> bool:
    if x.requires_grad or x.is_meta or x.is_nested or x.layout is not torch.strided:
        return False
    return len(x) > 0 and bool((x == x[:1]).all())


def as_of_several(run: Callable[[slice | list[int]], Tensor], n: int) -> Tensor:
    """Runs a model on n images -> [n, ...], on one as on two: some models squeeze a batch of one away.

    run: takes the numbers of the images. Raises what it raises at first.
    """
    try:
        return run(slice(None))
    except (ModelFailed, UnknownLayout):
        if n == 1:
            with suppress(ModelFailed, UnknownLayout):
                return run([0, 0])[:1]
        raise
