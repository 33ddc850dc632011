"""Teacher-forced likelihood: every conditional from one forward, in nats or in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pixelcnn_fast.heads import Categorical, Head, resolved
from pixelcnn_fast.heads.categorical import layout_of
from pixelcnn_fast.heads.output import Output, picked
from pixelcnn_fast.image_forms import to_levels, with_channels

__all__ = ["bits_per_dim", "nll", "to_levels"]


def nll(
    model: nn.Module,
    images: Tensor,
    *given: Tensor | None,
    head: Head | None = None,
    output: Output = None,
    **named: Tensor,
) -> Tensor:
    """Teacher-forced negative log-likelihood of each image, in nats.

    images: [N, C, H, W] as the model takes them, or [N, H, W] for one channel. given, named: what else the model takes;
    it is called as ``model(images, *given, **named)``, without trailing Nones. head: how its output is read, from
    ``heads``; by default one logit per level, in the only layout that fits the output's shape, as for ``Sampler``;
    output: which part of it, also as for ``Sampler`` -> [N], differentiable in the model's parameters.
    Raises UnknownLayout (a ValueError), with the alternatives, if the output fits no head or several.
    """
    while given and given[-1] is None:
        given = given[:-1]
    logits = picked(model(images, *given, **named), output)
    shape = with_channels(images.shape)
    if head is None:
        levels = _levels(model, logits, shape)
        head = Categorical(levels, layout_of(model, shape, levels))
    head = resolved(head, logits, shape)
    values = images if head.levels is None else to_levels(images, head.levels)
    return head.nll(head.arranged(logits, shape[1]), values.view(shape))


def _levels(model: nn.Module, logits: Tensor, shape: tuple[int, ...]) -> int:
    """The model's own attribute, else the size of the output's last axis if that holds the levels, else 256."""
    if not hasattr(model, "levels") and logits.shape[:-1] == shape:
        return logits.shape[-1]
    return getattr(model, "levels", 256)


@torch.no_grad()
def bits_per_dim(
    model: nn.Module,
    loader: Iterable,
    progress: bool = False,
    head: Head | None = None,
    output: Output = None,
) -> float:
    """Mean negative log-likelihood over a data set, in bits per sub-pixel; exact for batches of unequal size.

    loader yields images [N, C, H, W], or tuples (images, labels), (images, labels, condition): whatever the model takes
    by position, None where it takes nothing; a dict at the end holds what it takes by name. Tensors are moved to the
    model's device. head, output: as for ``nll``. The model runs in eval mode and is put back as it was.
    Raises ValueError if the loader yields no image.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    nats, dimensions = 0.0, 0
    try:
        for batch in tqdm(loader, desc="bits/dim", unit="batch", disable=not progress):
            images, *given = batch if isinstance(batch, (tuple, list)) else (batch,)
            named = given.pop() if given and isinstance(given[-1], dict) else {}
            given = [x if x is None else x.to(device) for x in given]
            named = {name: x.to(device) for name, x in named.items()}
            nats += float(
                nll(model, images.to(device), *given, head=head, output=output, **named).double().sum()
            )
            dimensions += images.numel()
    finally:
        model.train(was_training)
    if dimensions == 0:
        raise ValueError("the loader yielded no image")
    return nats / dimensions / math.log(2)
