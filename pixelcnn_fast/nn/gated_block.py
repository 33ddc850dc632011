"""The layer of the Gated PixelCNN: a vertical and a horizontal stack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pixelcnn_fast.nn.channel_order import ChannelOrder, channel_groups, named_order
from pixelcnn_fast.nn.gated_activation import GatedActivation
from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d, MaskType
from pixelcnn_fast.nn.stack_conv2d import HorizontalConv2d, VerticalConv2d


class GatedBlock(nn.Module):
    """One layer of both stacks.

    vertical, horizontal: [N, channels_in, H, W]; labels: [N] integers, needed with
    ``n_classes``; condition: [N, condition_channels, H, W], needed with
    ``condition_channels``
    -> (vertical, horizontal), both [N, channels_out, H, W]. Both conditions enter both gates.
    A network's first block has mask A and takes the image twice; it has no
    residual, which would show the pixel itself. With mask B the widths agree, and
    the horizontal stack is residual.
    colours, channel_order: for images whose colours see each other in order; see ``nn.channel_order``.
    Raises ValueError if mask B comes with two widths, and for a condition that is missing
    or does not fit. Source: van den Oord et al. 2016, "Conditional Image Generation with
    PixelCNN Decoders", figure 2, equation 4.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int = 3,
        mask_type: MaskType = "B",
        dilation: int = 1,
        n_classes: int | None = None,
        condition_channels: int | None = None,
        colours: int = 3,
        channel_order: ChannelOrder | bool | None = None,
    ) -> None:
        super().__init__()
        if mask_type == "B" and channels_in != channels_out:
            raise ValueError(
                f"mask B with {channels_in} -> {channels_out} channels: the residual needs equal widths"
            )
        width = 2 * channels_out
        into_gate, out_of_gate = None, None
        if (order := named_order(channel_order)) is not None:
            source, result = (channel_groups(n, colours, order) for n in (channels_in, channels_out))
            into_gate, out_of_gate = (source, torch.cat([result, result])), (result, result)
        self.residual = mask_type == "B"
        self.vertical = VerticalConv2d(channels_in, width, kernel_size, mask_type, dilation)
        self.horizontal = HorizontalConv2d(channels_in, width, kernel_size, mask_type, dilation, into_gate)
        self.link = nn.Conv2d(width, width, 1)
        self.out = MaskedConv2d(channels_out, channels_out, 1, "B", channel_groups=out_of_gate)
        self.gate = GatedActivation()
        self.label_vertical = self.label_horizontal = self.condition_vertical = self.condition_horizontal = (
            None
        )
        if n_classes is not None:
            self.label_vertical = nn.Embedding(n_classes, width)
            self.label_horizontal = nn.Embedding(n_classes, width)
        if condition_channels is not None:
            self.condition_vertical = nn.Conv2d(condition_channels, width, 1, bias=False)
            self.condition_horizontal = nn.Conv2d(condition_channels, width, 1, bias=False)

    def forward(
        self,
        vertical: Tensor,
        horizontal: Tensor,
        labels: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        rows_above = self.vertical(vertical)
        present_row = self.horizontal(horizontal) + self.link(rows_above)
        given = _given(labels, self.label_vertical, condition, self.condition_vertical)
        vertical = self.gate(rows_above, given)
        given = _given(labels, self.label_horizontal, condition, self.condition_horizontal)
        result = self.out(self.gate(present_row, given))
        return vertical, horizontal + result if self.residual else result


def _given(
    labels: Tensor | None,
    embedding: nn.Embedding | None,
    condition: Tensor | None,
    projection: nn.Conv2d | None,
) -> Tensor | None:
    """[N, 2C, H, W], [N, 2C, 1, 1], or None without any."""
    for name, given, layer in (("labels", labels, embedding), ("condition", condition, projection)):
        if (given is None) != (layer is None):
            raise ValueError(
                f"{name}: {'missing' if given is None else 'given'}, but the block was built otherwise"
            )
    from_labels = None if embedding is None else embedding(labels)[:, :, None, None]
    from_condition = None if projection is None else projection(condition)
    if from_labels is None or from_condition is None:
        return from_condition if from_labels is None else from_labels
    return from_labels + from_condition
