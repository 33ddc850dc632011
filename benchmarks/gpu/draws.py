"""Whether images are those that a model gives for their noise, in whatever precision they were drawn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pixelcnn_fast.bench.checks import LIMIT, noise_excess
from pixelcnn_fast.heads import Categorical
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
    model: nn.Module,
    images: Tensor,
    noise: Tensor,
    labels: Tensor | None = None,
    precision: Precision = "same",
) -> Judged:
    """model: gives logits [n, C, H, W, L]; images: levels [n, C, H, W] drawn with noise u [n, C, H, W].

    The limit is what float32 may move, and for another precision also twice what plain torch moves a probability in
    such a dtype. No error spreads, since each sub-pixel is judged by the image so far.
    """
    exact, plain = _in_dtypes(model, precision)
    device = next(model.parameters()).device
    excess, moved = 0.0, 0.0
    for part in _parts(images):
        given = [x[part].to(device) for x in (images, labels) if x is not None]
        logits, u = exact(*given), noise[part].to(device)
        excess = largest(excess, noise_excess(Categorical(logits.shape[-1]), logits, given[0], u))
        if precision != "same":
            difference = plain(*given).double().softmax(-1) - logits.softmax(-1)
            moved = largest(moved, difference.cumsum(-1).abs())
    return Judged(excess, LIMIT + 2 * moved)


@dataclass(frozen=True)
class Compared:
    """error: the largest of the logits; limit: twice that of plain torch in such a dtype; first_wrong: '' or the first
    sub-pixel that was drawn wrong, with what is wrong of it."""

    error: float
    limit: float
    first_wrong: str


@torch.no_grad()
def compared(
    model: nn.Module, images: Tensor, noise: Tensor, logits: Tensor, precision: Precision
) -> Compared:
    """Few images, and the logits [n, C, H, W, L] that they were drawn from, all on the host as the model is."""
    images = images.to(torch.uint8)
    exact, plain = (by(images).double() for by in _in_dtypes(model, precision))
    difference, moved = plain - exact, (plain.softmax(-1) - exact.softmax(-1)).cumsum(-1)
    limit = float(2 * difference.abs().max() + 4 * torch.finfo(logits.dtype).eps * exact.abs().max())
    errors = (logits.double() - exact).abs().nan_to_num(nan=torch.inf)
    excess = noise_excess(Categorical(exact.shape[-1]), exact, images, noise)
    is_wrong = (errors.amax(-1) > limit) | ~(excess <= LIMIT + 2 * moved.abs().max())
    found = ""
    for y, x, channel, image in is_wrong.permute(2, 3, 1, 0).nonzero()[:1].tolist():
        where = image, channel, y, x
        level, worst = int(images[where]), int(errors[where].argmax())
        found = f"image {image}, channel {channel}, row {y}, column {x}: "
        if errors[where][worst] > limit:
            found += f"logit {worst} is {logits[where][worst]:.6g}, not {exact[where][worst]:.6g}"
        else:
            right = int((exact[where].softmax(-1).cumsum(-1) <= noise[where]).sum())
            found += f"level {level} was drawn, not {right}"
    return Compared(float(errors.max()), limit, found)


def _in_dtypes(model: nn.Module, precision: Precision) -> tuple[nn.Module, nn.Module]:
    """The model in float64, and in the dtype that rounds about as the precision does."""
    dtypes = torch.float64, PLAIN.get(precision, torch.float32)
    exact, plain = (copy.deepcopy(model).to(dtype).eval() for dtype in dtypes)
    return exact, plain


def largest(before: float, values: Tensor) -> float:
    found = float(values.max())
    return before if found <= before else found  # so that NaN stays


def _parts(images: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (8 * 256 * images[0].numel()))
    for start in range(0, len(images), size):
        yield slice(start, start + size)
