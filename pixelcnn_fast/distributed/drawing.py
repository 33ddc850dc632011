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
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import Sampler

# Bytes of noise and log-probabilities that a process holds, however large its shards.
WORKSPACE = 64 << 20
# The share by which the probe may differ, however few bits it is computed in.
MOST_WITHIN = 0.05
TRIED = 100  # images for which the functions of two runs are compared, spread evenly
PerImage: TypeAlias = Tensor | Callable[[Tensor], Tensor]  # the second: of numbered images


def of_images(values: PerImage | None, images: range) -> Tensor | None:
    if values is None:
        return None
    if callable(values):
        return torch.as_tensor(values(torch.arange(images.start, images.stop, images.step)))
    return torch.as_tensor(values[images.start : images.stop : images.step])


def told_apart(values: PerImage | None, n: int) -> str | None:
    """SHA-256 of the values of n images, or of what a function gives for some."""
    if values is None:
        return None
    if not callable(values):
        found = torch.as_tensor(values)
        return fingerprint(found if found.is_floating_point() else found.long())
    first, spread = range(min(n, TRIED)), range(0, n, math.ceil(n / TRIED) or 1)
    return fingerprint(of_images(values, first), of_images(values, spread))


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
    condition: PerImage | None
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
                parts.append(self._arrays(some, *self._given(some)))
            except NonFiniteLogits as error:
                raise error.moved(some.start) from None
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def settings(self, n: int) -> dict[str, Any]:
        """All that decides n images. Raises ValueError for arguments that won't do."""
        for name, values in (("labels", self.labels), ("condition", self.condition)):
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
        labels, condition = (None if values is None else values[:0] for values in self._given(range(1)))
        return {name: x.numpy() for name, x in self._arrays(range(0), labels, condition).items()}

    def _given(self, images: range) -> tuple[Tensor | None, Tensor | None]:
        return of_images(self.labels, images), of_images(self.condition, images)

    def _arrays(self, images: range, labels: Tensor | None, condition: Tensor | None) -> dict[str, Tensor]:
        is_scored = self.sampler.head.unscored is None
        drawn = self.sampler.sample(
            len(images),
            labels,
            self.temperature,
            noise=noise_of(self.seed, images, self.sampler.noise_shape),
            condition=condition,
            log_probability=is_scored,
            **self.arguments,
        )
        found = dict(zip(("images", "log_probabilities"), drawn if is_scored else (drawn,), strict=False))
        return found if labels is None else {**found, "labels": labels.long().cpu()}
