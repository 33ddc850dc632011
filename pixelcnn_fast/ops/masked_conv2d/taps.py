"""The live taps of a mask, remembered as long as the mask exists."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Taps = tuple[tuple[int, int], ...]

_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def live_taps(mask: Tensor) -> Taps:
    """mask: [O, I, kH, kW] -> (row, column) of each kernel element that is not 0 for all channels.

    On CUDA the first call for a mask waits for the device; later ones don't, until the mask is written to.
    """
    version, taps = _known.get(mask, (None, ()))
    if version != mask._version:
        taps = tuple((i, j) for i, j in (mask != 0).flatten(0, 1).any(0).nonzero().tolist())
        _known[mask] = (mask._version, taps)
    return taps
