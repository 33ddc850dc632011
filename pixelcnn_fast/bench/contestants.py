"""The contestants of a comparison: samplers that draw the same workload and keep what they drew."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pixelcnn_fast.bench.checks import Check, Oracle, cdf_excess, rounding
from pixelcnn_fast.bench.workload import Workload
from pixelcnn_fast.native import required
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import Sampler

NAIVE: RuntimeName = "reference"
LABELS = {
    NAIVE: "naive: a full forward per pixel",
    "eager": "cached: PyTorch, layer by layer",
    "cpu": "fast: compiled",
    "cpu-bf16": "fast: compiled, bf16 weights",
}


@dataclass
class Result:
    """One contestant's seconds for the whole batch, one per round, and the check of all that it drew.

    timed: how many of the image's ``pixels`` were actually drawn; if not all, the seconds are scaled up.
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


class Drawn(NamedTuple):
    """images: uint8 [n, C, H, W]; where: bool [H, W], the pixels that the contestant drew itself."""

    images: Tensor
    where: Tensor


class WholeImages:
    """Draws every pixel."""

    def __init__(
        self, name: str, sampler: Sampler, work: Workload, progress: bool = False, exact: Sampler | None = None
    ) -> None:
        """exact: a sampler with the model's own weights, for a contestant that rounds them."""
        self.name, self._sampler, self._work, self._exact = name, sampler, work, exact
        self._progress = progress and name == NAIVE  # the one that takes long
        self._where = torch.ones(work.shape[1:], dtype=torch.bool)
        self._drawn: list[Drawn] = []
        self.result = Result(name, work.images, work.pixels, timed=work.pixels)

    def draw(self) -> Tensor:
        return self._sampler.sample(
            self._work.images,
            self._work.labels,
            noise=self._work.noise,
            batch_size=self._work.images,
            runtime=cast(RuntimeName, self.name.removesuffix("-bf16")),
            progress=self._progress,
        )

    def run(self, round: int) -> None:
        start = time.perf_counter()
        images = self.draw()
        self.result.seconds.append(time.perf_counter() - start)
        _remember(self._drawn, Drawn(images, self._where))

    def check(self, common: Tensor, oracle: Oracle) -> Check:
        """common: the images that all contestants are expected to draw."""
        if self._exact is None:
            return _check(self._drawn, common, oracle)
        by_model = _check(self._drawn, common, oracle)
        changed = rounding(self._exact.program.weights, self._sampler.program.weights)
        if required().multiplies_bf16():
            limit = max(oracle.bf16_limit(images) for images, _ in self._drawn)
            return replace(by_model, rounding=changed, limit=limit)
        own = []
        for images, _ in self._drawn:  # the same rounded weights in plain PyTorch, teacher-forced
            logits = self._sampler.logits(images, self._work.labels, runtime="eager")
            own.append(cdf_excess(logits, images, self._work.noise))
        return Check(by_model.differing, by_model.drawn, _largest(own), changed, by_model.excess)


class SomePixels:
    """The naive sampler on some pixels of each round, spread over the image; the other pixels are given."""

    name = NAIVE

    def __init__(self, sampler: Sampler, work: Workload, given: Tensor, pixels: int, rounds: int) -> None:
        """given: uint8 [n, C, H, W]; pixels: how many to draw in all rounds together, at least one in each."""
        self._sampler, self._work, self._given = sampler, work, given
        pixels = min(max(pixels, rounds), work.pixels)
        chosen = torch.arange(pixels) * work.pixels // pixels
        self._rounds = [self._mask(chosen[index::rounds]) for index in range(rounds)]
        self._drawn: list[Drawn] = []
        self.result = Result(NAIVE, work.images, work.pixels, timed=pixels)
        self._draw(self._mask(chosen[:1]))  # warm-up
        self._overhead = min(
            self._draw(self._mask(chosen[:0]))[0] for _ in range(2)
        )  # the time to pass over given pixels

    def run(self, round: int) -> None:
        where = self._rounds[round]
        seconds, images = self._draw(where)
        self.result.seconds.append((seconds - self._overhead) * self._work.pixels / int(where.sum()))
        _remember(self._drawn, Drawn(images, where))

    def check(self, common: Tensor, oracle: Oracle) -> Check:
        return _check(self._drawn, common, oracle)

    def _draw(self, where: Tensor) -> tuple[float, Tensor]:
        start = time.perf_counter()
        images = self._sampler.complete(
            self._given,
            ~where,
            self._work.labels,
            noise=self._work.noise,
            batch_size=self._work.images,
            runtime=NAIVE,
        )
        return time.perf_counter() - start, images

    def _mask(self, chosen: Tensor) -> Tensor:
        where = torch.zeros(self._work.pixels, dtype=torch.bool)
        where[chosen] = True
        return where.view(self._work.shape[1:])


def _remember(drawn: list[Drawn], new: Drawn) -> None:
    """Rounds that drew the same images are kept as one."""
    for index, old in enumerate(drawn):
        if torch.equal(old.images, new.images):
            drawn[index] = Drawn(old.images, old.where | new.where)
            return
    drawn.append(new)


def _check(drawn: list[Drawn], common: Tensor, oracle: Oracle) -> Check:
    differing = sum(int((images != common)[..., where].sum()) for images, where in drawn)
    count = sum(images[..., where].numel() for images, where in drawn)
    return Check(differing, count, _largest([oracle.excess(images)[..., where] for images, where in drawn]))


def _largest(excesses: list[Tensor]) -> float:
    return float(torch.cat([excess.flatten() for excess in excesses]).max())  # NaN stays NaN
