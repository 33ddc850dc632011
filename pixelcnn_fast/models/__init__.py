"""Whole networks; ``models.reference`` holds their plain PyTorch versions."""

from pixelcnn_fast.models.gated_pixelcnn import GatedPixelCNN
from pixelcnn_fast.models.pixelcnn import PixelCNN

__all__ = ["GatedPixelCNN", "PixelCNN"]
