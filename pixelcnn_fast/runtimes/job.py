"""What a runtime is asked to do, and how the Python runtimes draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.heads import Head, SamplingOptions
from pixelcnn_fast.program.conditions import Conditioning


@dataclass(kw_only=True)
class Job:
    """Images to sample, complete or teacher-force: a whole call, or one batch of it (``part``).

    A pixel has D distributions of P parameters each, and U = D * head.uniforms numbers of
    noise. values: [n, C, H, W] in the head's dtype, to fill where not known; known: bool
    [n, C, H, W]; noise: float64 [n, U, H, W] in [0, 1); parameters: [n, D, H, W, P] to
    fill; log_probability: float64 [n, C, H, W], zeros, to fill where values are drawn;
    on_row(y) is called before row y, and stops the run by raising. For ``run``, all lie on
    the host, or with the model; ``run_each`` moves the noise.
    """

    values: Tensor
    noise: Tensor
    given: Conditioning = Conditioning()
    options: SamplingOptions = SamplingOptions()
    known: Tensor | None = None
    parameters: Tensor | None = None
    log_probability: Tensor | None = None
    on_row: Callable[[int], None] = lambda y: None

    @property
    def results(self) -> list[Tensor]:
        """The tensors to fill."""
        return [x for x in (self.values, self.parameters, self.log_probability) if x is not None]

    def part(self, images: slice, on_row: Callable[[int], None]) -> Job:
        """The job of some of its images."""
        tensors: dict[str, Any]
        tensors = {name: x[images] for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, given=self.given.part(images), on_row=on_row, **tensors)

    def wants(self, y: int, x: int, draw: int, draws: int) -> bool:
        """Whether the parameters of this draw at pixel (y, x) are needed."""
        if self.parameters is not None or self.known is None:
            return True
        return not bool(self.known[:, _part(self.known, draw, draws), y, x].all())

    def draw_pixel(self, y: int, x: int, draw: int, draws: int, parameters: Tensor, head: Head) -> None:
        """Sets what a draw gives at pixel (y, x), known or drawn. parameters: [n, d, P]."""
        parameters = parameters.to(self.values.device)
        if self.parameters is not None:
            self.parameters[:, _part(self.parameters, draw, draws), y, x] = parameters
        channels = _part(self.values, draw, draws)
        here = self.values[:, channels, y, x]
        by_distribution = here.unflatten(1, (parameters.shape[1], -1))
        each = by_distribution.shape[2]
        known = torch.zeros_like(by_distribution, dtype=torch.bool)
        if self.known is not None:
            known = self.known[:, channels, y, x].view(known.shape)
            if known.all():
                return
        drawn_from = parameters.masked_fill(known.all(-1, keepdim=True), 0)
        head.check_finite(drawn_from, y, x, channels.start, each)
        noise = self.noise[:, _part(self.noise, draw, draws), y, x].unflatten(1, (parameters.shape[1], -1))
        drawn = head.draw(parameters, noise, self.options, by_distribution, known)
        _check_shape(head, "draw", drawn, by_distribution)
        values = drawn.to(here).where(~known, by_distribution)
        here.copy_(values.flatten(1))
        if self.log_probability is not None:
            scored = head.log_probability(parameters, values)
            _check_shape(head, "log_probability", scored, values)
            self.log_probability[:, channels, y, x] = scored.masked_fill(known, 0).flatten(1)


def _check_shape(head: Head, method: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise ValueError(
            f"{head}.{method} gave {list(found.shape)}, expected a number for each value: {list(expected.shape)}"
        )


def _part(of: Tensor, draw: int, draws: int) -> slice:
    """A draw's share of axis 1."""
    each = of.shape[1] // draws
    return slice(draw * each, (draw + 1) * each)


class Runtime(ABC):
    """Executes jobs. All runtimes give the same images for the same noise, up to rounding."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Fills what the job wants. Raises NonFiniteLogits, and what ``on_row`` raises."""

    def prepare(self, images: int) -> None:  # noqa: B027 - most need nothing
        """Gets ready for batches of so many images. Raises RuntimeUnavailable, saying why."""

    def together(self, images: int) -> int:
        """How many of so many images are best drawn together."""
        return images

    def tune(self, images: int) -> None:  # noqa: B027 - most need nothing
        """Finds out what makes such batches fast; otherwise, the first of them do that."""

    def run_each(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Runs them in order -> each when it is finished. Their noise may be on any device."""
        for job in jobs:
            self.run(replace(job, noise=job.noise.to(job.values.device)))
            yield job
