"""What a model takes for an image, and how it is made from levels."""

from __future__ import annotations

# What a module takes for an image. Those in floating point: (from, to) that levels 0...L-1 are mapped to; None: as is.
SCALED_FORMS: dict[str, tuple[float, float] | None] = {"unit": (0, 1), "centred": (-1, 1), "levels": None}
IMAGE_FORMS = ("uint8", "int64", "codes", *SCALED_FORMS)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}")
