"""Checks, by the model's own probabilities, that images are what it gives for the noise."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelcnn_fast.bench.workload import Workload
from pixelcnn_fast.heads import Head, SamplingOptions
from pixelcnn_fast.program.conditions import Conditioning
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

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


def noise_excess(head: Head, parameters: Tensor, values: Tensor, noise: Tensor) -> Tensor:
    """How far noise lies outside of what draws these values, by ``Head.excess``.

    parameters: [N, D, H, W, P]; values: [N, C, H, W]; noise: [N, D * uniforms, H, W] -> float64 [N, C, H, W].
    """
    found = head.excess(parameters, _apart(values, parameters), _apart(noise, parameters))
    return found.movedim(-1, 2).flatten(1, 2)


def _apart(x: Tensor, parameters: Tensor) -> Tensor:
    """[N, D * each, H, W] -> [N, D, H, W, each]."""
    return x.unflatten(1, (parameters.shape[1], -1)).movedim(2, -1)


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
        self._model = self._wrapped(copy.deepcopy(work.model).double())
        self._seen: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def excess(self, images: Tensor) -> Tensor:
        """Images that were drawn with the workload's noise -> how far it lies outside, float64 [n, C, H, W]."""
        for seen, excess in self._seen:
            if torch.equal(seen, images):
                return excess
        values = self._model.checked_images(images).split(CHUNK)
        parts = zip(self._parameters(self._model, images), values, self._work.noise.split(CHUNK), strict=True)
        self._seen.append((images, torch.cat([noise_excess(self._model.head, *part) for part in parts])))
        return self._seen[-1][1]

    @torch.no_grad()
    def bf16_limit(self, images: Tensor) -> float:
        """Twice what bf16 in plain PyTorch moves a cumulative probability or, where a head
        does not read logits of levels, how far outside noise lies if it draws by that."""
        plain, head = self._wrapped(self._work.plain_model().bfloat16()), self._model.head
        models = (self._parameters(model, images) for model in (plain, self._model))
        moved = []
        for rounded, exact, noise in zip(*models, self._work.noise.split(CHUNK), strict=True):
            if head.of_logits:
                moved.append((rounded.double().softmax(-1) - exact.softmax(-1)).cumsum(-1).abs().max())
                continue
            u = _apart(noise, exact)
            none = torch.zeros(*u.shape[:-1], images.shape[1] // u.shape[1], dtype=head.value_dtype)
            drawn = head.draw(rounded, u, SamplingOptions(), none, none.bool())
            moved.append(head.excess(exact, drawn, u).max())
        return LIMIT + 2 * float(torch.stack(moved).max())

    def _wrapped(self, model: nn.Module) -> WrappedModel:
        work = self._work
        return WrappedModel(model.eval(), work.shape, **work.arguments)

    def _parameters(self, model: WrappedModel, images: Tensor) -> Iterator[Tensor]:
        """Of each few images, [n, D, H, W, P]."""
        values, given = model.checked_images(images), Conditioning(self._work.labels)
        for start in range(0, len(values), CHUNK):
            part = slice(start, start + CHUNK)
            yield model.distribution_parameters(values[part], given.part(part))
