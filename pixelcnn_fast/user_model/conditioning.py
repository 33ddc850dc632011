"""Finds out what a model takes besides images, and checks what users give."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pixelcnn_fast.errors import ModelFailed, Unsupported
from pixelcnn_fast.program.calls import leaves
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.operands import ConditionOperand
from pixelcnn_fast.user_model.labels import HIGHEST, Labels
from pixelcnn_fast.user_model.model_arguments import fits
from pixelcnn_fast.user_model.wrapped_model import RANDOM_CONDITIONS, WrappedModel

Example = Callable[[WrappedModel, int], tuple[Tensor, Conditioning]]


def with_label(model: WrappedModel, label: int) -> tuple[Tensor, Conditioning]:
    """An example of one image with this label."""
    values, given = model.example(n=1)
    return values, given._replace(labels=torch.tensor([label], device=model.device))


def _with_code(model: WrappedModel, code: int) -> tuple[Tensor, Conditioning]:
    values, given = model.example(n=1)
    assert given.condition is not None
    return values, given._replace(condition=torch.full_like(given.condition, code))


def trial(model: WrappedModel, example: Example = with_label) -> Callable[[int], bool]:
    """A function that tells whether the model runs with a label, or a code if examples have these."""
    return lambda number: model.takes(*example(model, number))


# -- what is found out by trying


def infer_condition_dtype(model: WrappedModel) -> None:
    """Finds out whether a condition of real numbers may be negative and, if the user names
    no dtype, whether it is of integers. Raises ModelFailed if the model takes neither."""
    if model.condition_shape is None:
        return
    if model.condition_dtype is not None and not model.condition_dtype.is_floating_point:
        _take_codes(model, model.condition_dtype)
        return
    given, model.condition_dtype = model.condition_dtype, model.dtype
    if (failed := _failure(model)) is None:
        return
    for made in RANDOM_CONDITIONS[::-1]:
        model.random_condition = made
        if _failure(model) is None:
            return
    if given is None:
        _take_codes(model, torch.long)
    if _failure(model) is not None and isinstance(failed, ModelFailed):
        raise failed


def _take_codes(model: WrappedModel, dtype: torch.dtype) -> None:
    model.condition_dtype = dtype
    most = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    model.condition_codes = Labels(None, "the integers of the condition", min(HIGHEST, most))


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
    labels_taken = model.labels if model.conditional else None
    for which, (labels, example) in enumerate(
        ((labels_taken, with_label), (model.condition_codes, _with_code))
    ):
        if labels is None or labels.classes is not None:
            continue
        if model.device.type != "cpu":
            labels.classes = conditions.rows_looked_up(which)
            labels.accepted = labels.classes or labels.accepted
            continue

        def taken_there(label: int, example: Example = example) -> bool:
            try:
                conditions(operands, example(model, label)[1], 1)
            except (ModelFailed, Unsupported):  # it raises, or a branch would fall otherwise
                return False
            return True

        labels.explore(taken_there)
        labels.restrict(trial(model, example))


# -- what users give


def checked_conditioning(
    model: WrappedModel, labels: Tensor | None, condition: Tensor | None, n: int
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


def _checked_condition(model: WrappedModel, condition: Tensor | None, n: int) -> Tensor | None:
    shape = model.condition_shape
    if shape is None:
        if condition is not None:
            raise ValueError(
                "a condition was given, but the sampler was built without one: pass condition_shape= to Sampler"
            )
        return None
    dtype = model.condition_dtype or model.dtype
    kind = "numbers" if dtype.is_floating_point else "integers"
    try:
        condition = None if condition is None else torch.as_tensor(condition)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the condition is no tensor ({error}), expected {kind} {[n, *shape]}") from error
    if condition is None or tuple(condition.shape) != (n, *shape) or not fits(condition.dtype, dtype):
        found = "missing" if condition is None else f"{condition.dtype} {list(condition.shape)}"
        raise ValueError(f"the condition is {found}, expected {kind} {[n, *shape]}")
    if model.condition_codes is not None and condition.numel():
        takes = trial(model, _with_code) if model.can_try else None
        low, high = int(condition.min()), int(condition.max())
        if low < 0 and model.condition_codes.classes is None and (takes is None or takes(low)):
            low = 0  # they are numbers, which may be negative
        if (why := model.condition_codes.why_not(low, high, takes)) is not None:
            # Its integers may differ in meaning and range.
            values, given = model.example(n=n)
            given = given._replace(condition=condition.to(model.device, dtype))
            if not model.can_try or not model.takes(values, given):
                raise ValueError(why)
    return condition.to(model.device, dtype)
