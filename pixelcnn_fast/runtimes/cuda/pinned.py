"""Copies between the host and a GPU through pinned memory, so that nobody waits."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """x on the device in that dtype: itself if it is so already."""
    if x.device.type == "cpu" and device.type == "cuda":
        x = torch.empty(x.shape, dtype=dtype, device="cpu", pin_memory=True).copy_(x)
    return x.to(device, dtype, non_blocking=True)


def on_host(x: Tensor) -> Tensor:
    """What holds x on the host, once the current stream has come that far."""
    if x.device.type == "cpu":
        return x
    there = torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True)
    return there.copy_(x, non_blocking=True)
