"""Lets modules that keep something for the size of their first batch run with another."""

from __future__ import annotations

from torch import Tensor, nn


def fitted(module: nn.Module, n: int) -> bool:
    """Lets tensors that a module keeps for the images of a batch, all alike, serve n of them -> whether there are any.

    Such as the maps of ones that some forwards make in their first call. They are its
    attributes, and no parameters or buffers.
    """
    found = False
    for each in module.modules():
        for name, x in vars(each).items():
            if isinstance(x, Tensor) and x.dim() > 1 and len(x) != n and _is_repeated(x):
                vars(each)[name] = x[:1].expand(n, *x.shape[1:])
                found = True
    return found


def _is_repeated(x: Tensor) -> bool:
    return not x.requires_grad and len(x) > 0 and bool((x == x[:1]).all())
