"""How a job draws the images of given numbers, which is the same on every process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.check.perturbation import TOLERANCE
from pixelcnn_fast.distributed.per_image import PerImage, of_images, told_apart
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import Sampler

# Bytes of noise and log-probabilities that a process holds, whatever the size of its shards.
WORKSPACE = 64 << 20
MOST_WITHIN = 0.05  # share by which parameters of the probe may differ, however few bits they are computed in


class DrawingArguments(OptionArguments, total=False):
    """What is handed on to ``Sampler.sample``, as type checkers read it."""

    batch_size: int | None
    runtime: RuntimeName


@dataclass(frozen=True)
class Drawing:
    """What decides the images of a job, as the arguments of ``sample``. What is drawn for an image depends on its
    number alone."""

    sampler: Sampler
    seed: int
    labels: PerImage | None
    condition: PerImage | None
    temperature: float
    arguments: DrawingArguments

    def images(self, images: range, check: Callable[[], None]) -> dict[str, np.ndarray]:
        """Draws the images of these numbers, calling ``check`` now and then -> the arrays that a file holds of them."""
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
        """All that decides n images, for the manifest.

        Raises ValueError for labels or conditions that are too many or too few, and whatever drawing raises for
        arguments that it refuses.
        """
        for name, values in (("labels", self.labels), ("condition", self.condition)):
            if values is not None and not callable(values) and len(values) != n:
                raise ValueError(
                    f"{name}: {len(values)} are given, expected {n}, or a function of images' numbers"
                )
        names = {field.name for field in fields(SamplingOptions)}
        given = {name: value for name, value in self.arguments.items() if name in names}
        options = SamplingOptions(temperature=self.temperature, **given)  # type: ignore[arg-type]  # of a TypedDict
        return {
            "image_shape": list(self.sampler.shape),
            "dtype": str(self.no_images["images"].dtype),
            "seed": int(self.seed),
            **asdict(options),
            "labels": told_apart(self.labels, n),
            "condition": told_apart(self.condition, n),
            "model": self.sampler.fingerprint(),
            "probe": self._probe(),
        }

    def _probe(self) -> dict[str, Any] | None:
        """Some parameters that the model gives for an image, and the share within which processors may differ; None
        for a sampler that has lost its module."""
        found = self.sampler.probe()
        within = min(MOST_WITHIN, 10 * TOLERANCE[self.sampler.dtype])
        return None if found is None else {"parameters": found, "within": within}

    @cached_property
    def no_images(self) -> dict[str, np.ndarray]:
        """The arrays that a file would hold of no images."""
        labels, condition = (None if values is None else values[:0] for values in self._given(range(1)))
        return {name: x.numpy() for name, x in self._arrays(range(0), labels, condition).items()}

    def _given(self, images: range) -> tuple[Tensor | None, Tensor | None]:
        return of_images(self.labels, images), of_images(self.condition, images)

    def _arrays(self, images: range, labels: Tensor | None, condition: Tensor | None) -> dict[str, Tensor]:
        values, log_probabilities = self.sampler.sample(
            len(images),
            labels,
            self.temperature,
            noise=noise_of(self.seed, images, self.sampler.noise_shape),
            condition=condition,
            log_probability=True,
            **self.arguments,
        )
        found = {"images": values, "log_probabilities": log_probabilities}
        return found if labels is None else {**found, "labels": labels.long().cpu()}
