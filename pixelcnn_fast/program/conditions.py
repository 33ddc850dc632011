"""The part of a model that depends on the condition alone: recorded once, replayed by PyTorch for each batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pixelcnn_fast.errors import ModelFailed, PixelCNNFastError
from pixelcnn_fast.program.program import ConditionOperand


class Given(NamedTuple):
    """What a model takes besides the images: either, both or neither; each with one entry per image."""

    labels: Tensor | None = None  # [n]
    condition: Tensor | None = None  # [n, ...]

    def in_dtype(self, dtype: torch.dtype) -> Given:
        """The same, with a condition of real numbers in this dtype."""
        if self.condition is None or not self.condition.is_floating_point():
            return self
        return self._replace(condition=self.condition.to(dtype))

    def part(self, images: slice) -> Given:
        return Given(*(x if x is None else x[images] for x in self))

    def padded(self, n: int) -> Given:
        """The same for n more images, which are like the last."""
        return Given(*(x if x is None else torch.cat([x, x[-1:].expand(n, *x.shape[1:])]) for x in self))

    def call(self, module: nn.Module, images: Tensor) -> Any:
        """The module's output. The condition is passed by name if the module's forward has a ``condition``, else last.

        Raises ModelFailed if the module raises, unless it is one of the library's own errors, which stay as they are.
        """
        positional = [x for x in self if x is not None]
        named = {}
        if self.condition is not None and "condition" in arguments_of(module):
            named["condition"] = positional.pop()
        try:
            return module(images, *positional, **named)
        except PixelCNNFastError:
            raise
        except Exception as error:
            raise ModelFailed(
                f"the model raised {type(error).__name__}: {error}\n"
                f"It was given images of {images.dtype} {list(images.shape)}{self.described()}; image_form= says in "
                "what form it takes images, conditional=, condition_shape= and condition_dtype= what else it takes."
            ) from error

    def described(self) -> str:
        """To go on with in a sentence: ", labels [2] of 0, 1"; nothing if there is nothing."""
        labels = "" if self.labels is None else f", labels {list(self.labels.shape)} of {_some(self.labels)}"
        if self.condition is None:
            return labels
        condition = f"{labels}, a condition of {self.condition.dtype} {list(self.condition.shape)}"
        return condition if self.condition.is_floating_point() else f"{condition} of {_some(self.condition)}"


def _some(x: Tensor) -> str:
    """The values in x, if they are few."""
    values = [str(value) for value in x.unique().tolist()]
    return ", ".join(values) if len(values) <= 8 else f"{values[0]}...{values[-1]}"


def arguments_of(module: nn.Module) -> dict[str, inspect.Parameter]:
    """What the module's forward takes besides images, by name; nothing if that can't be found out."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # it is not written in Python
        return {}
    return dict(list(parameters.items())[1:])


@dataclass(frozen=True)
class Condition:
    """Stands for a tensor that depends on the condition alone. node: the recorded call that computes it."""

    node: int


EXAMPLE_BATCH = 2  # not 1, so that a batch axis is never mistaken for one that broadcasts


@dataclass(frozen=True)
class Call:
    """One recorded call on conditions; among its arguments, each tensor that depends on one is a ``Condition``."""

    function: Callable
    args: tuple
    kwargs: dict


class Conditions:
    """The recorded calls, numbered as nodes. Node 0 is what is ``Given``; constants are calls without arguments."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls

    @torch.no_grad()
    def __call__(
        self, operands: Sequence[ConditionOperand], given: Given, n: int
    ) -> dict[ConditionOperand, Tensor]:
        """given: for n images -> for each operand [n, channels], or [n, H, W, channels].

        The calls run in groups of the example's batch size, because that size may be written into a model's views.
        """
        if not operands:
            return {}
        given, nodes = given.padded(-n % EXAMPLE_BATCH), self._needed(operands)
        starts = range(0, n, EXAMPLE_BATCH)
        results = [self._evaluate(nodes, given.part(slice(start, start + EXAMPLE_BATCH))) for start in starts]
        return {operand: torch.cat([_filled(operand, group) for group in results])[:n] for operand in operands}

    def _needed(self, operands: Sequence[ConditionOperand]) -> list[int]:
        needed: set[int] = set()
        pending = [operand.node for operand in operands]
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                inputs = leaves((self._calls[node].args, self._calls[node].kwargs))
                pending += [c.node for c in inputs if isinstance(c, Condition)]
        return sorted(needed)

    def _evaluate(self, nodes: Sequence[int], given: Given) -> dict[int, Any]:
        results: dict[int, Any] = {}

        def filled(x: Any) -> Any:
            return results[x.node] if isinstance(x, Condition) else x

        for node in nodes:
            call = self._calls[node]
            results[node] = (
                call.function(*map_leaves(filled, call.args), **map_leaves(filled, call.kwargs))
                if node
                else given
            )
        return results


def _filled(operand: ConditionOperand, results: dict[int, Any]) -> Tensor:
    """-> [EXAMPLE_BATCH, *operand.index.shape]"""
    result = results[operand.node]
    index = operand.index.to(result.device)
    if operand.per_image:
        return result.flatten(1)[:, index]
    return result.flatten()[index].expand(EXAMPLE_BATCH, *index.shape)


def leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, (tuple, list)):
        for item in x:
            yield from leaves(item)
    elif isinstance(x, dict):
        yield from leaves(list(x.values()))
    else:
        yield x


def map_leaves(f: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        items = [map_leaves(f, item) for item in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    if isinstance(x, dict):
        return {key: map_leaves(f, item) for key, item in x.items()}
    return f(x)
