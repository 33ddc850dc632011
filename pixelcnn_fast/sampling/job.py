"""What a runtime is asked to do with one batch, and the drawing that the Python runtimes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pixelcnn_fast.sampling.heads import check_finite, draw_categorical


@dataclass
class Job:
    """One batch of n images to sample, complete or teacher-force.

    levels: int32 [n, C, H, W], known levels in, all levels out; known: bool [n, C, H, W] or None (none known);
    noise: float64 [n, C, H, W] in [0, 1); labels: [n] or None; temperature >= 0;
    logits: [n, C, H, W, L] to fill, or None; on_row(y) is called before row y, and stops the run by raising.
    """

    levels: Tensor
    known: Tensor | None
    noise: Tensor
    labels: Tensor | None
    temperature: float
    logits: Tensor | None
    on_row: Callable[[int], None]

    def wants(self, y: int, x: int) -> bool:
        """Whether the logits of pixel (y, x) are needed at all."""
        return self.logits is not None or self.known is None or not bool(self.known[:, :, y, x].all())

    def settle(self, y: int, x: int, logits: Tensor) -> None:
        """Puts levels at pixel (y, x), from logits [n, C, L]: the known ones, else drawn."""
        if self.logits is not None:
            self.logits[:, :, y, x] = logits
        here = self.levels[:, :, y, x]
        known = None if self.known is None else self.known[:, :, y, x]
        if known is None or not known.all():
            check_finite(logits if known is None else logits.masked_fill(known[..., None], 0), y, x)
            drawn = draw_categorical(logits, self.noise[:, :, y, x], self.temperature).to(here.dtype)
            here.copy_(drawn if known is None else drawn.where(~known, here))


class Runtime(Protocol):
    """Executes jobs. All runtimes give the same images for the same noise, up to rounding of the logits."""

    def run(self, job: Job) -> None: ...
