"""What capture knows of a tensor: nothing (a constant), or one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Unsupported(ValueError):
    """The model does something that has no place in a causal program."""


class Axis(NamedTuple):
    """An axis of a feature map: 'N', 'H', 'W', or part of the channels, with its stride in the channel index."""

    kind: str
    size: int
    stride: int = 1


@dataclass(frozen=True)
class FeatureMap:
    value: int
    axes: tuple[Axis, ...]
    channels: int


@dataclass(frozen=True)
class Condition:
    node: int


@dataclass(frozen=True)
class Opaque:
    """Depends on the image in a way that no instruction expresses."""

    reason: str
