"""The same networks in plain PyTorch, written to be read: the oracle of the tests and the baseline of benchmarks.

Shapes, errors and sources are those of the fast versions; state dicts load strictly in both directions.
"""

from pixelcnn_fast.models.reference.gated_pixelcnn import GatedBlock, GatedPixelCNN
from pixelcnn_fast.models.reference.pixel_rnn import DiagonalBiLSTM, DiagonalLSTM, PixelRNN, RowLSTM
from pixelcnn_fast.models.reference.pixelcnn import MaskedConv2d, PixelCNN, ResidualBlock

__all__ = [
    "DiagonalBiLSTM",
    "DiagonalLSTM",
    "GatedBlock",
    "GatedPixelCNN",
    "MaskedConv2d",
    "PixelCNN",
    "PixelRNN",
    "ResidualBlock",
    "RowLSTM",
]
