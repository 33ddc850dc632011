"""How a job draws its images: the same on every process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelcnn_fast.distributed.per_image import PerImage, of_images, told_apart
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.perturbation import TOLERANCE
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import Sampler

WORKSPACE = (
    64 << 20
)  # bytes of noise and log-probabilities that a process holds, whatever the size of its shards


class DrawingArguments(OptionArguments, total=False):
    """What is handed on to ``Sampler.sample``, as type checkers read it."""

    batch_size: int | None
    runtime: RuntimeName


@dataclass(frozen=True)
class Drawing:
    """``sample`` explains the fields. What is drawn for an image depends on its number alone."""

    sampler: Sampler
    seed: int
    labels: PerImage | None
    condition: PerImage | None
    temperature: float
    arguments: DrawingArguments

    def images(self, images: range, check: Callable[[], None]) -> dict[str, np.ndarray]:
        """The arrays that a file holds of the images of these numbers. ``check`` is called now and then."""
        shape = self.sampler.shape
        each = 8 * (math.prod(self.sampler.noise_shape) + math.prod(shape))
        at_once = max(self.arguments.get("batch_size") or 1, WORKSPACE // each)
        parts = []
        for start in range(0, len(images), at_once):
            check()
            parts.append(self._at_once(images[start : start + at_once]))
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def check(self, n: int) -> None:
        """Raises ValueError for labels or conditions that are too many or too few."""
        for name, values in (("labels", self.labels), ("condition", self.condition)):
            if values is not None and not callable(values) and len(values) != n:
                raise ValueError(
                    f"{name}: {len(values)} are given, expected {n}, or a function of images' numbers"
                )

    def settings(self, n: int) -> dict[str, Any]:
        """All that decides n images, for the manifest. Raises what drawing does for arguments that it refuses."""
        names = {field.name for field in fields(SamplingOptions)}
        given = {name: value for name, value in self.arguments.items() if name in names}
        options = SamplingOptions(temperature=self.temperature, **given)  # type: ignore[arg-type]  # of a TypedDict
        return {
            "image_shape": list(self.sampler.shape),
            "dtype": str(self._none()[0].numpy().dtype),
            "seed": int(self.seed),
            **asdict(options),
            "labels": told_apart(self.labels, n),
            "condition": told_apart(self.condition, n),
            "model": self.sampler.fingerprint(),
            "probe": self._probe(),
        }

    def _probe(self) -> dict[str, Any] | None:
        """Some of what the model gives for an image, and within what share of the largest processors may differ."""
        found = self.sampler.probe()
        dtype = self.sampler.dtype
        return None if found is None else {"parameters": found, "within": 10 * TOLERANCE[dtype]}

    def _none(self) -> tuple[Tensor, Tensor]:
        """No images, and their log-probabilities."""
        labels, condition = (None if values is None else values[:0] for values in self._given(range(1)))
        return self._sampled(range(0), labels, condition)

    def _at_once(self, images: range) -> dict[str, Tensor]:
        labels, condition = self._given(images)
        try:
            values, log_probabilities = self._sampled(images, labels, condition)
        except NonFiniteLogits as error:
            raise error.moved(images.start) from None
        found = {"images": values, "log_probabilities": log_probabilities}
        return found if labels is None else {**found, "labels": labels.long().cpu()}

    def _given(self, images: range) -> tuple[Tensor | None, Tensor | None]:
        return of_images(self.labels, images), of_images(self.condition, images)

    def _sampled(self, images: range, labels: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.sampler.sample(
            len(images),
            labels,
            self.temperature,
            noise=noise_of(self.seed, images, self.sampler.noise_shape),
            condition=condition,
            log_probability=True,
            **self.arguments,
        )
