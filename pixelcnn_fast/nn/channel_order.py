"""Which colour a feature channel belongs to, where the colours of a pixel depend on each other: R -> G -> B.

Every layer's channels are in as many groups as the image has channels. A feature of group g
may see its own pixel's image channels up to g (mask B) or before g (mask A), and all those
of earlier pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ChannelOrder = Literal["thirds", "interleaved"]
CHANNEL_ORDERS: tuple[ChannelOrder, ...] = ("thirds", "interleaved")


def channel_groups(channels: int, colours: int, order: ChannelOrder) -> Tensor:
    """The group of each feature channel -> int64 [channels], values 0...colours-1.

    'thirds': consecutive runs, as in R R G G B B; 'interleaved': channel k is in group k
    modulo colours, as in R G B R G B. If the channels don't divide evenly, the first groups
    get one channel more in either order: 7 channels for 3 colours are 3 + 2 + 2.
    Raises ValueError for any other order, and for fewer channels than colours.
    """
    if order not in CHANNEL_ORDERS:
        raise ValueError(f"channel_order is {order!r}, expected 'thirds' or 'interleaved'")
    if channels < colours:
        raise ValueError(
            f"{channels} channels for {colours} colours: each colour needs at least one, so use more channels"
        )
    groups = torch.arange(channels) % colours
    return groups.sort().values if order == "thirds" else groups


def channel_mask(groups_in: Tensor, groups_out: Tensor, mask_type: str) -> Tensor:
    """What each output channel sees of the present pixel's input channels -> bool [out, in].

    Mask A: groups before its own; mask B: its own too.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.4.
    """
    first, second = groups_in[None, :], groups_out[:, None]
    return first < second if mask_type == "A" else first <= second


def named_order(channel_order: bool | str | None) -> ChannelOrder | None:
    """True means 'thirds'; False and None mean no order. Raises ValueError for an unknown name."""
    if channel_order is True:
        return "thirds"
    if channel_order in (None, False):
        return None
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(
            f"channel_order is {channel_order!r}, expected 'thirds', 'interleaved', True or None"
        )
    return channel_order
