"""Whole networks; ``models.reference`` holds their plain PyTorch versions."""

from pixelcnn_fast.models.gated_pixelcnn import GatedPixelCNN
from pixelcnn_fast.models.pixel_rnn import PixelRNN
from pixelcnn_fast.models.pixelcnn import PixelCNN
from pixelcnn_fast.models.pixelcnnpp import PixelCNNpp
from pixelcnn_fast.models.pixelsnail import PixelSNAIL

Model = PixelCNN | GatedPixelCNN | PixelRNN | PixelCNNpp | PixelSNAIL

__all__ = ["GatedPixelCNN", "Model", "PixelCNN", "PixelCNNpp", "PixelRNN", "PixelSNAIL"]
