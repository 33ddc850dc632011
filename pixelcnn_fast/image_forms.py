"""The forms in which models take images, made from levels and read as levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

PlainForm = Literal["uint8", "int64", "codes", "unit", "centred", "levels"]
IMAGE_FORMS: tuple[PlainForm, ...] = get_args(PlainForm)
MEANINGS: dict[PlainForm, str] = {
    "uint8": "torch.uint8 [N, C, H, W], 0...L-1",
    "int64": "torch.int64 [N, C, H, W], 0...L-1",
    "codes": "torch.int64 [N, H, W], 0...L-1",
    "unit": "floats [N, C, H, W], 0...1",
    "centred": "floats [N, C, H, W], -1...1",
    "levels": "floats [N, C, H, W], 0...L-1",
}
INTEGER_FORMS: dict[PlainForm, torch.dtype] = {
    "uint8": torch.uint8,
    "int64": torch.int64,
    "codes": torch.int64,
}
# The floating-point forms: (from, to) that levels 0...L-1 are mapped to; None: unchanged.
SCALED_FORMS: dict[PlainForm, tuple[float, float] | None] = {
    "unit": (0, 1),
    "centred": (-1, 1),
    "levels": None,
}
# The relative error of floats, which may once have been float16.
HALF = 0.51 * torch.finfo(torch.float16).eps


class Form:
    """A form of images: a plain one, the ``base``, or one that is made from it as the first thing that a model does."""

    base: PlainForm

    def check(self, channels: int) -> None:
        """Raises ValueError unless images of so many channels can be in this form."""

    def made(self, images: Tensor) -> Tensor:
        """Images in the plain form -> as the model takes them."""
        return images

    def undone(self, images: Tensor) -> Tensor:
        """Images as the model takes them -> in the plain form, up to rounding."""
        return images

    def rows_last(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        """What a model gives for images of ``size`` (H, W) -> with axes as of models that take [N, C, H, W]."""
        return output

    def doubt(self, output: Sequence[int], size: tuple[int, int]) -> str:
        """What to add to a refusal of an output that ``rows_last`` gave, if it could be read otherwise; else ''."""
        return ""


@dataclass(frozen=True)
class Plain(Form):
    base: PlainForm

    def __str__(self) -> str:
        return repr(self.base)

    def check(self, channels: int) -> None:
        check_choice("image_form", self.base, IMAGE_FORMS)
        if self.base == "codes" and channels != 1:
            raise ValueError(f"image_form 'codes' is [N, H, W], of one channel; the images have {channels}")


@dataclass(frozen=True)
class Normalize(Form):
    """Floats [N, C, H, W], (x - mean) / std of those in 0...1, as ``torchvision.transforms.Normalize`` makes them.

    mean, std: C numbers, or one for all channels. Raises ValueError if they are none.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    base = "unit"

    def __post_init__(self) -> None:
        for name, least in (("mean", -math.inf), ("std", 0)):
            given = getattr(self, name)
            listed = given.tolist() if hasattr(given, "tolist") else given  # of a tensor or an array
            numbers = listed if isinstance(listed, Sequence) else [listed]
            if not numbers or not all(isinstance(x, (int, float)) and least < x < math.inf for x in numbers):
                what = "a number" if name == "mean" else "a positive number"
                raise ValueError(f"{name} is {given!r}: expected {what} for each channel, or one for all")
            object.__setattr__(self, name, tuple(map(float, numbers)))

    def check(self, channels: int) -> None:
        for name in ("mean", "std"):
            if (count := len(getattr(self, name))) not in (1, channels):
                raise ValueError(
                    f"{self} has {count} numbers as its {name}, but images have {channels} channels"
                )

    def made(self, images: Tensor) -> Tensor:
        mean, std = self._constants(images)
        return (images - mean) / std

    def undone(self, images: Tensor) -> Tensor:
        mean, std = self._constants(images)
        return images * std + mean

    def _constants(self, images: Tensor) -> list[Tensor]:
        return [images.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std)]


