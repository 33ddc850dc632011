"""``Categorical``: the head of one logit per level, and what heads of levels share."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads import drawing
from pixelcnn_fast.heads.base import HOT, Head
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.heads.values import check_whole, checked_levels, levels_as_images
from pixelcnn_fast.ops import categorical_nll

Layout = Literal["N,C,H,W,L", "N,L,C,H,W", "N,C,L,H,W", "N,C*L,H,W", "N,L*C,H,W"]
LAYOUTS: dict[Layout, str] = {
    "N,C,H,W,L": "one axis for the levels, last",
    "N,L,C,H,W": "one axis for the levels, before the channels",
    "N,C,L,H,W": "one axis for the levels, after the channels",
    "N,C*L,H,W": "index = channel * L + level",
    "N,L*C,H,W": "index = level * C + channel",
}


class OfLevels(Head):
    """A head with one logit for each level: parameters are logits [N, C, H, W, L]."""

    levels: int
    probabilities: bool = False
    of_logits = True
    distance_name = "total variation"
    options = frozenset(option.name for option in fields(SamplingOptions))
    native = "categorical"

    def check(self) -> None:
        super().check()
        if self.drawn_levels is None:
            raise ValueError(
                f"{self} draws {self.levels} levels, which value_dtype {self.value_dtype} can't hold"
            )

    @classmethod
    def offered(cls, shape: tuple[int, ...]) -> str:
        """What output for images of ``shape`` the head reads, for errors."""
        return ""

    def draw(
        self, parameters: Tensor, noise: Tensor, options: SamplingOptions, values: Tensor, known: Tensor
    ) -> Tensor:
        return drawing.draw(parameters, noise[..., 0], options)[..., None]

    def distance(self, one: Tensor, other: Tensor, channels: int) -> Tensor:
        """The total variation, in which a level masked with -1e9 counts for nothing."""
        return (one.double().softmax(-1) - other.double().softmax(-1)).abs().sum(-1) / 2

    def hot(self, parameters: Tensor) -> Tensor | None:
        """None for logits that are read off probabilities, which are rounded near 1."""
        return parameters / HOT if self.of_logits and not self.probabilities else None

    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        return parameters.double().log_softmax(-1).gather(-1, values.long())

    def examples(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(self.levels, shape, generator=generator)

    def checked(self, values: Tensor) -> Tensor:
        return checked_levels(values, self.levels).to(self.value_dtype)

    def as_images(self, values: Tensor) -> Tensor:
        return levels_as_images(values, self.levels)

    def excess(self, parameters: Tensor, values: Tensor, noise: Tensor) -> Tensor:
        """How far u lies outside [cdf_{k-1}, cdf_k) of the level k that was drawn with it; 0 where inside."""
        probability, level = parameters.double().softmax(-1), values.long()
        upper = probability.cumsum(-1).gather(-1, level)
        lower = upper - probability.gather(-1, level)
        is_last = level == parameters.shape[-1] - 1
        upper = upper.clamp_min(1).where(is_last, upper)  # rounding aside, it ends at 1
        return torch.maximum(lower - noise, noise - upper).clamp_min(0)

    def nll(self, parameters: Tensor, values: Tensor) -> Tensor:
        return super().nll(parameters, values) if self.native is None else categorical_nll(parameters, values)


def layout_of(model: nn.Module, shape: tuple[int, ...], levels: int) -> Layout | None:
    """The layout that a model names as ``logits_layout``, or None, for images of ``shape``
    [..., H, W] with H = W = levels, where the output's shape does not tell."""
    found = getattr(model, "logits_layout", None) if shape[-2:] == (levels, levels) else None
    return found if isinstance(found, str) and found in LAYOUTS else None


# Lower probabilities count as this one, as 0 would have an infinite logit.
LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Categorical(OfLevels):
    """One logit per level.

    levels: L. layout: the output's: "N,C,H,W,L", "N,L,C,H,W", "N,C,L,H,W", or in one axis
    "N,C*L,H,W" (index = channel * L + level) or "N,L*C,H,W" (index = level * C + channel);
    None: inferred from its shape if only one fits. probabilities: whether it holds
    probabilities, after a softmax, or logits, before one, as log-probabilities are, too.
    Raises ValueError for another layout, and for fewer than 2 levels.
    """

    levels: int = 256
    layout: Layout | None = None
    probabilities: bool = False

    def __post_init__(self) -> None:
        check_whole("levels", self.levels, 2)
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout is {self.layout!r}, expected one of {', '.join(map(repr, LAYOUTS))}")

    def expected(self, shape: tuple[int, ...]) -> list[int]:
        """The output's shape for images of ``shape`` [N, C, H, W], in its layout."""
        assert self.layout is not None
        n, c, height, width = shape
        sizes = {"N": n, "C": c, "H": height, "W": width, "L": self.levels}
        sizes["C*L"] = sizes["L*C"] = c * self.levels
        return [sizes[axis] for axis in self.layout.split(",")]

    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> Self:
        found = list(output.shape)
        if self.layout is not None:
            if found != self.expected(shape):
                raise UnknownLayout(
                    f"the model's output has shape {found}, but {self} expects {self.expected(shape)}"
                )
            return self
        heads = [replace(self, layout=layout) for layout in LAYOUTS]
        fitting = [head for head in heads if found == head.expected(shape)]
        if len(fitting) == 1 or (len(fitting) == 2 and shape[1] == 1 and output.dim() == 4):
            return fitting[0]  # the channels' order does not matter for one
        if fitting:
            title = f"the model's output {found} can be read in several ways; say which:"
            lines = [
                f"  head={head!r}: {LAYOUTS[head.layout]}" for head in fitting if head.layout is not None
            ]
        else:
            title = f"the model's output has shape {found}; for {self.levels} levels it is expected to be"
            lines = [f"  {head.expected(shape)} for head={head!r}" for head in heads]
            lines += [f"  {offer}" for kind in OfLevels.__subclasses__() if (offer := kind.offered(shape))]
            lines.append(
                "  mixtures over colours, as of PixelCNN++, for head=LogisticMixture(components) and its like"
            )
        raise UnknownLayout("\n".join([title, *lines]))

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        assert self.layout is not None
        if self.probabilities:
            wide = output.float() if output.dtype.itemsize < 4 else output
            output = wide.clamp_min(LEAST).log().to(output.dtype)
        axes = self.layout.replace("*", ",").split(",")
        if "*" in self.layout:
            output = output.unflatten(1, [{"C": channels, "L": self.levels}[axis] for axis in axes[1:3]])
        return output.permute([axes.index(axis) for axis in "NCHWL"])

    def comparable(self, parameters: Tensor) -> Tensor:
        return parameters.softmax(-1) if self.probabilities else parameters
