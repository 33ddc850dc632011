"""How PyTorch lays results out: rewritten graphs do so, too, as strides can be looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pixelcnn_fast.ops.library import memory_format
from pixelcnn_fast.rewriting.nodes import is_any_call, value

OTHER_STRIDES = "its result is laid out otherwise than this library's operators do"


def layout_of(node: fx.Node) -> torch.memory_format | None:
    """The memory format that a map [N, C, H, W] has, stride by stride, if it has one."""
    found = value(node)
    if found is None or found.dim() != 4:
        return None
    formats = (torch.contiguous_format, torch.channels_last)
    strides = found.stride()
    return next((x for x in formats if torch.empty_like(found, memory_format=x).stride() == strides), None)


def is_surely_so(node: fx.Node) -> bool:
    """Whether a result has the strides of its fake tensor. Where memory is both contiguous
    and channels-last, results become contiguous, and fakes do not."""
    found = value(node)
    is_both = found is not None and found.is_contiguous() and layout_of(node) != torch.contiguous_format
    return not (is_both and is_any_call(node))


def followed(x: Any) -> torch.memory_format | None:
    """In which memory format an op that follows a map gives its result."""
    found = value(x)
    return None if found is None else memory_format(found)


def asked_format(x: Any, weight: Any, wanted: torch.memory_format | None) -> torch.memory_format | None:
    """What to ask a convolution for: nothing where it follows x as PyTorch's does, as fakes
    of x may be wrong. PyTorch's also follows a weight that is channels-last."""
    return None if followed(x) == wanted and followed(weight) != torch.channels_last else wanted
