"""Drop-in torch modules whose state_dict keys are those of the plain versions."""

from pixelcnn_fast.nn.fused import FusedSequential
from pixelcnn_fast.nn.masked_conv2d import MaskedConv2d, raster_mask
from pixelcnn_fast.nn.residual_block import ResidualBlock

__all__ = ["FusedSequential", "MaskedConv2d", "ResidualBlock", "raster_mask"]
