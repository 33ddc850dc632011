"""Teacher-forced likelihood: every conditional from one forward, in nats or in bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pixelcnn_fast.ops import categorical_nll


def to_levels(images: Tensor, levels: int = 256) -> Tensor:
    """Images -> their integer levels (int64, same shape).

    uint8 and other integers are levels already. Floating point is read as 0...1, or as 0...levels-1 when some
    value exceeds 1, and rounded: truncation is wrong for most levels once an image has been float16.
    Raises ValueError for values that are NaN or outside the range.
    """
    if images.is_floating_point():
        x = images.double()
        x = x if x.numel() and x.max() > 1 else x * (levels - 1)
        images = x.round()
        if not torch.isfinite(images).all():
            raise ValueError("images hold NaN or infinite values")
    images = images.long()
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < levels:
        raise ValueError(f"levels span {int(images.min())}...{int(images.max())}, expected 0...{levels - 1}")
    return images


def nll(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Teacher-forced negative log-likelihood of each image, in nats.

    images: [N, C, H, W] as the model takes them; labels: [N] or None; the model returns logits
    [N, C, H, W, L] -> [N], differentiable in the model's parameters.
    Raises ValueError if the logits do not fit the images.
    """
    logits = model(images) if labels is None else model(images, labels)
    if logits.shape[:-1] != images.shape:
        raise ValueError(
            f"logits {list(logits.shape)} do not fit images {list(images.shape)}: expected [N, C, H, W, L]"
        )
    return categorical_nll(logits, to_levels(images, logits.shape[-1]))


@torch.no_grad()
def bits_per_dim(model: nn.Module, loader: Iterable, progress: bool = False) -> float:
    """Mean negative log-likelihood over a data set, in bits per sub-pixel; exact for batches of unequal size.

    loader yields images [N, C, H, W], or tuples (images, labels); tensors are moved to the model's device.
    The model is evaluated in eval mode and put back as it was.
    Raises ValueError if the loader yields no image.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = model.training
    model.eval()
    nats, dimensions = 0.0, 0
    try:
        for batch in tqdm(loader, desc="bits/dim", unit="batch", disable=not progress):
            images, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
            labels = labels.to(device) if labels is not None else None
            nats += float(nll(model, images.to(device), labels).double().sum())
            dimensions += images.numel()
    finally:
        model.train(was_training)
    if dimensions == 0:
        raise ValueError("the loader yielded no image")
    return nats / dimensions / math.log(2)