@dataclass(frozen=True)
class ChannelsLast(Form):
    """Images [N, H, W, C], otherwise in ``form``. The model's output may be [N, H, W, ...], too:
    a head then reads it with rows and columns moved to the end."""

    form: PlainForm | Normalize

    @property
    def base(self) -> PlainForm:  # type: ignore[override]  # which is read only
        return form_of(self.form).base

    def check(self, channels: int) -> None:
        if self.form == "codes" or isinstance(self.form, ChannelsLast):
            raise ValueError(f"{self}: images in that form have no channels before their rows")
        form_of(self.form).check(channels)

    def made(self, images: Tensor) -> Tensor:
        return form_of(self.form).made(images).permute(0, 2, 3, 1)

    def undone(self, images: Tensor) -> Tensor:
        if images.dim() != 4:
            raise ValueError(f"images have shape {list(images.shape)}, expected [N, H, W, C]")
        return form_of(self.form).undone(images.permute(0, 3, 1, 2))

    def rows_last(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        is_last = output.dim() > 3 and output.shape[1:3] == size
        return output.movedim((1, 2), (-2, -1)) if is_last else output

    def doubt(self, output: Sequence[int], size: tuple[int, int]) -> str:
        given = (output[0], *size, *output[1:-2])
        if given[-2:] != size:
            return ""
        return (
            f". Axes of {list(given)} are read as [N, H, W, ...]: if rows and columns come last, pass "
            "output=lambda x: x.movedim((-2, -1), (1, 2))"
        )


ImageForm: TypeAlias = PlainForm | Normalize | ChannelsLast

PLAIN = Plain("uint8")


def form_of(image_form: ImageForm) -> Form:
    return image_form if isinstance(image_form, Form) else Plain(image_form)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError, listing the choices, unless ``value`` is one of them."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_levels(images: Tensor, levels: int) -> None:
    """Raises ValueError unless all of these integers are levels, 0...levels-1."""
    if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < levels:
        raise ValueError(f"levels span {int(images.min())}...{int(images.max())}, expected 0...{levels - 1}")


def with_channels(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The shape of images, [N, C, H, W], or [N, H, W] for one channel -> (N, C, H, W)."""
    if len(shape) not in (3, 4):
        raise ValueError(
            f"images have shape {list(shape)}, expected [N, C, H, W] or [N, H, W] for one channel"
        )
    n, *channels, height, width = shape
    return n, channels[0] if channels else 1, height, width


def from_levels(images: Tensor, image_form: ImageForm, levels: int, dtype: torch.dtype) -> Tensor:
    """Integer levels [N, C, H, W] -> images in this form, such as [N, H, W] for 'codes'. levels: L;
    dtype: what the floating-point forms are in."""
    form = form_of(image_form)
    if form.base in INTEGER_FORMS:
        images = images.to(INTEGER_FORMS[form.base])
        return images[:, 0] if form.base == "codes" else form.made(images)
    images = images.to(dtype)
    if (interval := SCALED_FORMS[form.base]) is not None:
        low, high = interval
        images = images / (levels - 1) * (high - low) + low
    return form.made(images)


def to_levels(images: Tensor, levels: int = 256, image_form: ImageForm | None = None) -> Tensor:
    """Images -> their integer levels, int64, as samplers take them: [N, C, H, W], or [N, H, W] for codes.

    levels: L; image_form: the form that they are in, as for ``Sampler``; None: they are
    integers. Floats are rounded, and must be levels up to the rounding of float16. Nothing
    is guessed from values.
    Raises ValueError, naming the forms that fit, for images in another form, or outside of its range.
    """
    form = None if image_form is None else form_of(image_form)
    if isinstance(form, Plain):
        check_choice("image_form", form.base, IMAGE_FORMS)
    found = _levels_in(images, levels, form)
    if found is None:
        fitting = [form for form in IMAGE_FORMS if _levels_in(images, levels, Plain(form)) is not None]
        expected = "integers" if form is None else f"image_form={form}, {meaning(form)}"
        fits = f"They fit {' and '.join(f'image_form={form!r}' for form in fitting)}: say which it is"
        fits_none = (
            f"They fit no form of {levels} levels (image_form=...), unless they were standardised: then "
            "image_forms.Normalize(mean, std) says how. Noise is to be added by the model itself, and a dtype needs "
            "digits enough"
        )
        span = ""
        if images.numel() and not images.is_complex():
            span = f" that span {images.min().item():.7g}...{images.max().item():.7g}"
        raise ValueError(
            f"the images are {images.dtype} {list(images.shape)}{span}, which is not what was "
            f"expected: {expected}, with L = {levels}. "
            f"{fits if fitting else fits_none}"
        )
    return found


def _levels_in(images: Tensor, levels: int, form: Form | None) -> Tensor | None:
    """None if they are in another form."""
    base = None if form is None else form.base
    is_scaled = base in SCALED_FORMS
    if images.is_floating_point() != is_scaled or images.dtype == torch.bool or images.is_complex():
        return None
    dtype, is_plain = images.dtype, form is None or isinstance(form, Plain)
    if form is not None:
        images = form.undone(images.double() if is_scaled else images)
    if base in SCALED_FORMS:
        low, high = SCALED_FORMS[base] or (0, levels - 1)
        exact = (images.double() - low) / (high - low) * (levels - 1)
        rounded = exact.round()
        unit = torch.finfo(dtype).eps
        coarse = unit * (levels - 1) * (1 if is_plain else 2)
        if coarse > 2 or (coarse == 2 and base != "levels"):
            return None  # neighbouring levels may be one and the same number
        unit = max(HALF, 0.51 * unit)
        # Where levels are not multiples of one number, all are as exact as the largest.
        is_from_zero = low == 0 and is_plain
        allowed = unit * (rounded.abs() if is_from_zero else torch.full_like(rounded, levels - 1))
        if not bool(((exact - rounded).abs() <= allowed).all()):  # NaN is not
            return None
        found = rounded.long()
    elif base is not None and (dtype != INTEGER_FORMS[base] or (base == "codes" and images.dim() != 3)):
        return None
    else:
        found = images.long()
    return found if not found.numel() or 0 <= int(found.min()) <= int(found.max()) < levels else None


def meaning(form: Form) -> str:
    """What images in this form are, in words."""
    return MEANINGS[form.base] if isinstance(form, Plain) else f"made from {MEANINGS[form.base]}"


def other_forms(call: str, channels: int) -> str:
    """Lines to paste if a model does not take uint8: the call, with each other form for %r."""
    forms: list[PlainForm] = ["unit", "centred", "levels", "int64"]
    forms += ["codes"] if channels == 1 else []
    lines = [f"  {call % form}  # {MEANINGS[form]}" for form in forms]
    made = (
        "Normalize(mean, std) and ChannelsLast(form), [N, H, W, C], of pixelcnn_fast.image_forms are others."
    )
    return "\n".join(["If it takes another form, say which:", *lines, made])
