"""The live taps of a mask, remembered as long as the mask exists."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Taps = tuple[tuple[int, int], ...]

_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def live_taps(mask: Tensor, kernel: Sequence[int]) -> Taps:
    """mask: one that is expanded to kernel [O, I, kH, kW] -> (row, column) of each kernel element that is not 0 for all
    channels.

    On CUDA a call waits for the device, but for a mask of the kernel's own shape that is known already and was not
    written to, except through ``.data``, which nobody is told of.
    """
    # One of another shape, or of inference mode, has mostly just been computed, by a graph that was rewritten.
    if mask.shape != tuple(kernel) or mask.is_inference():
        return _read(mask.expand(*kernel))
    version, taps = _known.get(mask, (None, ()))
    if version != mask._version:
        taps = _read(mask)
        _known[mask] = (mask._version, taps)
    return taps


def _read(mask: Tensor) -> Taps:
    return tuple((i, j) for i, j in (mask != 0).flatten(0, 1).any(0).nonzero().tolist())
