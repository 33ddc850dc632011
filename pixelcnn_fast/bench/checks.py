"""Are these images what the model gives for this noise? Decided by the model's own probabilities."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelcnn_fast.bench.workload import Workload

LIMIT = 1e-4  # in cumulative probability: more than float32 rounding moves it, less than a wrong level would
BF16_LIMIT = 0.05  # how far bf16 weights may move it from where the model's own weights put it
CHUNK = 4  # images per float64 forward: the logits of one 3x32x32 image take 6 MB


@dataclass(frozen=True)
class Check:
    """One contestant's images against the common ones and against probabilities computed separately.

    differing: how many of the ``drawn`` sub-pixels differ from the common images.
    excess: the largest distance of a noise value from the interval of the level drawn with it, given the
    image so far, by the weights that the contestant claims to use.
    model_excess: the same by the model's own weights, if the contestant's are rounded.
    """

    differing: int
    drawn: int
    excess: float
    model_excess: float | None = None

    @property
    def ok(self) -> bool:
        return self.excess <= LIMIT and (
            self.model_excess is None or self.model_excess <= BF16_LIMIT
        )  # NaN fails

    def __str__(self) -> str:
        """'identical', or how many differ and whether that is right."""
        if not self.ok:
            return "WRONG"
        if self.differing == 0:
            return "identical"
        kind = "within rounding" if self.model_excess is None else "right for rounded weights"
        return f"{self.differing} of {self.drawn} sub-pixels differ, all {kind}"

    @property
    def evidence(self) -> str:
        text = f"noise lies at most {self.excess:.1e} outside the drawn levels' intervals (allowed {LIMIT:.0e})"
        if self.model_excess is not None:
            text += (
                f" by the bf16 weights, {self.model_excess:.1e} (allowed {BF16_LIMIT:.0e}) by the model's own"
            )
        return text


def cdf_excess(logits: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """How far u lies outside [cdf_{k-1}, cdf_k) of the level k that was drawn with it; 0 where inside.

    logits: [..., L]; levels: integers [...]; noise: u [...] -> float64 [...], in cumulative probability.
    """
    probability = logits.double().softmax(-1)
    level = levels.long()[..., None]
    upper = probability.cumsum(-1).gather(-1, level)[..., 0]
    lower = upper - probability.gather(-1, level)[..., 0]
    upper = upper.where(
        level[..., 0] < logits.shape[-1] - 1, upper.clamp_min(1)
    )  # rounding aside, it ends at 1
    return torch.maximum(lower - noise, noise - upper).clamp_min(0)


class Oracle:
    """The model in float64: one full forward gives every conditional. Remembers images it has seen."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._model = copy.deepcopy(work.model).double().eval()
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def excess(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W], drawn with the workload's noise -> their ``cdf_excess``, [n, C, H, W]."""
        for seen, excess in self._seen:
            if torch.equal(seen, images):
                return excess
        noise, labels = self._work.noise, self._work.labels
        parts = []
        for start in range(0, images.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = self._model(images[part]) if labels is None else self._model(images[part], labels[part])
            parts.append(cdf_excess(logits, images[part], noise[part]))
        self._seen.append((images, torch.cat(parts)))
        return self._seen[-1][1]
