"""What heads of mixtures have in common: how a component is chosen, and how it is drawn from and scored."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from pixelcnn_fast.heads import drawing
from pixelcnn_fast.heads.base import HOT, Head
from pixelcnn_fast.heads.options import SamplingOptions

# The colour to whose mean each coefficient belongs, and the earlier colour that it multiplies.
PAIRS = ((1, 0), (2, 0), (2, 1))
# No larger log-scale is drawn with: e^s would be infinite, and NaN times 0, as temperature 0 has it.
WIDEST_DRAWN = 700.0


class Components(NamedTuple):
    """K components for c colours, in float64."""

    logits: Tensor  # [..., K], whose softmax gives the weights
    means: Tensor  # [..., c, K], before the earlier colours add to them
    log_scales: Tensor  # [..., c, K]
    coefficients: Tensor  # [..., pairs, K], of the first of PAIRS

    @property
    def colours_of_pairs(self) -> list[int]:
        return [colour for colour, _ in PAIRS[: self.coefficients.shape[-2]]]

    def only(self, k: Tensor) -> Components:
        """One component for each colour, number k [..., c]: K is 1."""
        of_each = (self.means, k), (self.log_scales, k), (self.coefficients, k[..., self.colours_of_pairs])
        return Components(self.logits, *(x.gather(-1, number[..., None]) for x, number in of_each))

    def means_given(self, x: Tensor) -> Tensor:
        """The means [..., c, K], where the colours are x [..., c]."""
        means = list(self.means.unbind(-2))
        for (colour, before), coefficient in zip(PAIRS, self.coefficients.unbind(-2), strict=False):
            means[colour] = means[colour] + coefficient * x[..., before, None]
        return torch.stack(means, -2)


class Mixture(Head):
    """K components, each of which has a mean and a scale for each of c colours.

    Parameters are K logits, and then, for each colour, K means, K logarithms of scales and,
    where there are coefficients, K of them. The first uniform chooses the component that
    all colours have, and the others draw these, in order; or, if ``per_colour``, each
    colour has two uniforms: for a component of its own, and for itself.
    """

    components: int
    colours: int = 1
    per_colour: bool = False
    means_within: tuple[float, float] = (-torch.inf, torch.inf)
    log_scales_within: tuple[float, float] = (-torch.inf, torch.inf)
    distance_name = "bound of the total variation"
    decisive = (*Head.decisive, *"read quantile score numbers nearest means_within log_scales_within".split())

    @property
    def uniforms(self) -> int:  # type: ignore[override]  # read only, as all of a head is
        return 2 * self.colours if self.per_colour else 1 + self.colours

    # -- of one component; x, means and log_scales broadcast

    @abstractmethod
    def quantile(self, v: Tensor, mean: Tensor, log_scale: Tensor, temperature: float) -> Tensor:
        """The number that the uniform v draws."""

    @abstractmethod
    def score(self, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """ln of the probability or the density of x."""

    @abstractmethod
    def outside(self, v: Tensor, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        """How far v lies from the uniforms that draw x."""

    @abstractmethod
    def numbers(self, values: Tensor) -> Tensor:
        """Values as they are drawn -> float64, in the unit of the means."""

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """The inverse of ``numbers``, to the nearest value."""

    # -- of the mixture

    def read(self, parameters: Tensor) -> Components:
        """parameters: [..., P]."""
        count = self.components
        each = parameters[..., count:].double().unflatten(-1, (self.colours, -1, count))
        pairs = self.colours * (self.colours - 1) // 2
        return Components(
            parameters[..., :count].double(),
            each[..., 0, :].clamp(*self.means_within),
            each[..., 1, :].clamp(*self.log_scales_within),
            each[..., 2:, :].flatten(-3, -2)[..., :pairs, :].tanh(),
        )

    def draw(
        self, parameters: Tensor, noise: Tensor, options: SamplingOptions, values: Tensor, known: Tensor
    ) -> Tensor:
        """Known values, which come first, tell how likely each component is."""
        found, given = self.read(parameters), self.numbers(values)
        (u, v), logits = self._uniforms(noise), found.logits
        if not self.per_colour and bool(known.any()):
            scores = self.score(given[..., None], found.means_given(given), found.log_scales)
            logits = logits + scores.where(known[..., None], 0).sum(-2)
        k = drawing.draw(logits[..., None, :], u, options).expand(v.shape)
        chosen, drawn, x = found.only(k), [], given.clone()
        for colour in range(self.colours):
            mean = chosen.means_given(x)[..., colour, 0]
            log_scale = chosen.log_scales[..., colour, 0].clamp_max(WIDEST_DRAWN)
            drawn.append(self.nearest(self.quantile(v[..., colour], mean, log_scale, options.temperature)))
            x[..., colour] = given[..., colour].where(known[..., colour], self.numbers(drawn[-1]))
        return torch.stack(drawn, -1)

    def _uniforms(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """noise: [..., uniforms] -> those for components [..., 1] or [..., c], and those for values [..., c]."""
        if not self.per_colour:
            return noise[..., :1], noise[..., 1:]
        components, values = noise.unflatten(-1, (-1, 2)).unbind(-1)
        return components, values

    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        found, x = self.read(parameters), self.numbers(values)
        scores = self.score(x[..., None], found.means_given(x), found.log_scales)
        weights = found.logits.log_softmax(-1)[..., None, :]
        if self.per_colour:
            return (weights + scores).logsumexp(-1)
        together = (weights + scores.cumsum(-2)).logsumexp(-1)  # of a colour and those before it
        return torch.cat([together[..., :1], together.diff(dim=-1)], -1)

    def distance(self, one: Tensor, other: Tensor, channels: int) -> Tensor:
        """The total variation of the weights or, if it is larger, of a component's means in
        units of the smaller scale, of its logarithms of scales, and of its coefficients in
        those units, times the component's weight. To a small factor, it bounds the mixtures' own."""
        a, b = self.read(one), self.read(other)
        p, q = a.logits.softmax(-1), b.logits.softmax(-1)
        units = torch.minimum(a.log_scales, b.log_scales).exp()
        of_pairs = units[..., a.colours_of_pairs, :]
        moved = [
            (a.means - b.means).abs() / units,
            (a.log_scales - b.log_scales).abs(),
            (a.coefficients - b.coefficients).abs() / of_pairs,
        ]
        largest = (torch.cat(moved, -2).amax(-2) * torch.maximum(p, q)).amax(-1)
        return torch.maximum(largest, (p - q).abs().sum(-1) / 2)

    def hot(self, parameters: Tensor) -> Tensor | None:
        logits, rest = parameters[..., : self.components], parameters[..., self.components :]
        return torch.cat([logits / HOT, rest], -1)

    def excess(self, parameters: Tensor, values: Tensor, noise: Tensor) -> Tensor:
        """By the component for which it is the smallest, as any may have been chosen."""
        found, x, (u, v) = self.read(parameters), self.numbers(values), self._uniforms(noise.double())
        weights = found.logits.softmax(-1)[..., None, :]
        upper = weights.cumsum(-1)
        lower, upper = upper - weights, upper.clone()
        upper[..., -1].clamp_(min=1)  # rounding aside, it ends at 1
        chosen = torch.maximum(lower - u[..., None], u[..., None] - upper).clamp_min(0)
        drawn = self.outside(v[..., None], x[..., None], found.means_given(x), found.log_scales)
        both = torch.maximum(chosen, drawn)  # [..., c, K]
        if self.per_colour:
            return both.amin(-1)
        least = both.amax(-2, keepdim=True).argmin(-1, keepdim=True)
        return both.gather(-1, least.expand(*both.shape[:-1], 1))[..., 0]


def by_axes(output: Tensor, axes: str, sizes: dict[str, int]) -> Tensor:
    """Output channels in the order that ``axes`` tells, slowest first, such as "c|p|k":
    [N, channels, H, W] -> [N, c, p, k, H, W]. sizes: of each axis."""
    order = axes.split("|")
    apart = output.unflatten(1, [sizes[axis] for axis in order])
    return apart.permute(0, *(1 + order.index(axis) for axis in "cpk"), 4, 5)
