"""What is known of the tensors that a model takes besides images and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.program.conditions import Name, OneOrMore, like, named
from pixelcnn_fast.user_model.labels import HIGHEST, Labels

# Makes examples of conditions of real numbers; the first that a model takes is used.
RANDOM_CONDITIONS = (torch.randn, torch.rand)


@dataclass
class TakenCondition:
    """One tensor that a model takes. what: it in words; shape: without the batch axis; dtype: None if it is not known
    yet; codes: of one of integers; random: makes examples of one of real numbers."""

    what: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    codes: Labels | None = None
    random: Callable[..., Tensor] = RANDOM_CONDITIONS[0]

    def kinds(self, own: torch.dtype) -> list[Callable[[], None]]:
        """What it may be as far as is said, each as a function that supposes it. own: the model's dtype."""
        if self.dtype is not None and not self.dtype.is_floating_point:
            return [partial(self._suppose, self.dtype)]
        found = [partial(self._suppose, own, made) for made in RANDOM_CONDITIONS]
        return [*found, *([partial(self._suppose, torch.long)] if self.dtype is None else [])]

    def _suppose(self, dtype: torch.dtype, random: Callable[..., Tensor] = RANDOM_CONDITIONS[0]) -> None:
        self.dtype, self.random, self.codes = dtype, random, None
        if not dtype.is_floating_point:
            most = 1 if dtype == torch.bool else torch.iinfo(dtype).max
            self.codes = Labels(None, f"the integers of {self.what}", min(HIGHEST, most))

    def example(self, n: int, generator: torch.Generator, device: torch.device, own: torch.dtype) -> Tensor:
        """[n, *shape]; own: the dtype of real numbers."""
        if self.codes is None:
            return self.random(n, *self.shape, generator=generator).to(device, own)
        codes = torch.randint(self.codes.accepted, (n, *self.shape), generator=generator)
        return codes.to(device, self.dtype)

    def expected(self, n: int, own: torch.dtype) -> str:
        kind = "numbers" if (self.dtype or own).is_floating_point else "integers"
        return f"{kind} {[n, *self.shape]}"


def checked_shapes(condition_shape: Any) -> OneOrMore[tuple[int, ...]] | None:
    """The argument of ``Sampler``: one shape, or a tuple or a dict of them. Raises ValueError."""

    def one(shape: Any) -> tuple[int, ...]:
        if not isinstance(shape, Sequence) or not all(isinstance(x, Integral) for x in shape):
            raise ValueError(
                f"condition_shape is {condition_shape!r}, expected a shape without the batch axis, or a tuple or a "
                "dict of shapes"
            )
        return tuple(map(int, shape))

    if condition_shape is None:
        return None
    are_many = isinstance(condition_shape, Sequence) and any(isinstance(x, Sequence) for x in condition_shape)
    if are_many or (isinstance(condition_shape, Mapping) and condition_shape):
        return like(condition_shape, map(one, named(condition_shape).values()))
    return one(condition_shape)


def taken_conditions(
    shapes: OneOrMore[tuple[int, ...]] | None, dtypes: Any, own: torch.dtype
) -> dict[Name, TakenCondition]:
    """Raises ValueError for a dtype that is none, or of no condition. dtypes: ``condition_dtype``; own: the model's."""
    by_name: dict[Name, Any] = named(shapes) if are_several(shapes) else {None: shapes}
    of_each = named(dtypes)
    if None in of_each:  # for all of them
        of_each = dict.fromkeys(by_name, dtypes)
    if unknown := of_each.keys() - by_name.keys():
        raise ValueError(
            f"condition_dtype has {', '.join(map(repr, unknown))}, which condition_shape has not"
        )
    for dtype in of_each.values():
        is_integral = isinstance(dtype, torch.dtype) and not (dtype.is_floating_point or dtype.is_complex)
        if dtype is not None and dtype != own and not is_integral:
            raise ValueError(
                f"condition_dtype is {dtype}: expected the model's own, {own}, or one of integers"
            )
    return {
        name: TakenCondition(described(name), shape, of_each.get(name))
        for name, shape in by_name.items()
        if shape is not None
    }


def are_several(shapes: OneOrMore[tuple[int, ...]] | None) -> bool:
    """Whether these are the shapes of conditions in a tuple or a dict, not that of one."""
    return isinstance(shapes, dict) or any(isinstance(x, tuple) for x in shapes or ())


def described(name: Name) -> str:
    return "the condition" if name is None else f"the condition {name!r}"
