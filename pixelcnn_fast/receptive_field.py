"""The sub-pixels that each output of a model depends on, exactly, as read off the weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from pixelcnn_fast import pictures
from pixelcnn_fast.capture.capture import Captured
from pixelcnn_fast.compiler import capture_checked
from pixelcnn_fast.cores import as_cores_allow
from pixelcnn_fast.errors import NotCausal, PixelCNNFastError, UnknownLayout, Unsupported, advising
from pixelcnn_fast.heads.categorical import OfLevels
from pixelcnn_fast.program.causality import Leak, leak_of
from pixelcnn_fast.program.operands import Tap
from pixelcnn_fast.program.receptive_field.fields import output_field
from pixelcnn_fast.signatures import takes_arguments_of
from pixelcnn_fast.telling import tell
from pixelcnn_fast.user_model.contents import Contents
from pixelcnn_fast.user_model.model_arguments import ModelArguments
from pixelcnn_fast.user_model.private_copy import changes_with_its_mode, copy_or_why_not
from pixelcnn_fast.user_model.random_state import random_state_kept
from pixelcnn_fast.user_model.tensors import in_place_of
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

PRESENT, LEAK, SEEN, PARTLY, BLIND, UNSEEN = "@", "!", "#", "+", "?", "."
COLOURS = {
    PRESENT: (20, 20, 20),
    LEAK: (208, 0, 0),
    SEEN: (42, 111, 151),
    PARTLY: (137, 194, 217),
    BLIND: (244, 162, 97),
    UNSEEN: (235, 235, 235),
}
MEANING = {
    PRESENT: "the present pixel",
    SEEN: "seen",
    PARTLY: "some channels seen",
    BLIND: "blind spot",
    LEAK: "seen, and must not be",
}


@dataclass(frozen=True)
class ReceptiveField:
    """What the output at a pixel sees, by offset from that pixel; print it, or draw it with ``picture``.

    shape: (C, H, W) of the images. seen: bool [C, C, 2H - 1, 2W - 1]: whether channel c of
    the output sees channel k of the pixel at (dy, dx), at [c, k, dy + H - 1, dx + W - 1];
    offsets outside the image do not count. leak: why the model isn't causal, naming the
    layer, or None.
    """

    shape: tuple[int, int, int]
    seen: Tensor
    leak: str | None

    @property
    def causal(self) -> bool:
        """Whether no output sees its own sub-pixel or a later one."""
        return self.leak is None

    @cached_property
    def earlier(self) -> Tensor:
        """The sub-pixels that come before the output and may be seen: bool, shaped like
        ``seen``. The present pixel's channels are among them if the model orders channels,
        that is, if some output sees one."""
        c, height, width = self.shape
        earlier = torch.zeros_like(self.seen)
        earlier[:, :, : height - 1] = True
        earlier[:, :, height - 1, : width - 1] = True
        if self.seen[:, :, height - 1, width - 1].any():
            earlier[:, :, height - 1, width - 1] = torch.ones(c, c, dtype=torch.bool).tril(-1)
        return earlier

    @cached_property
    def blind_spots(self) -> Tensor:
        """Earlier sub-pixels that are not seen, in the rows and columns that are: bool, shaped like ``seen``."""
        inside = torch.zeros_like(self.seen)
        for c, field in enumerate(self.seen & self.earlier):
            rows, columns = (field.any(0).any(axis).nonzero() for axis in (1, 0))
            if len(rows):
                inside[c, :, rows[0] :, columns[0] : columns[-1] + 1] = True
        return inside & self.earlier & ~self.seen

    def __str__(self) -> str:
        c, height, width = self.shape
        lines = [
            f"receptive field in {c}x{height}x{width} images: {'causal' if self.causal else 'NOT CAUSAL'}"
        ]
        if self.leak is not None:
            lines.append(f"  {self.leak}")
        maps: dict[tuple[str, ...], list[int]] = {}
        for channel in range(c):
            maps.setdefault(tuple(self._map(channel)), []).append(channel)
        for rows, channels in maps.items():
            lines += ["", self._summary(channels, c), *(f"  {row}" for row in rows)]
        used = {symbol for rows in maps for row in rows for symbol in row}
        legend = [f"{symbol} {meaning}" for symbol, meaning in MEANING.items() if symbol in used]
        return "\n".join([*lines, "", "  " + "   ".join(legend)])

    def _summary(self, channels: Sequence[int], of: int) -> str:
        c, height, width = self.shape
        field = (self.seen & self.earlier)[channels[0]]
        name = "" if len(channels) == of else f"channel {', '.join(map(str, channels))}: "
        if not field.any():
            return f"{name}sees no earlier pixel"
        rows, columns = (field.any(0).any(axis).nonzero().flatten() for axis in (1, 0))
        blind = int(self.blind_spots[channels[0]].sum())
        right = max(int(columns[-1]) - width + 1, 0)
        return (
            f"{name}sees {int(field.sum())} earlier sub-pixels, up to {height - 1 - int(rows[0])} rows above, "
            f"{max(width - 1 - int(columns[0]), 0)} columns to the left and {right} to the right; "
            f"{f'{blind} sub-pixels in blind spots' if blind else 'no blind spot'}"
        )

    def _map(self, channel: int) -> list[str]:
        _, height, width = self.shape
        seen, earlier, blind = (x[channel].numpy() for x in (self.seen, self.earlier, self.blind_spots))
        symbols = np.full((2 * height - 1, 2 * width - 1), UNSEEN)
        visible = seen & earlier
        symbols[visible.any(0)] = PARTLY
        symbols[visible.all(0)] = SEEN
        symbols[blind.all(0)] = BLIND
        symbols[height - 1, width - 1] = PRESENT
        symbols[(seen & ~earlier).any(0)] = LEAK
        used = symbols != UNSEEN
        rows, columns = (used.any(axis).nonzero()[0] for axis in (1, 0))
        return ["".join(row) for row in symbols[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]]

    def picture(self, path: str | os.PathLike[str], scale: int = 9) -> None:
        """A PNG of the maps of all channels, side by side; the colours are ``COLOURS``."""
        maps = [self._map(channel) for channel in range(self.shape[0])]
        rows = zip_longest(*maps)  # with white below lower maps
        shown = [[row or " " * len(m[0]) for row, m in zip(each, maps, strict=True)] for each in rows]
        symbols = np.array([list(" ".join(row)) for row in shown])
        picture = np.full((*symbols.shape, 3), 255, np.uint8)
        for symbol, colour in COLOURS.items():
            picture[symbols == symbol] = colour
        picture = picture.repeat(scale, 0).repeat(scale, 1)
        picture[::scale], picture[:, ::scale] = 255, 255  # lines between the pixels
        pictures.save_png(picture, path)


@takes_arguments_of(WrappedModel)
def receptive_field(
    model: nn.Module, shape: tuple[int, int, int], **arguments: Unpack[ModelArguments]
) -> ReceptiveField:
    """What the model's output sees of images of ``shape`` (C, H, W), read off the weights: a zero weight sees nothing.

    The arguments are those of ``Sampler``. The model need not be causal; a copy of it is
    run, in eval mode. How its output is read only matters if the output sees its own pixel,
    which channels that are drawn earlier may do.
    Raises Unsupported for a call that has no place in a causal program, CaptureMismatch if
    the model sees images in another way as well, such as through a number that it reads in
    Python, and UnknownLayout if the output sees its own pixel and fits no head, or several:
    then pass ``head=``.
    """
    has_head = arguments.get("head") is not None
    wrapped = WrappedModel(model, shape, **arguments)
    with random_state_kept(wrapped.device), as_cores_allow(), advising(WAY_OUT):
        program = _captured(wrapped, has_head).program
        leak = leak_of(program)
        if leak is None and (zeros := _zeros(model)):
            try:
                wrapped = WrappedModel(_without_zeros(model, zeros), shape, **arguments)
                found = _captured(wrapped, has_head)
                program, leak = found.program, _leak_besides(found, zeros)
            except PixelCNNFastError as error:
                why, _, _ = str(error).partition("\n")
                tell(
                    f"{_named(zeros)}: zero now, and what is behind could not be looked at. With small numbers in the "
                    f"place of zeros: {why}"
                )
    c = program.shape[0]
    # All channels of one joint distribution see the same.
    seen = output_field(program, together=False).expand(c, -1, -1, -1)
    return ReceptiveField(wrapped.shape, seen, None if leak is None else leak.why)


@takes_arguments_of(WrappedModel)
def check_causal(model: nn.Module, shape: tuple[int, int, int], **arguments: Unpack[ModelArguments]) -> None:
    """Raises NotCausal, naming the layer and the tap, if an output sees its own sub-pixel
    or a later one: a check for training scripts. Arguments and other errors are as for
    ``receptive_field``; the model stays as it was."""
    field = receptive_field(model, shape, **arguments)
    if field.leak is not None:
        raise NotCausal(field.leak)


# -- what zeros hide


def _zeros(model: nn.Module) -> set[str]:
    """Trainable tensors that are zero everywhere: until it is trained, they hide what lies behind them."""
    own = Contents(model).tensors.items()
    return {path for path, x in own if x.is_leaf and x.requires_grad and x.numel() and not bool(x.any())}


def _without_zeros(model: nn.Module, zeros: set[str]) -> nn.Module:
    """A copy with small positive random numbers in these tensors; the model itself if it can't be copied."""
    generator = torch.Generator().manual_seed(0)
    if changes_with_its_mode(Contents(model)) and not model.training:
        with suppress(Exception):  # train mode takes merged weights apart
            model = copy.deepcopy(model).train()
    own = Contents(model).tensors
    small = {path: 0.01 + 0.01 * torch.rand(own[path].shape, generator=generator) for path in sorted(zeros)}
    others = {path: x.to(own[path].device, own[path].dtype) for path, x in small.items()}
    copied = copy_or_why_not(model, in_place_of(own, others))
    return copied if isinstance(copied, nn.Module) else model


