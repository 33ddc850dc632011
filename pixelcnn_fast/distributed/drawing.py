"""How a job draws the images of given numbers, which is the same on every process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.call import fields_among
from pixelcnn_fast.check.perturbation import TOLERANCE
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.program.conditions import Condition, Conditioning, OneOrMore, like, named
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import Sampler

# Bytes of noise and log-probabilities that a process holds, however large its shards.
WORKSPACE = 64 << 20
# The share by which the probe may differ, however few bits it is computed in.
MOST_WITHIN = 0.05
TRIED = 100  # images for which the functions of two runs are compared, spread evenly
PerImage: TypeAlias = Tensor | Callable[[Tensor], Tensor]  # the second: of numbered images
Conditions: TypeAlias = OneOrMore[PerImage] | Callable[[Tensor], Condition]


def of_images(values: PerImage | None, images: range) -> Tensor | None:
    if values is None:
        return None
    if callable(values):
        return torch.as_tensor(values(_numbers(images)))
    return torch.as_tensor(values[images.start : images.stop : images.step])


def conditions_of(values: Conditions | None, images: range) -> Any:
    """As ``of_images``, of one condition or several."""
    if callable(values):
        found = values(_numbers(images))
        return like(found, map(torch.as_tensor, named(found).values()))
    return like(values, [of_images(each, images) for each in named(values).values()])


def _numbers(images: range) -> Tensor:
    return torch.arange(images.start, images.stop, images.step)


def told_apart(values: Any, n: int) -> Any:
    """SHA-256 of the values of n images, or of what a function gives for some; of several by name."""
    if callable(values):
        first, spread = range(min(n, TRIED)), range(0, n, math.ceil(n / TRIED) or 1)
        return fingerprint(
            *(x for some in (first, spread) for x in named(conditions_of(values, some)).values())
        )
    if isinstance(values, (tuple, dict)):
        return {str(name): told_apart(each, n) for name, each in named(values).items()}
    if values is None:
        return None
    found = torch.as_tensor(values)
    return fingerprint(found if found.is_floating_point() else found.long())


class DrawingArguments(OptionArguments, total=False):
    """What is handed on to ``Sampler.sample``, for type checkers."""

    batch_size: int | None
    runtime: RuntimeName


@dataclass(frozen=True)
class Drawing:
    """What a job draws. For each image, that depends on its number alone."""

    sampler: Sampler
    seed: int
    labels: PerImage | None
    condition: Conditions | None
    temperature: float
    arguments: DrawingArguments

    def images(self, images: range, check: Callable[[], None]) -> dict[str, np.ndarray]:
        """Calls ``check`` now and then -> the arrays of these images' file."""
        shape = self.sampler.shape
        each = 8 * (math.prod(self.sampler.noise_shape) + math.prod(shape))
        at_once = max(self.arguments.get("batch_size") or 1, WORKSPACE // each)
        parts = []
        for start in range(0, len(images), at_once):
            check()
            some = images[start : start + at_once]
            try:
                parts.append(self._arrays(some, self._given(some)))
            except NonFiniteLogits as error:
                raise error.moved(some.start) from None
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def settings(self, n: int) -> dict[str, Any]:
        """All that decides n images. Raises ValueError for arguments that won't do."""
        conditions = named(self.condition).items()
        given = [(f"condition{'' if name is None else f' {name!r}'}", x) for name, x in conditions]
        for name, values in (("labels", self.labels), *given):
            if values is not None and not callable(values) and len(values) != n:
                raise ValueError(
                    f"{name}: {len(values)} are given, expected {n}, or a function of images' numbers"
                )
        options = fields_among(SamplingOptions, self.arguments, temperature=self.temperature)
        probe = self.sampler.probe()
        within = min(MOST_WITHIN, 10 * TOLERANCE[self.sampler.dtype])  # as far as processors may differ
        return {
            "image_shape": list(self.sampler.shape),
            "dtype": str(self.no_images["images"].dtype),
            "seed": int(self.seed),
            **asdict(options),
            "labels": told_apart(self.labels, n),
            "condition": told_apart(self.condition, n),
            "model": self.sampler.fingerprint(),
            "probe": None if probe is None else {"parameters": probe, "within": within},
        }

    @cached_property
    def no_images(self) -> dict[str, np.ndarray]:
        """The arrays that a file would hold of no images."""
        given = self._given(range(1)).part(slice(0))
        return {name: x.numpy() for name, x in self._arrays(range(0), given).items()}

    def _given(self, images: range) -> Conditioning:
        return Conditioning(of_images(self.labels, images), conditions_of(self.condition, images))

    def _arrays(self, images: range, given: Conditioning) -> dict[str, Tensor]:
        is_scored = self.sampler.head.unscored is None
        drawn = self.sampler.sample(
            len(images),
            given.labels,
            self.temperature,
            noise=noise_of(self.seed, images, self.sampler.noise_shape),
            condition=given.condition,
            log_probability=is_scored,
            **self.arguments,
        )
        found = dict(zip(("images", "log_probabilities"), drawn if is_scored else (drawn,), strict=False))
        return found if given.labels is None else {**found, "labels": given.labels.long().cpu()}
