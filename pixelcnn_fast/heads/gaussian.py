"""``GaussianMixture`` and ``DiscretizedGaussian``: heads of real numbers, which images hold as floats."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from typing_extensions import Self

from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads.base import Head
from pixelcnn_fast.heads.mixture import Mixture, by_axes
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.heads.values import check_whole, checked_reals
from pixelcnn_fast.image_forms import check_choice

LEAST = 2.0**-54  # a uniform of 0 counts as this: the quantile of 0 is infinite


class OfReals(Head):
    """A head of real numbers, in float32, each with a distribution of its own. The model takes
    images with image_form='levels', as they are."""

    value_dtype = torch.float32

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Channels of the output for each of the image's."""

    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> Self:
        expected = [shape[0], self.outputs * shape[1], *shape[2:]]
        if list(output.shape) != expected:
            raise UnknownLayout(
                f"the model's output has shape {list(output.shape)}, but {self} expects {expected}"
            )
        return self

    def examples(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator)

    def checked(self, values: Tensor) -> Tensor:
        return checked_reals(values)

    def as_images(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True, repr=False)
class GaussianMixture(OfReals, Mixture):
    """A mixture of K Gaussians for each channel of an image of real numbers.

    components: K. layout: of the output [N, 3 K C, H, W]: by channel c, parameter p (0 the
    logit of π, 1 the mean μ, 2 the logarithm of the scale s) and component k, slowest first;
    "c|p|k" is channel (3 c + p) K + k. means_within, log_scales_within: what they are
    clipped to, each as (least, greatest).

    The density is Σ_k π_k exp(-z_k² / 2 - s_k) / √(2π) with z = (x - μ) / e^s. Noise: u, which
    chooses the first component with u < π_0 + … + π_k, and v, which gives x = μ + e^s Φ⁻¹(v).
    At temperature T, the logits are divided by T, and e^s is multiplied by it; 0 gives the
    likeliest component's mean. Raises ValueError for another layout, and without components.
    Source: Bishop 1994, "Mixture Density Networks".
    """

    components: int
    layout: str = "c|p|k"
    means_within: tuple[float, float] = (-torch.inf, torch.inf)
    log_scales_within: tuple[float, float] = (-torch.inf, torch.inf)

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, tuple(map("|".join, permutations("cpk"))))
        check_whole("components", self.components, 1)

    @property
    def outputs(self) -> int:
        return 3 * self.components

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        sizes = {"c": channels, "p": 3, "k": self.components}
        return by_axes(output, self.layout, sizes).flatten(2, 3).permute(0, 1, 3, 4, 2)

    def quantile(self, v: Tensor, mean: Tensor, log_scale: Tensor, temperature: float) -> Tensor:
        return mean + log_scale.exp() * (temperature * torch.special.ndtri(v.clamp_min(LEAST)))

    def score(self, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        return -(((x - means) / log_scales.exp()) ** 2) / 2 - log_scales - math.log(2 * math.pi) / 2

    def outside(self, v: Tensor, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        return (torch.special.ndtr((x - means) / log_scales.exp()) - v).abs()

    def numbers(self, values: Tensor) -> Tensor:
        return values.double()

    def nearest(self, x: Tensor) -> Tensor:
        return x.to(self.value_dtype)


@dataclass(frozen=True, repr=False)
class DiscretizedGaussian(OfReals):
    """Real numbers at whole distances from a mean, such as the latents of compression models.

    The output is [N, 2 C, H, W]: the scales σ of all channels, which count as ``least_scale``
    at least, and then their means μ; or, if ``means_first``, the other way round. A value y
    stands for round(y - μ) + μ, which has the probability
    Φ((n + 1/2) / σ) - Φ((n - 1/2) / σ) with n = round(y - μ). Noise: v, which gives
    n = round(σ Φ⁻¹(v)). At temperature T, σ is multiplied by T; 0 gives the mean.
    Raises ValueError unless ``least_scale`` is positive.
    Source: Minnen et al. 2018, "Joint Autoregressive and Hierarchical Priors for Learned
    Image Compression", section 2.
    """

    least_scale: float = 0.11
    means_first: bool = False
    outputs = 2
    distance_name = "bound of the total variation"

    def __post_init__(self) -> None:
        if not self.least_scale > 0:
            raise ValueError(f"least_scale is {self.least_scale}: expected a positive number")

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        """-> [N, C, H, W, 2]: means and scales."""
        first, second = output.split(channels, 1)
        return torch.stack([first, second] if self.means_first else [second, first], -1)

    def _read(self, parameters: Tensor) -> Sequence[Tensor]:
        means, scales = parameters.double().unbind(-1)
        return means, scales.clamp_min(self.least_scale)

    def draw(
        self, parameters: Tensor, noise: Tensor, options: SamplingOptions, values: Tensor, known: Tensor
    ) -> Tensor:
        means, scales = self._read(parameters)
        n = (scales * options.temperature * torch.special.ndtri(noise[..., 0].clamp_min(LEAST))).round()
        return (means + n)[..., None]

    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        """By the tails below -n ± 1/2, where n is not negative, which keep their digits however far out."""
        means, scales = (x[..., None] for x in self._read(parameters))
        n = (values.double() - means).round().abs()
        upper, lower = (torch.special.log_ndtr((half - n) / scales) for half in (0.5, -0.5))
        return upper + (-(lower - upper).exp()).log1p()

    def distance(self, one: Tensor, other: Tensor, channels: int) -> Tensor:
        """How far the mean lies apart, in units of the smaller scale or, if it is larger, how
        far the logarithms of scales do."""
        (a, narrow), (b, wide) = self._read(one), self._read(other)
        return torch.maximum((a - b).abs() / torch.minimum(narrow, wide), (narrow / wide).log().abs())

    def excess(self, parameters: Tensor, values: Tensor, noise: Tensor) -> Tensor:
        means, scales = (x[..., None] for x in self._read(parameters))
        n = (values.double() - means).round()
        lower, upper = (torch.special.ndtr((n + half) / scales) for half in (-0.5, 0.5))
        return torch.maximum(lower - noise, noise - upper).clamp_min(0)
