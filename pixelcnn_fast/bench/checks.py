"""Checks, by the model's own probabilities, that images are what it gives for the noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelcnn_fast.bench.workload import Workload

# Float32 rounding moves a cumulative probability less than this, and a wrong level more.
LIMIT = 1e-4
BF16_ROUNDING = torch.finfo(torch.bfloat16).eps / 2  # of a weight, relative, to nearest
CHUNK = 4  # images per float64 forward: the logits of one 3x32x32 image take 6 MB


@dataclass(frozen=True)
class Check:
    """One contestant's images against the common ones and against probabilities computed separately.

    differing: how many of the ``drawn`` sub-pixels differ from the common images. excess:
    the largest distance of a noise value from the interval of the level drawn with it,
    given the image so far; limit: how large it may be. rounding: the largest relative
    change of a weight, where the contestant rounds them. If it rounds what they are
    multiplied by, too, the excess is by the model in float64, and the limit what bf16 may
    move. Else it is by the rounded weights, and model_excess is by the model's own, which
    nothing bounds.
    """

    differing: int
    drawn: int
    excess: float
    rounding: float | None = None
    model_excess: float | None = None
    limit: float = LIMIT

    @property
    def ok(self) -> bool:  # NaN fails
        return self.excess <= self.limit and (self.rounding is None or self.rounding <= BF16_ROUNDING)

    def __str__(self) -> str:
        """'identical', or how many differ and whether that is right."""
        if not self.ok:
            return "WRONG"
        if self.differing == 0:
            return "identical"
        bf16 = "within rounding to bf16" if self.model_excess is None else "right for rounded weights"
        kind = "within rounding" if self.rounding is None else bf16
        return f"{self.differing} of {self.drawn} sub-pixels differ, all {kind}"

    @property
    def evidence(self) -> str:
        text = f"noise lies at most {self.excess:.1e} outside the drawn levels' intervals (allowed {self.limit:.0e})"
        if self.rounding is None:
            return text
        weights = f"differ from the model's own by at most {self.rounding:.2%} (allowed {BF16_ROUNDING:.2%})"
        if self.model_excess is None:
            return (
                f"{text}, by the model in float64: twice what bf16 in plain PyTorch moves a probability, since bf16 is "
                f"not exact; its bf16 weights {weights}"
            )
        return (
            f"{text} by its bf16 weights, which {weights}; bf16 is not exact: by the model's own weights, the noise "
            f"lies at most {self.model_excess:.1e} outside"
        )


def cdf_excess(logits: Tensor, levels: Tensor, noise: Tensor) -> Tensor:
    """How far u lies outside [cdf_{k-1}, cdf_k) of the level k that was drawn with it; 0 where inside.

    logits: [..., L]; levels: integers [...]; noise: u [...] -> float64 [...], in cumulative probability.
    """
    probability = logits.double().softmax(-1)
    level = levels.long()[..., None]
    upper = probability.cumsum(-1).gather(-1, level)[..., 0]
    lower = upper - probability.gather(-1, level)[..., 0]
    is_last = level[..., 0] == logits.shape[-1] - 1
    upper = torch.where(is_last, upper.clamp_min(1), upper)  # rounding aside, it ends at 1
    return torch.maximum(lower - noise, noise - upper).clamp_min(0)


def rounding(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> float:
    """The largest relative change of a weight; infinite if the weights aren't the same ones."""
    if [x.shape for x in exact] != [x.shape for x in rounded]:
        return math.inf
    pairs = ((a.double(), b.double()) for a, b in zip(exact, rounded, strict=True))
    # Equal ones may be zeros.
    return max(float(((b - a) / a).abs().where(a != b, 0).max()) for a, b in pairs)


class Oracle:
    """The model in float64, with one forward for all conditionals. Remembers images it has seen."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._model = copy.deepcopy(work.model).double().eval()
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def excess(self, images: Tensor) -> Tensor:
        """uint8 [n, C, H, W], drawn with the workload's noise -> their ``cdf_excess``."""
        for seen, excess in self._seen:
            if torch.equal(seen, images):
                return excess
        noise = self._work.noise.split(CHUNK)
        parts = zip(self._logits(self._model, images), images.split(CHUNK), noise, strict=True)
        self._seen.append((images, torch.cat([cdf_excess(*part) for part in parts])))
        return self._seen[-1][1]

    @torch.no_grad()
    def bf16_limit(self, images: Tensor) -> float:
        """Twice what bf16 in plain PyTorch moves a probability."""
        plain = self._work.plain_model().bfloat16()
        pairs = zip(self._logits(plain, images), self._logits(self._model, images), strict=True)
        moved = [(a.double().softmax(-1) - b.softmax(-1)).cumsum(-1).abs().max() for a, b in pairs]
        return LIMIT + 2 * float(torch.stack(moved).max())

    def _logits(self, model: nn.Module, images: Tensor) -> Iterator[Tensor]:
        given = (images,) if self._work.labels is None else (images, self._work.labels)
        return (model(*parts) for parts in zip(*(each.split(CHUNK) for each in given), strict=True))