def _leak_besides(found: Captured, zeros: set[str]) -> Leak | None:
    """A leak through layers whose weights were not zero. A warning tells of one through the others."""
    program, first = found.program, None

    def of_zeros(tap: Tap) -> set[str]:
        return zeros & found.recorder.made_of(tap.weight)

    while (leak := leak_of(program)) is not None and leak.tap is not None and of_zeros(leak.tap):
        first = first or leak
        dropped = leak.tap
        others = (i.with_taps(tap for tap in i.taps if tap is not dropped) for i in program.instructions)
        program = replace(program, instructions=tuple(others))
    if leak is None and first is not None and first.tap is not None:
        tell(
            f"{_named(of_zeros(first.tap))} is zero now; unless training leaves zeros where a mask should be, the "
            f"model will leak: {first.why}"
        )
    return leak


def _named(paths: set[str]) -> str:
    return " and ".join([*sorted(paths)[:3], *(["others"] if len(paths) > 3 else [])])


WAY_OUT = "Sampler(model, shape, runtime='reference') finds out by changing sub-pixels whether such a model is causal"


# -- without a head


class _AllOfAPixel(OfLevels):
    """All numbers that an output has for a pixel. row_axis: the output's axis that holds
    the rows; columns come next, and all other axes belong to a pixel."""

    joint = True

    def __init__(self, levels: int, row_axis: int) -> None:
        self.levels, self.row_axis = levels, row_axis

    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> _AllOfAPixel:
        rows_and_columns = output.shape[self.row_axis : self.row_axis + 2]
        if output.dim() < 3 or output.shape[0] != shape[0] or rows_and_columns != shape[2:]:
            raise UnknownLayout(f"axis {self.row_axis} of {list(output.shape)} are no rows of pixels")
        return self

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        pixels = output.movedim((self.row_axis, self.row_axis + 1), (1, 2))
        return pixels.reshape(*pixels.shape[:3], -1)[:, None]

    def distance(self, one: Tensor, other: Tensor, channels: int) -> Tensor:
        """The greatest difference of two numbers, relative to their size if it is above 1."""
        difference = (one.double() - other).abs() / other.abs().clamp_min(1)
        return difference.masked_fill(one == other, 0).amax(-1)

    distance_name = "relative difference"


def _captured(model: WrappedModel, has_head: bool) -> Captured:
    """Without a head, the output may also fit none, or several: UnknownLayout is raised
    where it matters which one it is."""
    try:
        return capture_checked(model)
    except UnknownLayout as error:
        if has_head:
            raise
        unknown = error
    reason: PixelCNNFastError = unknown
    # Rows are along axis 2 of [N, channels, H, W] or [N, C, H, W, L], 1 of [N, H, W, channels], 3 of [N, a, b, H, W].
    for row_axis in (2, 1, 3):
        model.head = _AllOfAPixel(model.levels or 2, row_axis)
        try:
            found = capture_checked(model)
        except UnknownLayout:
            continue
        except Unsupported as error:
            reason = error
            continue
        channels, height, width = found.program.shape
        if channels == 1 or not bool(
            output_field(found.program, together=False)[:, :, height - 1, width - 1].any()
        ):
            return found
        raise UnknownLayout(
            f"{unknown}\nThe output sees its own pixel, so it must be known which channel of the image each part of it "
            "is for: pass head="
        )
    raise reason
