"""What layers are built with, checked: a bad setting is a ValueError that names it."""

from __future__ import annotations

from torch import Tensor


def check_sizes(least: int = 1, **sizes: int) -> None:
    """Raises ValueError unless all are integers, not below ``least``."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ValueError(f"{name} is {size!r}, expected an integer of {least} or more")


def check_bool(**settings: bool) -> None:
    for name, setting in settings.items():
        if not isinstance(setting, bool):
            raise ValueError(f"{name} is {setting!r}, expected True or False")


def check_groups(groups: tuple[Tensor, Tensor], channels_in: int, channels_out: int) -> None:
    """Raises ValueError unless these are the groups of so many channels before and after a layer."""
    is_pair = isinstance(groups, (tuple, list)) and len(groups) == 2
    if not is_pair or not all(isinstance(x, Tensor) and not x.is_floating_point() for x in groups):
        raise ValueError(
            "channel_groups: expected two tensors of integers, of the input's channels and the output's"
        )
    found, expected = [list(x.shape) for x in groups], [[channels_in], [channels_out]]
    if found != expected:
        raise ValueError(
            f"channel_groups have shapes {found[0]} and {found[1]}, expected {expected[0]} and {expected[1]}"
        )
