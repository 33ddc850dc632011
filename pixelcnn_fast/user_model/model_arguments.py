"""The arguments that describe a model to a sampler, and what can be read off the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TypedDict

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from pixelcnn_fast.heads import Categorical, Head, LogisticMixture
from pixelcnn_fast.heads.categorical import layout_of
from pixelcnn_fast.heads.output import Output
from pixelcnn_fast.image_forms import ImageForm, form_of
from pixelcnn_fast.models import PixelCNNpp
from pixelcnn_fast.program.conditions import OneOrMore, are_arguments, arguments_of
from pixelcnn_fast.user_model.contents import Contents, if_imported, parameters_of, unwrapped
from pixelcnn_fast.user_model.taken_condition import are_several


class ModelArguments(TypedDict, total=False):
    """The keyword arguments of ``Sampler``, ``receptive_field`` and ``check_causal`` that describe a model."""

    head: Head | None
    levels: int | None
    conditional: bool | None
    image_form: ImageForm
    condition_shape: OneOrMore[tuple[int, ...]] | None
    condition_dtype: OneOrMore[torch.dtype | None]
    output: Output


def checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if (
        not isinstance(shape, Sequence)
        or len(shape) != 3
        or not all(isinstance(size, Integral) and size > 0 for size in shape)
    ):
        raise ValueError(f"shape is {shape}, expected (C, H, W), all positive integers")
    channels, height, width = map(int, shape)
    return channels, height, width


def head_of(
    module: nn.Module,
    shape: tuple[int, int, int],
    head: Head | None,
    levels: int | None,
    image_form: ImageForm,
) -> Head:
    """The head that reads a module's output. Raises ValueError if head, levels, form and shape disagree."""
    if head is not None and not isinstance(head, Head):
        raise ValueError(f"head is {head!r}, expected a head, such as heads.Categorical(...)")
    if head is not None and levels not in (None, head.levels):
        raise ValueError(f"levels is {levels}, but {head} has {head.levels}: leave levels out")
    if head is None:
        levels, own = levels if levels is not None else integer_of(module, "levels") or 256, unwrapped(module)
        if isinstance(own, PixelCNNpp):
            head = LogisticMixture(own.n_mixtures, levels, colours=own.input_channels)
        else:
            head = Categorical(levels, layout_of(module, shape, levels))
    head.check()
    form = form_of(image_form)
    form.check(shape[0])
    if (drawn := head.drawn_levels) is None:
        if form.base != head.real_form:
            raise ValueError(
                f"{head} draws real numbers, which a model takes as they are: pass image_form={head.real_form!r}"
            )
    elif drawn < 2 or (form.base == "uint8" and drawn > 256):
        raise ValueError(
            f"levels is {drawn}: expected 2 or more, and at most 256 with image_form='uint8'; for more, pass "
            "image_form='int64', 'codes' or a floating point form, whichever the model takes"
        )
    return head


ON_META = "on the device meta, where tensors have no values: load its weights first"


def check_has_values(model: nn.Module) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    if any(isinstance(x, (UninitializedParameter, UninitializedBuffer)) for x in tensors):
        raise ValueError(
            "the model has lazy layers, whose parameters do not exist yet: call the model once, on an example"
        )
    if any(x.is_meta and x.numel() for x in tensors):
        raise ValueError(f"the model is {ON_META}")
    divides = if_imported("torch.distributed.fsdp", "FSDPModule")
    if any(hasattr(x, "full_tensor") for x in tensors) or any(
        isinstance(x, divides) for x in model.modules()
    ):
        raise ValueError(
            "the model's parameters are divided among processes: pass a model of whole ones, such as one that has "
            "loaded get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), which is in "
            "torch.distributed.checkpoint.state_dict"
        )


def dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    check_has_values(model)
    parameters = parameters_of(model, Contents(model).tensors.values())
    kinds = {(p.dtype, p.device) for p in parameters if p.is_floating_point()}
    if not kinds:
        raise ValueError("the model has no parameters of real numbers, which say in what dtype it computes")
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(
            f"the model's parameters differ in dtype or device ({found}): convert it with model.to(...)"
        )
    return kinds.pop()


def takes_labels(model: nn.Module, condition_shape: OneOrMore[tuple[int, ...]] | None) -> bool:
    """Whether a model says that it takes labels, or needs more than images and conditions.
    Raises ValueError for a condition of unknown shape, or for names of which it takes some."""
    if getattr(model, "n_classes", 0) is None:
        return False
    if integer_of(model, "n_classes"):
        return True
    arguments = arguments_of(model)
    required = [
        name
        for name, p in arguments.items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    if condition_shape is None:
        if required == ["condition"]:
            raise ValueError(
                "the model's forward takes a condition: pass condition_shape=, its shape without the batch axis"
            )
        return bool(required)
    if isinstance(condition_shape, dict):
        if are_arguments(condition_shape, arguments):
            return any(name not in condition_shape for name in required)
        others = [name for name in condition_shape if name not in arguments]
        if "condition" not in arguments and len(others) < len(condition_shape):
            raise ValueError(
                f"the model's forward takes {', '.join(arguments)}, but not {', '.join(others)}, which condition_shape "
                "has: name its arguments, or none of them for a model that takes the dict as one argument"
            )
    if "condition" in arguments:
        return any(name != "condition" for name in required)
    is_tuple = isinstance(condition_shape, tuple) and are_several(condition_shape)
    return len(required) > (len(condition_shape) if is_tuple else 1)


def fits(given: torch.dtype, taken: torch.dtype) -> bool:
    """Whether a condition of one dtype suits a model that takes another."""
    return is_integral(given) or (given.is_floating_point and taken.is_floating_point)


def is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def integer_of(model: nn.Module, name: str) -> int | None:
    """The attribute of a model, or of the one in a wrapper, if it is a positive integer."""
    found = getattr(model, name, getattr(getattr(model, "module", None), name, None))
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None
