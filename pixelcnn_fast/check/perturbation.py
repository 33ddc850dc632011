"""Tests the causality of a model that has no program: what must not see a change must not move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NoReturn

import torch
from torch import Tensor

from pixelcnn_fast.check.tolerance import check_finite
from pixelcnn_fast.errors import NotCausal, UnknownLayout, Unsupported
from pixelcnn_fast.heads import resolved
from pixelcnn_fast.program.orders import Order, other_order
from pixelcnn_fast.user_model.conditioning import infer_condition_dtypes
from pixelcnn_fast.user_model.contents import Contents
from pixelcnn_fast.user_model.private_copy import eagerly
from pixelcnn_fast.user_model.tensors import with_tensors
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

PAIRS = 6  # of images; see _Pairs
DARK = 8  # times darker than random images
CUTS_AT_ONCE = 4
CUTS_OF_AN_ORDER = 16  # for which another order is tried
MOST_GIVEN = 16  # labels or conditions that are tried together
FEW = 100  # pixels, all of which are tested
PIXELS_TESTED_AGAIN = 8  # pixels that are tested again after each change of weights
BLOCK = 4  # strides up to this one have all their phases in the block that is tested
# How far a distribution may move: in total variation, or relatively in a log-density.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}
SEEN = 1e-9  # a move that shows dependence on a channel, in any dtype: drawing in turn is never wrong


@dataclass(frozen=True)
class Observed:
    """What a model's forwards show of it.

    draws: how many a pixel takes, 1 or one per channel; parameters: how many numbers, in
    ``dtype``, describe a distribution; output_bytes: of an image.
    """

    draws: int
    parameters: int
    dtype: torch.dtype
    output_bytes: int


def observed(model: WrappedModel, most: int | None = None) -> Observed:
    """Runs the model, sets its head's layout, and tests, at ``most`` pixels, whether it is causal.

    Raises ModelFailed, UnknownLayout and NonFiniteLogits as ``Sampler`` does; NotCausal,
    naming the output and what it sees, in channels, rows and columns; Unsupported if the
    output for an image is not a function of that image.
    """
    c, height, width = model.shape
    with model.in_use(), eagerly, torch.no_grad():
        infer_condition_dtypes(model)
        values, given = model.example()
        output = model.read(model.run(values, given))
        model.head = resolved(model.head, output, tuple(values.shape))
        parameters = model.head.arranged(output, c)
        expected = [len(values), model.head.distributions(c), height, width]
        if parameters.dim() != 5 or list(parameters.shape[:4]) != expected:
            raise UnknownLayout(
                f"{model.head} makes {list(parameters.shape)} of the model's output, expected [N, distributions, H, "
                f"W, parameters] = {[*expected, 'parameters']}"
            )
        check_finite(parameters, model.head)
        model.head.check_read(parameters)
        exact = _most_exact(model)
        _check_given(exact)
        draws = _draws(exact, most)
    return Observed(draws, parameters.shape[4], parameters.dtype, parameters[0].numel() * parameters.itemsize)


def _most_exact(model: WrappedModel) -> WrappedModel:
    """A copy in float64, where rounding hides no leak, or the model if there is none."""
    if model.dtype == torch.float64 or model.held.is_uncopyable:
        return model
    try:
        own = Contents(model.module).tensors  # some may be in networks that are not registered
        doubles = {path: x.detach().double() for path, x in own.items() if x.is_floating_point()}
        exact = model.run_by(with_tensors(model.module, doubles).double())
        exact.dtype = torch.float64
        exact.distribution_parameters(*exact.example())
    except Exception:  # no memory is left, or the device, or the model's code, has no float64
        return model
    return exact


def _check_given(model: WrappedModel) -> None:
    """Raises Unsupported unless labels and conditions matter for their own image alone."""
    n = max(4, min(MOST_GIVEN, model.labels.accepted))
    values, given = model.example(6, n)
    if given.images:
        order = torch.tensor([*range(n - 1, -1, -1), 0, 0], device=values.device)
        each = [
            model.distribution_parameters(values[i : i + 1], given.part(slice(i, i + 1))) for i in range(n)
        ]
        _check_same(
            model, torch.cat(each)[order], model.distribution_parameters(values[order], given.part(order))
        )


def _check_same(model: WrappedModel, alone: Tensor, among_others: Tensor) -> None:
    """Raises Unsupported unless images have the same distributions as in a smaller batch."""
    moved = model.head.distance(alone.cpu(), among_others.cpu(), model.shape[0])
    if not bool((moved <= max(TOLERANCE[model.dtype], TOLERANCE[torch.float32])).all()):
        raise Unsupported(
            "cannot sample from this model: its output for an image is not always the same; it depends on the other "
            "images of the batch, or on chance, as where the forward draws the image itself"
        )


def _draws(model: WrappedModel, most: int | None) -> int:
    """How often the model has to be run for a pixel. Raises NotCausal."""
    c, height, width = model.shape
    pixels = _pixels(height, width)
    firsts = [pixel * c for pixel in pixels[:: -(-len(pixels) // most) if most else 1]]
    pairs = _Pairs(model)
    ordered = pairs.check(firsts)
    pairs.check_singly([firsts[0], firsts[len(firsts) // 2]])
    if ordered:
        pairs.check([first + channel for first in firsts for channel in range(1, c)])
    return c if ordered else 1


def _pixels(height: int, width: int) -> list[int]:
    """Pixels to test, in raster order: all of a few, else corners, some of each row and column, a block."""
    if height * width <= FEW:
        return list(range(height * width))
    n = max(height, width)
    columns = torch.randperm(n, generator=torch.Generator().manual_seed(0)) % width
    chosen = {*product((0, height - 1), (0, width - 1)), *zip(range(n), columns.tolist(), strict=True)}
    top, left = max(0, (height - BLOCK) // 2), max(0, (width - BLOCK) // 2)
    chosen |= set(product(range(top, min(top + BLOCK, height)), range(left, min(left + BLOCK, width))))
    return sorted({y % height * width + x for y, x in chosen})


def _raster(channels: int, height: int, width: int) -> Tensor:
    """The sub-pixels' numbers as they are drawn, [C, H, W]."""
    return torch.arange(channels * height * width).view(height, width, channels).permute(2, 0, 1)


