"""``LogisticMixture``: the head of PixelCNN++, a mixture of logistic distributions over all colours of a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads.mixture import Mixture, by_axes
from pixelcnn_fast.heads.values import check_whole, checked_levels, checked_reals, levels_as_images
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.ops import logistic_mixture_nll

MixtureLayout = Literal["K|c|p|k", "K|p|k|c", "K|c|k|p"]
Rounding = Literal["each", "never", "end"]
TAIL = 1e-5  # at most this, uniforms are drawn with from either end, and masses are not taken as differences


@dataclass(frozen=True, repr=False)
class LogisticMixture(Mixture):
    """A mixture of K logistic distributions over x in [-1, 1], whose components may tie a pixel's colours together.

    components: K; levels: L; colours: C, from 1 to 3.
    layout: of the output [N, K + p K C, H, W]: first K logits of π, and then by colour c,
    parameter p (0 the mean μ, 1 the logarithm of the scale s, at least -7, 2 the
    coefficient κ, through tanh) and component k, slowest first; "K|c|p|k" is channel
    K + 3 K c + K p + k. One colour may come without coefficients, which it does not use.
    rounding: 'each' gives the nearest level before the next colour is drawn; 'never' gives
    floats in [-1, 1], as published samplers do, and 'end' rounds those once the image is
    finished: these two have no log-probability, and the model takes the floats
    (image_form='centred').
    per_colour: whether each colour has a component of its own, chosen with the same π.
    uniform: α, the weight of a uniform distribution over all levels in each component; NeLLoC's is 1e-4.

    The means are m₀ = μ₀, m₁ = μ₁ + κ₀ x₀ and m₂ = μ₂ + κ₁ x₀ + κ₂ x₁. With
    mid = (x - m) / e^s, a level has the mass

        σ(mid + e^-s / (L - 1)) - σ(mid - e^-s / (L - 1)),

    where the first is 1 for the highest level, and the second 0 for the lowest. Between
    these, where that is at most 1e-5 and α is 0, its logarithm is
    mid - s - 2 softplus(mid) - ln((L - 1) / 2), as published: with that, the sum over all
    levels is 1 only nearly, to 1.4e-5. With α, the mass is (1 - α) times the difference,
    plus α / L. A pixel has the probability Σ_k π_k Π_c mass_kc or, if ``per_colour``,
    Π_c Σ_k π_k mass_kc.

    Noise: u and then v_c for each colour or, if ``per_colour``, u_c and v_c for each. u
    chooses the first component with u < π_0 + … + π_k. v < α gives the level ⌊v L / α⌋; else
    (v - α) / (1 - α), between 1e-5 and 1 - 1e-5, gives x = m + e^s (ln v - ln(1 - v)),
    between -1 and 1. At temperature T, the logits are divided by T, and e^s is multiplied by
    it; 0 gives the likeliest component's means. Colours of a pixel may be known before the first
    one that is drawn, and none after it: with a component for all colours, they multiply π by
    their masses. Raises ValueError for other layouts, roundings and numbers than these.
    Source: Salimans et al. 2017, "PixelCNN++: Improving the PixelCNN with Discretized
    Logistic Mixture Likelihood and Other Modifications", section 2.1.
    """

    components: int
    levels: int = 256
    colours: int = 3
    layout: MixtureLayout = "K|c|p|k"
    rounding: Rounding = "each"
    per_colour: bool = False
    uniform: float = 0.0
    joint = True
    real_form = "centred"
    native = "logistic_mixture"
    log_scales_within = (-7.0, torch.inf)

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, get_args(MixtureLayout))
        check_choice("rounding", self.rounding, get_args(Rounding))
        for name, least in (("components", 1), ("levels", 2), ("colours", 1)):
            check_whole(name, getattr(self, name), least)
        if self.colours > 3:
            raise ValueError(f"colours is {self.colours}: expected 1, 2 or 3")
        if not 0 <= self.uniform < 1:
            raise ValueError(f"uniform is {self.uniform}: expected a weight, at least 0 and less than 1")

    @property
    def value_dtype(self) -> torch.dtype:  # type: ignore[override]  # read only, as all of a head is
        return torch.int32 if self.rounding == "each" else torch.float32

    @property
    def unscored(self) -> str | None:  # type: ignore[override]  # the same
        if self.rounding == "each":
            return None
        return "that is one of levels, but it draws other numbers; with rounding='each', it draws levels"

    def native_fields(self) -> dict[str, Any]:
        return {"components": self.components, "per_colour": self.per_colour, "uniform": self.uniform}

    def check_known(self, known: Tensor) -> None:
        wrong = known[:, 1:] & ~known[:, :-1]
        if bool(wrong.any()):
            image, channel, row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"channel {channel + 1} of image {image} is known at row {row}, column {column}, but channel {channel} "
                f"is not: {self} draws a pixel's colours given those before, so the known ones must come first"
            )

    # -- the model's output

    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> Self:
        n, channels, height, width = shape
        if channels != self.colours:
            raise UnknownLayout(
                f"images have {channels} channels, and {self} reads {self.colours}: say colours={channels}"
            )
        numbers = (2, 3) if channels == 1 else (3,)
        expected = [[n, self.components * (1 + p * channels), height, width] for p in numbers]
        if list(output.shape) not in expected:
            raise UnknownLayout(
                f"the model's output has shape {list(output.shape)}, but {self} expects "
                f"{' or '.join(map(str, expected))}"
            )
        return self

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        count = self.components
        numbers = (output.shape[1] // count - 1) // channels
        used = 2 if channels == 1 else 3
        if self.layout != "K|c|p|k":
            sizes = {"c": channels, "p": numbers, "k": count}
            each = by_axes(output[:, count:], self.layout.removeprefix("K|"), sizes)
            output = torch.cat([output[:, :count], each.flatten(1, 3)], 1)
        return output[:, : count * (1 + used * channels)].permute(0, 2, 3, 1)[:, None]

    # -- one component

    def quantile(self, v: Tensor, mean: Tensor, log_scale: Tensor, temperature: float) -> Tensor:
        inner = ((v - self.uniform) / (1 - self.uniform)).clamp(TAIL, 1 - TAIL)
        x = mean + log_scale.exp() * (temperature * (inner.log() - (-inner).log1p()))
        if self.uniform and temperature:
            level = (v * self.levels / self.uniform).floor()
            x = self._of_levels(level).where(v < self.uniform, x)
        return x.clamp(-1, 1)

    def score(self, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        lower, upper, mid = self._ends(x, means, log_scales, 1 / (self.levels - 1))
        is_lowest, is_highest = x <= -1, x >= 1
        mass = upper.sigmoid().masked_fill(is_highest, 1) - lower.sigmoid().masked_fill(is_lowest, 0)
        if self.uniform:
            return ((1 - self.uniform) * mass + self.uniform / self.levels).log()
        density = mid - log_scales + 2 * F.logsigmoid(-mid)  # -softplus(x) is logsigmoid(-x)
        inner = mass.clamp_min(TAIL).log().where(mass > TAIL, density - math.log((self.levels - 1) / 2))
        return F.logsigmoid(upper).where(is_lowest, F.logsigmoid(-lower).where(is_highest, inner))

    def outside(self, v: Tensor, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        if self.rounding == "end":
            raise NotImplementedError(f"{self} keeps no values that tell with which noise they were drawn")
        half = 1 / (self.levels - 1) if self.rounding == "each" else 0
        lower, upper, _ = self._ends(x, means, log_scales, half)
        inner = ((v - self.uniform) / (1 - self.uniform)).clamp(TAIL, 1 - TAIL)
        first, last = lower.sigmoid().masked_fill(x <= -1, 0), upper.sigmoid().masked_fill(x >= 1, 1)
        found = torch.maximum(first - inner, inner - last).clamp_min(0)
        if not self.uniform:
            return found
        width, level = self.uniform / self.levels, self._levels_of(x)
        return found.minimum(torch.maximum(level * width - v, v - (level + 1) * width).clamp_min(0))

    def _ends(
        self, x: Tensor, means: Tensor, log_scales: Tensor, half: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x - half, x + half, x), by how many scales they lie above the mean."""
        inverse = (-log_scales).exp()
        mid = (x - means) * inverse
        return mid - half * inverse, mid + half * inverse, mid

    def nll(self, parameters: Tensor, values: Tensor) -> Tensor:
        self.check_scored()
        if self.native is None or self.per_colour or self.uniform or self.colours == 2:
            return super().nll(parameters, values)
        return logistic_mixture_nll(parameters[:, 0].movedim(-1, 1), values, self.components, self.levels)

    # -- values

    def numbers(self, values: Tensor) -> Tensor:
        return self._of_levels(values.double()) if self.rounding == "each" else values.double()

    def nearest(self, x: Tensor) -> Tensor:
        return (self._levels_of(x) if self.rounding == "each" else x).to(self.value_dtype)

    def _of_levels(self, levels: Tensor) -> Tensor:
        return levels * 2 / (self.levels - 1) - 1

    def _levels_of(self, x: Tensor) -> Tensor:
        return ((x + 1) * ((self.levels - 1) / 2)).round()

    def examples(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        levels = torch.randint(self.levels, shape, generator=generator)
        return levels if self.rounding == "each" else self._of_levels(levels.double()).float()

    def checked(self, values: Tensor) -> Tensor:
        """Floats if ``rounding`` is 'never', else levels."""
        if self.rounding == "never":
            return checked_reals(values, 1)
        levels = checked_levels(values, self.levels)
        return levels if self.rounding == "each" else self._of_levels(levels.double()).float()

    def as_images(self, values: Tensor) -> Tensor:
        if self.rounding == "never":
            return values
        levels = values if self.rounding == "each" else self._levels_of(values.double())
        return levels_as_images(levels, self.levels)
