"""Drop-in torch modules whose state_dict keys are those of the plain versions."""

from pixelcnn_fast.nn.channel_order import channel_groups
from pixelcnn_fast.nn.fused import FusedSequential
from pixelcnn_fast.nn.gated_activation import GatedActivation
from pixelcnn_fast.nn.gated_block import GatedBlock
from pixelcnn_fast.nn.gated_resnet import GatedResnet
from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d, raster_mask
from pixelcnn_fast.nn.recurrence import DiagonalBiLSTM, DiagonalLSTM, RowLSTM
from pixelcnn_fast.nn.residual_block import ResidualBlock
from pixelcnn_fast.nn.shifted_conv2d import ShiftedConv2d, ShiftedConvTranspose2d
from pixelcnn_fast.nn.stack_conv2d import HorizontalConv2d, VerticalConv2d

__all__ = [
    "DiagonalBiLSTM",
    "DiagonalLSTM",
    "FusedSequential",
    "GatedActivation",
    "GatedBlock",
    "GatedResnet",
    "HorizontalConv2d",
    "MaskedConv2d",
    "ResidualBlock",
    "RowLSTM",
    "ShiftedConv2d",
    "ShiftedConvTranspose2d",
    "VerticalConv2d",
    "channel_groups",
    "raster_mask",
]
