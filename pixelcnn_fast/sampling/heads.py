"""Heads: how a model's output is read as the distribution of each sub-pixel's level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

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


@dataclass(frozen=True)
class Bernoulli:
    """Images of two levels, 0 and 1; the model's output is [N, C, H, W], one number per sub-pixel.

    probabilities: whether that number is the probability of level 1, after a sigmoid, or its logit, before one.
    """

    probabilities: bool = False
    levels = 2
    layout = "N,C,H,W"

    def expected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        """[N, C, H, W] -> logits [N, C, H, W, 2], that of level 0 being zero."""
        if self.probabilities:  # one of 1 would have an infinite logit
            output = torch.logit(output, eps=torch.finfo(output.dtype).eps)
        pairs = torch.zeros(2 * channels, channels, 1, 1, dtype=output.dtype, device=output.device)
        pairs[1::2, :, 0, 0].fill_diagonal_(1)
        return Categorical(2, "N,C*L,H,W").arranged(F.conv2d(output, pairs), channels)

    def comparable(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.probabilities else logits


Head = Categorical | Bernoulli


class UnknownLayout(ValueError):
    """The model's output fits no head, or several."""


def resolved(head: Head, output: Tensor, shape: tuple[int, ...]) -> Head:
    """The head with its layout, read off the output where there is no doubt.

    output: what the model gave for images of ``shape`` [N, C, H, W].
    Raises UnknownLayout, with the alternatives, where none fits or where several do.
    """
    if not isinstance(output, Tensor):
        raise UnknownLayout(f"the model returned a {type(output).__name__}, expected one tensor of logits")
    found = list(output.shape)
    if head.layout is not None:
        if found != list(head.expected(shape)):
            raise UnknownLayout(
                f"the model's output has shape {found}, {head} expects {list(head.expected(shape))}"
            )
        return head
    heads = [replace(head, layout=layout) for layout in LAYOUTS]
    fitting = [h for h in heads if found == list(h.expected(shape))]
    if len(fitting) == 1 or (len(fitting) == 2 and shape[1] == 1 and output.dim() == 4):
        return fitting[0]  # of one channel, both orders of the channels are the same
    if fitting:
        lines = [f"  head={h!r}: {LAYOUTS[h.layout]}" for h in fitting]
        raise UnknownLayout(
            "\n".join([f"the model's output {found} can be read in several ways; say which:", *lines])
        )
    lines = [f"  {list(h.expected(shape))} for head={h!r}" for h in heads]
    lines.append(
        f"  {list(shape)} for head=Bernoulli() of logits or head=Bernoulli(probabilities=True), two levels"
    )
    raise UnknownLayout(
        "\n".join(
            [f"the model's output has shape {found}; for {head.levels} levels it is expected to be", *lines]
        )
    )
