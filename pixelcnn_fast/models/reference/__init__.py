"""The same networks in plain PyTorch, written to be read.

Shapes, errors and sources are those of the fast versions; state dicts load strictly in both directions.
"""

from pixelcnn_fast.models.reference.gated_pixelcnn import (
    GatedBlock,
    GatedPixelCNN,
    HorizontalConv2d,
    VerticalConv2d,
)
from pixelcnn_fast.models.reference.pixel_rnn import DiagonalBiLSTM, DiagonalLSTM, PixelRNN, RowLSTM
from pixelcnn_fast.models.reference.pixelcnn import MaskedConv2d, PixelCNN, ResidualBlock
from pixelcnn_fast.models.reference.pixelcnnpp import (
    GatedResnet,
    PixelCNNpp,
    ShiftedConv2d,
    ShiftedConvTranspose2d,
)
from pixelcnn_fast.models.reference.pixelsnail import PixelSNAIL

__all__ = [
    "DiagonalBiLSTM",
    "DiagonalLSTM",
    "GatedBlock",
    "GatedPixelCNN",
    "GatedResnet",
    "HorizontalConv2d",
    "MaskedConv2d",
    "PixelCNN",
    "PixelCNNpp",
    "PixelRNN",
    "PixelSNAIL",
    "ResidualBlock",
    "RowLSTM",
    "ShiftedConv2d",
    "ShiftedConvTranspose2d",
    "VerticalConv2d",
]
