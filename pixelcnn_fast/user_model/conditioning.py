"""Finds out what a model takes besides images, and checks what users give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.errors import ModelFailed
from pixelcnn_fast.program.calls import leaves
from pixelcnn_fast.program.conditions import (
    Condition,
    Conditioning,
    ConditionProgram,
    Name,
    OneOrMore,
    named,
)
from pixelcnn_fast.program.operands import ConditionOperand
from pixelcnn_fast.user_model.labels import Labels
from pixelcnn_fast.user_model.model_arguments import fits
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

Example = Callable[[WrappedModel, int], tuple[Tensor, Conditioning]]


def with_label(model: WrappedModel, label: int) -> tuple[Tensor, Conditioning]:
    """An example of one image with this label."""
    values, given = model.example(n=1)
    return values, given._replace(labels=torch.tensor([label], device=model.device))


def _with_code(name: Name) -> Example:
    def with_code(model: WrappedModel, code: int) -> tuple[Tensor, Conditioning]:
        values, given = model.example(n=1)
        return values, given.with_condition(name, torch.full_like(named(given.condition)[name], code))

    return with_code


def trial(model: WrappedModel, example: Example = with_label) -> Callable[[int], bool]:
    """A function that tells whether the model runs with a label, or a code if examples have these."""
    return lambda number: model.takes(*example(model, number))


# -- what is found out by trying


def infer_condition_dtypes(model: WrappedModel) -> None:
    """Finds out whether conditions of real numbers may be negative and, where the user names
    no dtype, whether they are of integers. Raises ModelFailed if the model takes none of these."""
    failures = list[Exception]()
    ways = list(product(*(taken.kinds(model.dtype) for taken in model.conditions.values())))
    for kinds in ways:
        for suppose in kinds:
            suppose()
        is_certain = all(taken.codes is not None for taken in model.conditions.values()) and not failures
        if is_certain or (failed := _failure(model)) is None:
            return
        failures.append(failed)
    if isinstance(failures[0], ModelFailed):
        raise failures[0]
    for suppose in ways[0]:
        suppose()


def _failure(model: WrappedModel) -> Exception | None:
    """Why the model can't be run, or None. A copy is tried, since a forward may keep things."""
    held = model.held
    if not held.is_uncopyable:
        model.held = copy.deepcopy(held)
    try:
        output = model.run(*model.example())
    except ModelFailed as failed:
        return failed
    finally:
        model.held = held
    is_nan = any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in leaves(output))
    return ValueError("it gives NaN") if is_nan else None


def explore_labels(
    model: WrappedModel, conditions: ConditionProgram, operands: Sequence[ConditionOperand]
) -> None:
    """Finds out, from the captured conditions and then from the model, which labels and codes it takes."""
    taken: list[tuple[Labels | None, Example]] = [(model.labels if model.conditional else None, with_label)]
    taken += [(each.codes, _with_code(name)) for name, each in model.conditions.items()]
    for which, (labels, example) in enumerate(taken):
        if labels is None or labels.classes is not None:
            continue
        if model.device.type != "cpu":
            labels.classes = conditions.rows_looked_up(which)
            labels.accepted = labels.classes or labels.accepted
            continue

        def taken_there(label: int, example: Example = example) -> bool:
            return conditions.takes(operands, example(model, label)[1], 1)

        labels.explore(taken_there)
        labels.restrict(trial(model, example))


# -- what users give


def checked_conditioning(
    model: WrappedModel, labels: Tensor | None, condition: Condition | None, n: int
) -> Conditioning:
    """What a user gave with n images, on the model's device. Raises ValueError if it does not fit."""
    return Conditioning(_checked_labels(model, labels, n), _checked_condition(model, condition, n))


def _checked_labels(model: WrappedModel, labels: Tensor | None, n: int) -> Tensor | None:
    if not model.conditional:
        if labels is not None:
            raise ValueError(
                "labels were given, but the sampler was built for a model without labels: if its forward takes "
                "labels, build the sampler with conditional=True"
            )
        return None
    if labels is None:
        raise ValueError(f"this model is conditional: pass labels, integers [{n}]")
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels are no tensor ({error}), expected integers [{n}]") from error
    if labels.shape != (n,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [{n}]")
    labels, takes = labels.long(), trial(model) if model.can_try else None
    if n and (why := model.labels.why_not(int(labels.min()), int(labels.max()), takes)) is not None:
        raise ValueError(why)
    return labels.to(model.device, torch.long)


def _checked_condition(model: WrappedModel, condition: Any, n: int) -> OneOrMore[Tensor] | None:
    taken, shape = model.conditions, model.condition_shape
    if shape is None:
        if condition is not None:
            raise ValueError(
                "a condition was given, but the sampler was built without one: pass condition_shape= to Sampler"
            )
        return None
    if None in taken:
        return _checked_one(model, None, condition, n)
    is_dict = isinstance(shape, dict)
    expected = ", ".join(
        f"{x.what.removeprefix('the ')}: {x.expected(n, model.dtype)}" for x in taken.values()
    )
    found = named(condition)
    if not isinstance(condition, Mapping if is_dict else (tuple, list)) or found.keys() != taken.keys():
        what = type(condition).__name__ if condition is not None else "missing"
        if isinstance(condition, (Mapping, tuple, list)):
            what += f" of {', '.join(map(repr, found)) or 'nothing'}" if is_dict else f" of {len(found)}"
        kind = "a dict" if is_dict else f"a tuple of {len(taken)}"
        raise ValueError(f"the condition is {what}, expected {kind} ({expected})")
    return model.like_conditions([_checked_one(model, name, found[name], n) for name in taken])


def _checked_one(model: WrappedModel, name: Name, condition: Any, n: int) -> Tensor:
    taken = model.conditions[name]
    dtype, expected = taken.dtype or model.dtype, taken.expected(n, model.dtype)
    try:
        condition = None if condition is None else torch.as_tensor(condition)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{taken.what} is no tensor ({error}), expected {expected}") from error
    is_of_shape = condition is not None and tuple(condition.shape) == (n, *taken.shape)
    if not is_of_shape or not fits(condition.dtype, dtype):
        found = "missing" if condition is None else f"{condition.dtype} {list(condition.shape)}"
        raise ValueError(f"{taken.what} is {found}, expected {expected}")
    if (codes := taken.codes) is not None and condition.numel():
        takes = trial(model, _with_code(name)) if model.can_try else None
        low, high = int(condition.min()), int(condition.max())
        if low < 0 and codes.classes is None and (takes is None or takes(low)):
            low = 0  # they are numbers, which may be negative
        if (why := codes.why_not(low, high, takes)) is not None:
            # Its integers may differ in meaning and range.
            values, given = model.example(n=n)
            given = given.with_condition(name, condition.to(model.device, dtype))
            if not model.can_try or not model.takes(values, given):
                raise ValueError(why)
    return condition.to(model.device, dtype)
