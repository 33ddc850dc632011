"""The layers of PixelRNN: Row LSTM and Diagonal BiLSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d
from pixelcnn_fast.nn.settings import check_bool, check_groups, check_sizes
from pixelcnn_fast.nn.stack_conv2d import HorizontalConv2d
from pixelcnn_fast.ops import diagonal_lstm, row_lstm
from pixelcnn_fast.ops.library import memory_format

Groups = tuple[Tensor, Tensor]


class Recurrence(nn.Module):
    """An LSTM over pixels with the gates i, f, g and o. h0, c0: [hidden_channels], the
    states outside of the image, where they are learned."""

    h0: Tensor | None
    c0: Tensor | None

    def __init__(self, input_to_state: MaskedConv2d, taps: int, learn_initial_state: bool) -> None:
        super().__init__()
        check_bool(learn_initial_state=learn_initial_state)
        hidden = input_to_state.out_channels // 4
        self.hidden_channels = hidden
        self.input_to_state = input_to_state
        self.state_to_state = nn.Conv1d(hidden, 4 * hidden, taps, bias=False)
        for name in ("h0", "c0"):
            self.register_parameter(name, nn.Parameter(torch.zeros(hidden)) if learn_initial_state else None)

    def forward(self, x: Tensor) -> Tensor:
        """x in any memory format -> h in the same; the recurrences are faster in channels-last."""
        h = self.recur(self.input_to_state(x.contiguous(memory_format=torch.channels_last)))
        return h.contiguous(memory_format=memory_format(x))

    def recur(self, sums: Tensor) -> Tensor:
        """sums: [N, 4h, H, W], of the gates -> h [N, h, H, W]."""
        raise NotImplementedError


def gate_groups(groups: Groups | None, in_channels: int, hidden_channels: int) -> Groups | None:
    """Channel groups of a layer -> those of its sums: each of the four gates has all groups."""
    check_sizes(in_channels=in_channels, hidden_channels=hidden_channels)
    if groups is None:
        return None
    check_groups(groups, in_channels, hidden_channels)
    return groups[0], groups[1].repeat(4)


class RowLSTM(Recurrence):
    """A convolutional LSTM from row to row: a pixel sees a triangle above it, and a few pixels to its left.

    x: [N, in_channels, H, W] -> [N, hidden_channels, H, W]. The input-to-state convolution
    has mask B; the state-to-state taps lie on the row above. channel_groups: those of the
    input's and of the hidden channels, if colours see each other in order.
    learn_initial_state: whether h and c of the row above the image are parameters, ``h0``
    and ``c0``, or zeros. Raises ValueError for even kernel sizes, and other bad settings.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: int = 3,
        learn_initial_state: bool = False,
        channel_groups: Groups | None = None,
    ) -> None:
        groups = gate_groups(channel_groups, in_channels, hidden_channels)
        check_sizes(kernel_size=kernel_size)
        input_to_state = HorizontalConv2d(
            in_channels, 4 * hidden_channels, kernel_size, "B", channel_groups=groups
        )
        super().__init__(input_to_state, kernel_size, learn_initial_state)

    def recur(self, sums: Tensor) -> Tensor:
        return row_lstm(sums, self.state_to_state.weight, self.h0, self.c0)


class DiagonalLSTM(Recurrence):
    """An LSTM whose state depends on those of the pixels above and to the left: a pixel sees all of them.

    x: [N, in_channels, H, W] -> [N, hidden_channels, H, W]. reverse: each row is walked
    from the right, and left reads as right; such a layer sees later pixels of its row, so
    it is to be shifted down. Other settings as for ``RowLSTM``; initial states also stand
    for the column before the first.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        reverse: bool = False,
        learn_initial_state: bool = False,
        channel_groups: Groups | None = None,
    ) -> None:
        groups = gate_groups(channel_groups, in_channels, hidden_channels)
        check_bool(reverse=reverse)
        input_to_state = MaskedConv2d(in_channels, 4 * hidden_channels, 1, "B", channel_groups=groups)
        super().__init__(input_to_state, 2, learn_initial_state)
        self.reverse = reverse

    def recur(self, sums: Tensor) -> Tensor:
        return diagonal_lstm(sums, self.state_to_state.weight, self.h0, self.c0, self.reverse)

    def extra_repr(self) -> str:
        return "reverse=True" if self.reverse else ""


class DiagonalBiLSTM(nn.Module):
    """A Diagonal LSTM from the left, and one from the right, shifted down by one row: a pixel sees all before it.

    x: [N, in_channels, H, W] -> [N, hidden_channels, H, W]; settings as for ``DiagonalLSTM``.
    Source: van den Oord et al. 2016, "Pixel Recurrent Neural Networks", section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        learn_initial_state: bool = False,
        channel_groups: Groups | None = None,
    ) -> None:
        super().__init__()
        self.left, self.right = (
            DiagonalLSTM(in_channels, hidden_channels, reverse, learn_initial_state, channel_groups)
            for reverse in (False, True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + nn.functional.pad(self.right(x), (0, 0, 1, -1))
