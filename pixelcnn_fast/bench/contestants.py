"""Samplers that draw the same workload, and keep what they drew to have it checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.bench.checks import Check, Oracle, noise_excess, rounding
from pixelcnn_fast.bench.naive import Apart, Naive
from pixelcnn_fast.bench.workload import Workload
from pixelcnn_fast.native import required
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import Sampler

NAIVE: RuntimeName = "reference"
WARM_UP, WARM_UP_SECONDS = 8, 5.0  # draws at most, and the time after which no other begins
LABELS = {
    NAIVE: "naive: a full forward per pixel",
    "eager": "cached: PyTorch, layer by layer",
    "cpu": "fast: compiled",
    "cpu-bf16": "fast: compiled, bf16 weights",
}


@dataclass
class Result:
    """One contestant's seconds for the whole batch, one per round, and the check of all that it drew.

    timed: how many of the image's ``pixels`` were drawn; if not all, the seconds are scaled up.
    """

    name: str
    images: int
    pixels: int
    timed: int
    seconds: list[float] = field(default_factory=list)
    check: Check | None = None

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def wrong(self) -> bool:
        return self.check is not None and not self.check.ok

    @property
    def extrapolated(self) -> bool:
        return self.timed < self.pixels


class WholeImages:
    """A sampler that draws every pixel."""

    def __init__(
        self, name: str, sampler: Sampler | Naive | Apart, work: Workload, progress: bool = False
    ) -> None:
        self._sampler, self._work = sampler, work
        runtime = name.removesuffix("-bf16")
        self._settings: dict[str, Any] = dict(noise=work.noise, batch_size=work.images, runtime=runtime)
        self._progress = progress
        # images: [n, C, H, W]; where: bool [H, W], the pixels that it drew
        self._drawn: list[tuple[Tensor, Tensor]] = []
        self.result = Result(name, work.images, work.pixels, timed=work.pixels)

    def draw(self) -> Tensor:
        work = self._work
        return self._sampler.sample(work.images, work.labels, progress=self._progress, **self._settings)

    def warm_up(self) -> Tensor:
        """Draws as often as the compiled sampler tries schedules, or as there is time for -> the images."""
        end = time.perf_counter() + WARM_UP_SECONDS
        images = self.draw()
        for _ in range(WARM_UP - 1):
            if time.perf_counter() < end:
                images = self.draw()
        return images

    def run(self, round: int) -> None:
        start = time.perf_counter()
        images = self.draw()
        self.result.seconds.append(time.perf_counter() - start)
        self._remember(images, torch.ones(self._work.shape[1:], dtype=torch.bool))

    def check(self, common: Tensor, oracle: Oracle) -> Check:
        """common: the images that all are expected to draw."""
        differing = sum(int((images != common)[..., where].sum()) for images, where in self._drawn)
        count = sum(images[..., where].numel() for images, where in self._drawn)
        return Check(differing, count, self._largest(oracle.excess))

    def _largest(self, excess: Callable[[Tensor], Tensor]) -> float:
        found = [excess(images)[..., where].flatten() for images, where in self._drawn]
        return float(torch.cat(found).max())  # NaN stays NaN

    def _remember(self, images: Tensor, where: Tensor) -> None:
        for index, (known, drawn) in enumerate(self._drawn):
            if torch.equal(known, images):
                self._drawn[index] = known, drawn | where
                return
        self._drawn.append((images, where))


class Rounded(WholeImages):
    """One that draws with rounded weights. exact: a sampler with the model's own."""

    def __init__(self, name: str, sampler: Sampler, exact: Sampler, work: Workload) -> None:
        super().__init__(name, sampler, work)
        self._rounded, self._exact = sampler, exact

    def check(self, common: Tensor, oracle: Oracle) -> Check:
        by_model = super().check(common, oracle)
        changed = rounding(self._exact.program.weights, self._rounded.program.weights)
        if required().multiplies_bf16():
            limit = max(oracle.bf16_limit(images) for images, _ in self._drawn)
            return replace(by_model, rounding=changed, limit=limit)
        own = self._largest(self._excess_by_own_weights)
        return replace(by_model, excess=own, rounding=changed, model_excess=by_model.excess)

    def _excess_by_own_weights(self, images: Tensor) -> Tensor:
        head = self._rounded.head
        parameters = self._rounded.logits(images, self._work.labels, runtime="eager")
        return noise_excess(head, parameters, head.checked(images), self._work.noise)


class SomePixels(WholeImages):
    """The naive sampler on some pixels of each round, spread over the image.

    given: the other pixels, [n, C, H, W]; pixels: how many in all rounds, at least one in each.
    """

    def __init__(
        self, sampler: Sampler | Naive | Apart, work: Workload, given: Tensor, pixels: int, rounds: int
    ) -> None:
        super().__init__(NAIVE, sampler, work)
        self._given = given
        self.result.timed = pixels = min(max(pixels, rounds), work.pixels)
        chosen = torch.arange(pixels) * work.pixels // pixels
        self._rounds = [self._mask(chosen[index::rounds]) for index in range(rounds)]
        self._one = self._mask(chosen[:1])
        nothing = self._mask(chosen[:0])
        # The time to pass over given pixels.
        self._overhead = min(self._draw(nothing)[0] for _ in range(2))

    def run(self, round: int) -> None:
        where = self._rounds[round]
        # Others have had their turns; an image's pixels are drawn with warm threads and caches.
        self._draw(self._one)
        seconds, images = self._draw(where)
        self.result.seconds.append((seconds - self._overhead) * self._work.pixels / int(where.sum()))
        self._remember(images, where)

    def _draw(self, where: Tensor) -> tuple[float, Tensor]:
        start = time.perf_counter()
        images = self._sampler.complete(self._given, ~where, self._work.labels, **self._settings)
        return time.perf_counter() - start, images

    def _mask(self, chosen: Tensor) -> Tensor:
        where = torch.zeros(self._work.pixels, dtype=torch.bool)
        where[chosen] = True
        return where.view(self._work.shape[1:])
