"""Whether images are those that a model gives for their noise, in whatever precision they were drawn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelcnn_fast.bench.checks import LIMIT, cdf_excess
from pixelcnn_fast.runtimes import Precision

CHUNK_BYTES = 256 << 20  # of logits in float64: 6 MB for an image of 3x32x32 with 256 levels
# What plain torch moves in these dtypes, drawing in a precision may move, too.
PLAIN: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Judged:
    """excess: the largest distance, in cumulative probability, of a noise value from the interval of the level drawn
    with it, given the image so far, by the model in float64; limit: how large it may be."""

    excess: float
    limit: float

    @property
    def is_right(self) -> bool:
        return self.excess <= self.limit  # NaN is not


@torch.no_grad()
def judged(
    model: nn.Module, images: Tensor, noise: Tensor, labels: Tensor | None = None, precision: Precision = "same"
) -> Judged:
    """model: gives logits [n, C, H, W, L]; images: levels [n, C, H, W] drawn with noise u [n, C, H, W].

    The limit is what float32 may move, and for another precision also twice what plain torch moves a probability in
    such a dtype. No error spreads, since each sub-pixel is judged by the image so far.
    """
    exact = copy.deepcopy(model).double().eval()
    plain = copy.deepcopy(model).to(PLAIN[precision]).eval() if precision != "same" else None
    device = next(model.parameters()).device
    excess, moved = 0.0, 0.0
    for part in _parts(images):
        given = [x[part].to(device) for x in (images, labels) if x is not None]
        logits = exact(*given)
        excess = largest(excess, cdf_excess(logits, given[0], noise[part].to(device)))
        if plain is not None:
            difference = plain(*given).double().softmax(-1) - logits.softmax(-1)
            moved = largest(moved, difference.cumsum(-1).abs())
    return Judged(excess, LIMIT + 2 * moved)


def largest(before: float, values: Tensor) -> float:
    found = float(values.max())
    return before if found <= before else found  # so that NaN stays


def _parts(images: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (8 * 256 * images[0].numel()))
    for start in range(0, len(images), size):
        yield slice(start, start + size)
