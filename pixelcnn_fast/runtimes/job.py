"""What a runtime is asked to do with one batch, and the drawing that the Python runtimes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pixelcnn_fast.heads.drawing import check_finite, draw
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.program.conditions import Given


@dataclass
class Job:
    """One batch of n images to sample, complete or teacher-force.

    levels: int32 [n, C, H, W], known levels in, all levels out; known: bool [n, C, H, W] or None (none known);
    noise: float64 [n, C, H, W] in [0, 1); given: of n images; logits: [n, C, H, W, L] to fill, or None;
    log_probability: float64 [n, C, H, W], zeros, to fill where levels are drawn, or None; on_row(y) is called before
    row y, and stops the run by raising.
    """

    levels: Tensor
    known: Tensor | None
    noise: Tensor
    given: Given
    options: SamplingOptions
    logits: Tensor | None
    log_probability: Tensor | None
    on_row: Callable[[int], None]

    def wants(self, y: int, x: int, channels: slice) -> bool:
        """Whether the logits of these image channels of pixel (y, x) are needed at all."""
        return self.logits is not None or self.known is None or not bool(self.known[:, channels, y, x].all())

    def settle(self, y: int, x: int, channels: slice, logits: Tensor) -> None:
        """Puts levels at these image channels of pixel (y, x), from logits [n, c, L]: the known ones, else drawn."""
        logits = logits.to(self.levels.device)
        if self.logits is not None:
            self.logits[:, channels, y, x] = logits
        here = self.levels[:, channels, y, x]
        known = None if self.known is None else self.known[:, channels, y, x]
        if known is None or not known.all():
            check_finite(
                logits if known is None else logits.masked_fill(known[..., None], 0), y, x, channels.start
            )
            drawn = draw(logits, self.noise[:, channels, y, x], self.options).to(here)
            here.copy_(drawn if known is None else drawn.where(~known, here))
            if self.log_probability is not None:
                of_levels = logits.double().log_softmax(-1).gather(-1, here.long()[..., None])[..., 0]
                self.log_probability[:, channels, y, x] = (
                    of_levels if known is None else of_levels.masked_fill(known, 0)
                )


class Runtime(Protocol):
    """Executes jobs. All runtimes give the same images for the same noise, up to rounding of the logits."""

    def run(self, job: Job) -> None: ...
