"""How a job draws its images: the same on every process."""

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

WORKSPACE = (
    64 << 20
)  # bytes of noise and log-probabilities that a process holds, whatever the size of its shards
MOST_WITHIN = 0.05  # of a parameter that was computed in few bits


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
            "dtype": str(self.no_images["images"].dtype),
            "seed": int(self.seed),
            **asdict(options),
            "labels": told_apart(self.labels, n),
            "condition": told_apart(self.condition, n),
            "model": self.sampler.fingerprint(),
            "probe": self._probe(),
        }

    def _probe(self) -> dict[str, Any] | None:
        """Some of what the model gives for an image, and within what share of them processors may differ."""
        found = self.sampler.probe()
        dtype = self.sampler.dtype
        within = min(MOST_WITHIN, 10 * TOLERANCE[dtype])
        return None if found is None else {"parameters": found, "within": within}

    @cached_property
    def no_images(self) -> dict[str, np.ndarray]:
        """What a file would hold of no images."""
        labels, condition = (None if values is None else values[:0] for values in self._given(range(1)))
        return {name: x.numpy() for name, x in self._arrays(range(0), labels, condition).items()}

    def _at_once(self, images: range) -> dict[str, Tensor]:
        labels, condition = self._given(images)
        try:
            return self._arrays(images, labels, condition)
        except NonFiniteLogits as error:
            raise error.moved(images.start) from None

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
