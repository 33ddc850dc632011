"""The teacher-forced likelihood of images, in nats or in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.errors import ModelFailed, PixelCNNFastError
from pixelcnn_fast.heads import Head
from pixelcnn_fast.heads.output import Output, picked
from pixelcnn_fast.image_forms import ImageForm, form_of, other_forms, to_levels, with_channels
from pixelcnn_fast.program.conditions import Condition, like, named
from pixelcnn_fast.progress import progress_bar
from pixelcnn_fast.user_model.contents import unwrapped
from pixelcnn_fast.user_model.model_arguments import check_has_values, head_of
from pixelcnn_fast.user_model.of_one_batch import as_of_several, with_any_batch
from pixelcnn_fast.user_model.private_copy import exclusively, private_copy

__all__ = ["bits_per_dim", "nll", "to_levels"]


def nll(
    model: nn.Module,
    images: Tensor,
    *given: Condition | None,
    image_form: ImageForm = "uint8",
    head: Head | None = None,
    levels: int | None = None,
    output: Output = None,
    **by_name: Condition,
) -> Tensor:
    """Teacher-forced negative log-likelihood of each image, in nats -> [N], differentiable.

    images: [N, C, H, W], or as the model takes them: [N, H, W] for one channel, or
    [N, H, W, C] with ``image_forms.ChannelsLast``. given, by_name: what else the model
    takes, called as ``model(images, *given, **by_name)``, without trailing Nones: tensors,
    or tuples and dicts of them. Others are as for ``Sampler``.
    Raises ValueError for images in another form, naming the forms that fit; UnknownLayout
    (a ValueError), with the alternatives, if the output fits no head or several;
    ModelFailed if the model raises when given uint8.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"the images are a {type(images).__name__}, expected a torch.Tensor")
    check_has_values(model)
    form = form_of(image_form)
    shape = with_channels(form.undone(images).shape)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def taken(x: Any) -> Any:
        """Real numbers in the dtype that the model computes in, as samplers give them."""
        return _each(x, lambda y: y.to(own) if y.is_floating_point() else y)

    head = head_of(unwrapped(model), shape[1:], head, levels, image_form)
    head.check_scored()
    drawn = head.drawn_levels
    values = form.undone(images) if drawn is None else to_levels(images, drawn, image_form)
    while given and given[-1] is None:
        given = given[:-1]
    try:
        returned = model(taken(images), *map(taken, given), **{name: taken(x) for name, x in by_name.items()})
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        if image_form != "uint8" or isinstance(error, (PixelCNNFastError, torch.cuda.OutOfMemoryError)):
            raise
        forms = other_forms("nll(model, images, image_form=%r)", shape[1])
        raise ModelFailed(
            f"the model raised {type(error).__name__}: {error}\n"
            f"It was given images of {images.dtype} {list(images.shape)}. {forms}\n"
            "and pass images in that form; L is levels="
        ) from error
    logits = form.rows_last(picked(returned, output), shape[2:])
    head = head.resolved(logits, shape)
    return head.nll(head.arranged(logits, shape[1]), values.reshape(shape))


@torch.no_grad()
def bits_per_dim(
    model: nn.Module,
    loader: Iterable,
    progress: bool = False,
    *,
    image_form: ImageForm = "uint8",
    head: Head | None = None,
    levels: int | None = None,
    output: Output = None,
) -> float:
    """Mean negative log-likelihood over a data set, in bits per sub-pixel; exact for batches of unequal size.

    loader yields images [N, C, H, W], or tuples (images, labels, ...): whatever the model
    takes by position, or None; a dict at the end holds what it takes by name. Tensors are
    moved to the model's device. The others are as for ``nll``. Another thread may go on
    training the model meanwhile.
    Raises ValueError if the loader yields no image, and what ``nll`` raises.
    """
    module = unwrapped(model)
    check_has_values(module)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    copied = private_copy(module)
    scored = module if copied is None else copied
    nats, dimensions = 0.0, 0

    def score(images: Tensor, given: Any, by_name: Any) -> Tensor:
        def of_part(chosen: slice | list[int]) -> Tensor:
            def of_module(x: nn.Module) -> Tensor:
                return nll(
                    x, taken, *others, image_form=image_form, head=head, levels=levels, output=output, **names
                )

            n = len(images)
            taken, others, names = _each(
                (images, given, by_name), lambda x: x[chosen] if x.shape[:1] == (n,) else x
            )
            return with_any_batch(of_module, scored, len(taken))

        return as_of_several(of_part, len(images))

    with exclusively(module) if copied is None else nullcontext():
        for batch in progress_bar(loader, shown=progress, desc="bits/dim", unit="batch"):
            images, *given = batch if isinstance(batch, (tuple, list)) else (batch,)
            by_name = given.pop() if given and isinstance(given[-1], dict) else {}
            parts = [images, *(x for each in (*given, *by_name.values()) for x in named(each).values())]
            if images is None or not all(isinstance(x, Tensor | None) for x in parts):
                raise ValueError(
                    "the loader must yield images, or tuples (images, labels, ...), of torch.Tensor; it yielded "
                    f"{', '.join(type(x).__name__ for x in parts)}"
                )
            nats += float(score(*_each((images, given, by_name), lambda x: x.to(device))).double().sum())
            dimensions += images.numel()
    if dimensions == 0:
        raise ValueError("the loader yielded no image")
    return nats / dimensions / math.log(2)


def _each(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with each tensor changed, perhaps in tuples, lists and dicts."""
    if isinstance(given, (tuple, list, Mapping)):
        return like(given, [_each(x, change) for x in named(given).values()])
    return change(given) if isinstance(given, Tensor) else given
