"""Changes of the images through which a model sees all of them behind the dispatcher's back."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def flipped_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.numpy()[:] += x.numpy()[:, :, ::-1]
    return y


def with_flipped_data(x: Tensor) -> Tensor:
    y = x.clone()
    y.data = x.flip(2)
    return y


HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean": lambda x: x - x.mean().item(),
    "a deviation": lambda x: x / float(x.std()),
    "a mean in NumPy": lambda x: x - float(x.numpy().mean()),
    "the largest": lambda x: x / x.max().item(),
    "the largest, at least one": lambda x: x / max(1.0, x.max().item()),
    "a branch": lambda x: x * 2 if x.mean() > 1.5 else x,
    "a quantile": lambda x: x - x.flatten().sort().values[8].item(),
    "a mean of quantiles": lambda x: x - x.flatten(1).sort(1).values[:, 8].mean().item(),
    "flipped by NumPy": lambda x: x + torch.from_numpy(np.ascontiguousarray(x.numpy()[:, :, ::-1])),
    "flipped in place by NumPy": flipped_in_place,
    "a list": lambda x: x - max(x.flatten().tolist()),
    "flipped data": with_flipped_data,
}
