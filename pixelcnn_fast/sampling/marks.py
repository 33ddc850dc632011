"""What capture knows of a tensor: nothing (a constant), that it is a feature map (addresses.py), or one of these."""

from __future__ import annotations

from dataclasses import dataclass


class Unsupported(ValueError):
    """The model does something that has no place in a causal program."""


@dataclass(frozen=True)
class Condition:
    """Depends on the condition alone; ``node`` is the recorded call that computes it."""

    node: int


@dataclass(frozen=True)
class Opaque:
    """Depends on the image in a way that no instruction expresses."""

    reason: str
