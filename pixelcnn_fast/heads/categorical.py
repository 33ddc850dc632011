"""Heads: how a model's output is read as the distribution of each sub-pixel's level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LAYOUTS = {
    "N,C,H,W,L": "one axis for the levels, last",
    "N,L,C,H,W": "one axis for the levels, before the channels",
    "N,C,L,H,W": "one axis for the levels, after the channels",
    "N,C*L,H,W": "index = channel * L + level",
    "N,L*C,H,W": "index = level * C + channel",
}
ORDERS = {"N,C,H,W,L": (0, 1, 2, 3, 4), "N,L,C,H,W": (0, 2, 3, 4, 1), "N,C,L,H,W": (0, 1, 3, 4, 2)}


@dataclass(frozen=True)
class Categorical:
    """One logit per level.

    levels: L, the number of levels; layout: of the model's output, one of ``LAYOUTS``; None: inferred from the
    output's shape where only one fits. probabilities: whether the output is the levels' probabilities, after a
    softmax, or their logits, before one; log-probabilities are logits, too.
    """

    levels: int = 256
    layout: Literal["N,C,H,W,L", "N,L,C,H,W", "N,C,L,H,W", "N,C*L,H,W", "N,L*C,H,W"] | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The output's shape for images of ``shape`` [N, C, H, W], in a layout that is given."""
        n, c, height, width = shape
        sizes = {"N": n, "C": c, "H": height, "W": width, "L": self.levels}
        sizes["C*L"] = sizes["L*C"] = c * self.levels
        return tuple(sizes[axis] for axis in self.layout.split(","))

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        """The model's output, in a layout that is given -> logits [N, C, H, W, L]."""
        layout = self.layout
        if self.probabilities:  # one of 0 would have an infinite logit
            output = output.clamp_min(torch.finfo(output.dtype).tiny).log()
        if layout in ("N,C*L,H,W", "N,L*C,H,W"):
            n, _, height, width = output.shape
            split = (channels, self.levels) if layout == "N,C*L,H,W" else (self.levels, channels)
            output = output.reshape(n, *split, height, width)
            layout = "N,C,L,H,W" if layout == "N,C*L,H,W" else "N,L,C,H,W"
        return output if layout == "N,C,H,W,L" else output.permute(*ORDERS[layout])

    def comparable(self, logits: Tensor) -> Tensor:
        """What the captured program and the model are compared by."""
        return logits.softmax(-1) if self.probabilities else logits
