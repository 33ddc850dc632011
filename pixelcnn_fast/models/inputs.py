"""What the networks have in common: config, checks, input and output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.nn.channel_order import named_order


def config_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """``locals()`` at the start of a constructor -> the arguments that build the same network."""
    config = {name: x for name, x in arguments.items() if name not in ("self", "__class__")}
    if "channel_order" in config:
        config["channel_order"] = named_order(config["channel_order"])
    return config


def to_unit_range(images: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Images as ``models.GatedPixelCNN`` takes them -> 0...1 in ``dtype``."""
    x = images.to(dtype)
    if images.dtype == torch.uint8 or (x.numel() and x.max() > 1):
        x = x / (levels - 1)
    return x


def as_logits(x: Tensor, channels: int, levels: int) -> Tensor:
    """x: [N, channels * levels, H, W] -> [N, channels, H, W, levels]."""
    return x.unflatten(1, (channels, levels)).permute(0, 1, 3, 4, 2)


def check_inputs(
    images: Tensor, channels: int, labels: Tensor | None, n_classes: int | None, interval: str = "0...1"
) -> None:
    """interval: of floating-point images."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images are a {type(images).__name__}, expected a tensor [N, {channels}, H, W]")
    if images.dim() != 4 or images.shape[1] != channels:
        raise ValueError(f"images have shape {list(images.shape)}, expected [N, {channels}, H, W]")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}: use torch.uint8 levels or floating point in {interval}")
    check_labels(labels, len(images), n_classes)


def check_labels(labels: Tensor | None, n: int, n_classes: int | None) -> None:
    if n_classes is None:
        if labels is not None:
            raise ValueError("labels were given to a model without classes (n_classes=None)")
        return
    if labels is None:
        raise ValueError(f"this model is class-conditional: pass labels [N] in 0...{n_classes - 1}")
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels are a {type(labels).__name__}, expected a tensor of integers [{n}]")
    if labels.shape != (n,) or labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [{n}]")
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return  # what the labels are is not known yet
    if ((labels < 0) | (labels >= n_classes)).any():
        raise ValueError(
            f"labels span {int(labels.min())}...{int(labels.max())}, expected 0...{n_classes - 1}"
        )


def as_codes(x: Tensor, what: str, levels: int) -> Tensor:
    """Maps of integers 0...levels-1, [N, H, W] or [N, 1, H, W] -> int64 [N, H, W]. Raises ValueError for others."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{what} are a {type(x).__name__}, expected a tensor of integers [N, 1, H, W]")
    is_whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    if not is_whole or x.dim() not in (3, 4) or (x.dim() == 4 and x.shape[1] != 1):
        raise ValueError(
            f"{what} are {x.dtype} {list(x.shape)}, expected integers 0...{levels - 1}, [N, 1, H, W] or [N, H, W]"
        )
    return (x[:, 0] if x.dim() == 4 else x).long()


def check_condition(condition: Tensor | None, images: Tensor, channels: int | None) -> None:
    if channels is None:
        if condition is not None:
            raise ValueError("a condition was given to a model without one (condition_channels=None)")
        return
    expected = [images.shape[0], channels, *images.shape[2:]]
    if condition is None:
        raise ValueError(f"this model has a spatial condition: pass condition {expected}")
    if list(condition.shape) != expected or not condition.is_floating_point():
        raise ValueError(
            f"the condition is {condition.dtype} {list(condition.shape)}, expected floating point {expected}"
        )
