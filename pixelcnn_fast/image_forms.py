"""The forms in which models take images, made from levels and read as levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

ImageForm = Literal["uint8", "int64", "codes", "unit", "centred", "levels"]
IMAGE_FORMS: tuple[ImageForm, ...] = get_args(ImageForm)
MEANINGS: dict[ImageForm, str] = {
    "uint8": "torch.uint8 [N, C, H, W], 0...L-1",
    "int64": "torch.int64 [N, C, H, W], 0...L-1",
    "codes": "torch.int64 [N, H, W], 0...L-1",
    "unit": "floats [N, C, H, W], 0...1",
    "centred": "floats [N, C, H, W], -1...1",
    "levels": "floats [N, C, H, W], 0...L-1",
}
INTEGER_FORMS: dict[ImageForm, torch.dtype] = {
    "uint8": torch.uint8,
    "int64": torch.int64,
    "codes": torch.int64,
}
# The floating-point forms: (from, to) that levels 0...L-1 are mapped to; None: unchanged.
SCALED_FORMS: dict[ImageForm, tuple[float, float] | None] = {
    "unit": (0, 1),
    "centred": (-1, 1),
    "levels": None,
}
# The relative error of floats, which may once have been float16.
HALF = 0.51 * torch.finfo(torch.float16).eps


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


def from_levels(images: Tensor, form: ImageForm, levels: int, dtype: torch.dtype) -> Tensor:
    """Integer levels [N, C, H, W] -> images in this form: [N, C, H, W], or [N, H, W] for 'codes'. levels: L;
    dtype: what the floating-point forms are in."""
    if form in INTEGER_FORMS:
        images = images.to(INTEGER_FORMS[form])
        return images[:, 0] if form == "codes" else images
    images = images.to(dtype)
    if (interval := SCALED_FORMS[form]) is None:
        return images
    low, high = interval
    return images / (levels - 1) * (high - low) + low


def to_levels(images: Tensor, levels: int = 256, image_form: ImageForm | None = None) -> Tensor:
    """Images -> their integer levels (int64, same shape).

    levels: L; image_form: the form that they are in, as for ``Sampler``; None: they are
    integers. Floats are rounded, and must be levels up to the rounding of float16. Nothing
    is guessed from values.
    Raises ValueError, naming the forms that fit, for images in another form, or outside of its range.
    """
    if image_form is not None:
        check_choice("image_form", image_form, IMAGE_FORMS)
    found = _levels_in(images, levels, image_form)
    if found is None:
        fitting = [form for form in IMAGE_FORMS if _levels_in(images, levels, form) is not None]
        expected = "integers" if image_form is None else f"image_form={image_form!r}, {MEANINGS[image_form]}"
        fits = f"They fit {' and '.join(f'image_form={form!r}' for form in fitting)}: say which it is"
        fits_none = (
            f"They fit no form of {levels} levels (image_form=...): images that are standardised, or noisy, are to be "
            "made from one of these forms by the model itself, and a dtype needs digits enough"
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


def _levels_in(images: Tensor, levels: int, form: ImageForm | None) -> Tensor | None:
    """None if they are in another form."""
    is_scaled = form in SCALED_FORMS
    if images.is_floating_point() != is_scaled or images.dtype == torch.bool or images.is_complex():
        return None
    if form in SCALED_FORMS:
        low, high = SCALED_FORMS[form] or (0, levels - 1)
        exact = (images.double() - low) / (high - low) * (levels - 1)
        rounded = exact.round()
        unit = torch.finfo(images.dtype).eps
        if unit * (levels - 1) > 2 or (unit * (levels - 1) == 2 and form != "levels"):
            return None  # neighbouring levels may be one and the same number
        unit = max(HALF, 0.51 * unit)
        allowed = unit * (rounded.abs() if low == 0 else torch.full_like(rounded, levels - 1))
        if not bool(((exact - rounded).abs() <= allowed).all()):  # NaN is not
            return None
        found = rounded.long()
    elif form is not None and (
        images.dtype != INTEGER_FORMS[form] or (form == "codes" and images.dim() != 3)
    ):
        return None
    else:
        found = images.long()
    return found if not found.numel() or 0 <= int(found.min()) <= int(found.max()) < levels else None


def other_forms(call: str, channels: int) -> str:
    """Lines to paste if a model does not take uint8: the call, with each other form for %r."""
    forms: list[ImageForm] = ["unit", "centred", "levels", "int64"]
    forms += ["codes"] if channels == 1 else []
    lines = [f"  {call % form}  # {MEANINGS[form]}" for form in forms]
    return "\n".join(["If it takes another form, say which:", *lines])