class _Pairs:
    """Pairs of images, one of which replaces the other from some sub-pixel on, the *cut*;
    outputs up to it, included, must stay.

    Random and other random values; random values and the lowest, or the highest; the lowest
    and the highest; the highest and the lowest; dark random values and the lowest.
    Sub-pixels are numbered as they are drawn.
    """

    def __init__(self, model: WrappedModel) -> None:
        self._model, self._head = model, model.head
        examples = [model.example(seed) for seed in range(PAIRS)]
        self._images, self._changed = (torch.stack([values[i] for values, _ in examples]) for i in (0, 1))
        levels = model.levels
        lowest, highest = (0, levels - 1) if levels is not None else self._images.aminmax()
        self._changed[1], self._changed[2] = lowest, highest
        self._images[3], self._changed[3] = lowest, highest
        self._images[4], self._changed[4] = highest, lowest
        if levels is not None:
            self._images[5], self._changed[5] = self._images[5] // DARK, lowest
        given = [given.part(slice(1)) for _, given in examples]
        each = zip(*(g.tensors for g in given), strict=True)
        self._given = given[0].with_tensors(_joined(x) for x in each)
        c, height, width = model.shape
        self._tolerance = TOLERANCE[model.dtype]
        self._number = _raster(c, height, width)
        self._output_number = self._number[: self._head.distributions(c)]  # of what the output draws first
        self._alone = self._outputs(self._images, torch.arange(PAIRS))

    def check(self, cuts: Sequence[int]) -> bool:
        """Whether an output sees an earlier channel of its pixel. Raises NotCausal and Unsupported."""
        channels, _, width = self._model.shape
        ordered = False
        for start in range(0, len(cuts), CUTS_AT_ONCE):
            part = cuts[start : start + CUTS_AT_ONCE]
            images = torch.cat([self._images, *(self._cut(cut) for cut in part)])
            before, *after = self._outputs(images, torch.arange(PAIRS).repeat(1 + len(part))).split(PAIRS)
            _check_same(self._model, self._alone, before)
            for cut, seen in zip(part, after, strict=True):
                rows = cut // (channels * width) + 1  # those below may see all that was changed
                moved = self._distance(before[:, :, :rows], seen[:, :, :rows])
                number = self._output_number[:, :rows]
                wrong = ~(moved <= self._tolerance) & (number <= cut)  # so NaN is wrong, too
                if bool(wrong.any()):
                    self._refuse(cut, moved.where(wrong, -1))
                later_channels = (number > cut) & (number < cut + channels)
                ordered |= bool((moved[:, later_channels] > SEEN).any())
        return ordered

    def check_singly(self, cuts: Sequence[int]) -> None:
        """As ``check``, by single images: a number taken over a batch hides what one image does to it."""
        for cut in cuts:
            rows = cut // (self._model.shape[0] * self._model.shape[2]) + 1
            changed, wrong = self._cut(cut), self._output_number[:, :rows] <= cut
            for pair in range(PAIRS):
                both = (x[pair : pair + 1] for x in (self._images, changed))
                before, after = (self._outputs(x, torch.tensor([pair]))[:, :, :rows] for x in both)
                moved = self._distance(before, after).where(wrong, -1)
                if not bool((moved <= self._tolerance).all()):
                    everywhere = moved.new_full((PAIRS, *moved.shape[1:]), -1)
                    everywhere[pair] = moved[0].nan_to_num(1.0)
                    self._refuse(cut, everywhere)

    def _cut(self, cut: int) -> Tensor:
        return self._images.where(self._number.to(self._images.device) < cut, self._changed)

    def _outputs(self, images: Tensor, pairs: Tensor) -> Tensor:
        """images: [n, C, H, W]; pairs: [n], for labels and condition -> [n, D, H, W, P], on the CPU."""
        pairs = pairs.to(images.device)
        parameters = self._model.distribution_parameters(images, self._given.part(pairs)).cpu()
        check_finite(parameters, self._head)
        return parameters

    def _distance(self, before: Tensor, after: Tensor) -> Tensor:
        return self._head.distance(after, before, self._model.shape[0])

    def _refuse(self, cut: int, moved: Tensor) -> NoReturn:
        """moved: [PAIRS, D, rows, W], how far each output moved that must not."""
        pair, *output = (int(i) for i in torch.unravel_index(moved.argmax(), moved.shape))
        first, last = self._narrowed(pair, output, cut)
        seen = self._named(first)
        if last > first:
            seen = f"one of the sub-pixels from {seen} to {self._named(last)}"
        where = self._named(int(self._output_number[tuple(output)]), of_output=True)
        advice = other_order(self._is_causal_in)
        raise NotCausal(
            f"the output at {where} depends on {seen}, which is not drawn before it (its distribution moves by "
            f"{moved.max().item():.2g}): rows are drawn from the top, pixels of a row from the left, and channels of a "
            f"pixel from the first, or all at once{'' if advice is None else f'; {advice}'}"
        )

    def _is_causal_in(self, order: Order) -> bool:
        """Whether it seems so: at a few cuts."""
        channels = self._model.shape[0]
        height, width = order.turned(self._number[0]).shape
        number = order.turned_back(_raster(channels, height, width))
        cuts = range(0, number.numel(), channels)
        for cut in cuts[:: max(1, len(cuts) // CUTS_OF_AN_ORDER)]:
            changed = self._images.where(number.to(self._images.device) < cut, self._changed)
            moved = self._distance(self._alone, self._outputs(changed, torch.arange(PAIRS)))
            if not bool(((moved <= self._tolerance) | (number[: moved.shape[1]] > cut)).all()):
                return False
        return True

    def _narrowed(self, pair: int, output: Sequence[int], cut: int) -> tuple[int, int]:
        """The first and last changed sub-pixels on which an output (d, y, x) depends: one,
        unless its effect is within the tolerance."""
        d, y, x = output
        first, end = cut, self._number.numel()
        while end - first > 1:
            middle = (first + end) // 2
            images = torch.stack([self._cut(at)[pair] for at in (first, middle, end)])
            seen = self._outputs(images, torch.full((3,), pair))
            moved = self._distance(seen[:-1], seen[1:])[:, d, y, x]
            if not bool(moved.max() > self._tolerance):
                break
            first, end = (first, middle) if moved[0] >= moved[1] else (middle, end)
        return first, end - 1

    def _named(self, number: int, of_output: bool = False) -> str:
        pixel, channel = divmod(number, self._model.shape[0])
        row, column = divmod(pixel, self._model.shape[2])
        where = f"row {row}, column {column}"
        return where if of_output and self._head.joint else f"channel {channel}, {where}"


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [x for x in tensors if x is not None]
    return torch.cat(there) if there else None
