"""The plain PixelRNN: Row LSTM and Diagonal BiLSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelcnn_fast.models.reference.gated_pixelcnn import HorizontalConv2d
from pixelcnn_fast.models.reference.pixelcnn import MaskedConv2d, groups_of
from pixelcnn_fast.ops.diagonal_lstm.reference import diagonal_lstm
from pixelcnn_fast.ops.row_lstm.reference import row_lstm

Groups = list[int] | None


class Recurrence(nn.Module):
    """The weights of Row LSTM and Diagonal LSTM; the gates are i, f, g and o."""

    h0: Tensor | None
    c0: Tensor | None

    def __init__(self, input_to_state: nn.Conv2d, hidden: int, taps: int, learn_initial_state: bool) -> None:
        super().__init__()
        self.input_to_state = input_to_state
        self.state_to_state = nn.Conv1d(hidden, 4 * hidden, taps, bias=False)
        for name in ("h0", "c0"):
            self.register_parameter(name, nn.Parameter(torch.zeros(hidden)) if learn_initial_state else None)


class RowLSTM(Recurrence):
    """Plain version of ``pixelcnn_fast.nn.RowLSTM``."""

    def __init__(
        self,
        channels_in: int,
        hidden: int,
        size: int = 3,
        learn_initial_state: bool = False,
        groups_in: Groups = None,
        groups_hidden: Groups = None,
    ) -> None:
        gates = None if groups_hidden is None else 4 * groups_hidden  # each gate has all groups
        input_to_state = HorizontalConv2d(channels_in, 4 * hidden, size, "B", 1, groups_in, gates)
        super().__init__(input_to_state, hidden, size, learn_initial_state)

    def forward(self, x: Tensor) -> Tensor:
        return row_lstm(self.input_to_state(x), self.state_to_state.weight, self.h0, self.c0)


class DiagonalLSTM(Recurrence):
    """Plain version of ``pixelcnn_fast.nn.DiagonalLSTM``."""

    def __init__(
        self,
        channels_in: int,
        hidden: int,
        reverse: bool = False,
        learn_initial_state: bool = False,
        groups_in: Groups = None,
        groups_hidden: Groups = None,
    ) -> None:
        gates = None if groups_hidden is None else 4 * groups_hidden
        input_to_state = MaskedConv2d(channels_in, 4 * hidden, 1, "B", groups_in, gates)
        super().__init__(input_to_state, hidden, 2, learn_initial_state)
        self.reverse = reverse

    def forward(self, x: Tensor) -> Tensor:
        sums = self.input_to_state(x)
        return diagonal_lstm(sums, self.state_to_state.weight, self.h0, self.c0, self.reverse)


class DiagonalBiLSTM(nn.Module):
    """Plain version of ``pixelcnn_fast.nn.DiagonalBiLSTM``."""

    def __init__(
        self,
        channels_in: int,
        hidden: int,
        learn_initial_state: bool = False,
        groups_in: Groups = None,
        groups_hidden: Groups = None,
    ) -> None:
        super().__init__()
        settings = (learn_initial_state, groups_in, groups_hidden)
        self.left = DiagonalLSTM(channels_in, hidden, False, *settings)
        self.right = DiagonalLSTM(channels_in, hidden, True, *settings)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right(x)  # sees pixels to the right, which only the row below may
        shifted_down = torch.cat([torch.zeros_like(right[:, :, :1]), right[:, :, :-1]], 2)
        return self.left(x) + shifted_down


class PixelRNN(nn.Module):
    """Plain version of ``pixelcnn_fast.models.PixelRNN``."""

    logits_layout = "N,C,H,W,L"

    def __init__(
        self,
        kind: str,
        input_channels: int = 3,
        hidden_channels: int = 128,
        n_layers: int = 12,
        n_classes: int | None = None,
        kernel_size: int = 7,
        levels: int = 256,
        channel_order: str | None = None,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__()
        self.levels, h = levels, hidden_channels
        layer = {"row_lstm": RowLSTM, "diagonal_bilstm": DiagonalBiLSTM}[kind]
        colours = groups_of(input_channels, input_channels, channel_order)
        narrow, wide = (groups_of(channels, input_channels, channel_order) for channels in (h, 2 * h))
        logits = groups_of(input_channels * levels, input_channels, channel_order and "thirds")
        settings = dict(learn_initial_state=learn_initial_state, groups_in=wide, groups_hidden=narrow)
        self.conv_in = MaskedConv2d(input_channels, 2 * h, kernel_size, "A", colours, wide)
        self.embedding = None
        if n_classes is not None:
            self.embedding = nn.Embedding(n_classes, 2 * h)
        self.layers, self.upsample = nn.ModuleList(), nn.ModuleList()
        for _ in range(n_layers):
            self.layers.append(layer(2 * h, h, **settings))
            self.upsample.append(MaskedConv2d(h, 2 * h, 1, "B", narrow, wide))
        self.conv_out1 = MaskedConv2d(2 * h, 2 * h, 1, "B", wide, wide)
        self.conv_out2 = MaskedConv2d(2 * h, 2 * h, 1, "B", wide, wide)
        self.conv_out3 = MaskedConv2d(2 * h, input_channels * levels, 1, "B", wide, logits)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = images.to(self.conv_in.weight.dtype)
        if images.dtype == torch.uint8:
            x = x / (self.levels - 1)
        x = self.conv_in(x)
        if self.embedding is not None:
            x = x + self.embedding(labels)[:, :, None, None]
        for layer, upsample in zip(self.layers, self.upsample, strict=True):
            x = x + upsample(layer(x))
        for conv in (self.conv_out1, self.conv_out2, self.conv_out3):
            x = conv(torch.relu(x))
        n, c, height, width = images.shape
        x = x.view(n, c, self.levels, height, width)  # channel: colour * levels + level
        return x.permute(0, 1, 3, 4, 2)
