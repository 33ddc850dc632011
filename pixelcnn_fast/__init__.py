"""Fast sampling for PixelCNN-family models: same weights, same images, orders of magnitude sooner."""

from pixelcnn_fast import likelihood, models, nn, ops
from pixelcnn_fast.accelerate import accelerate
from pixelcnn_fast.sampling import Sampler

__version__ = "0.1.0"
__all__ = ["Sampler", "__version__", "accelerate", "likelihood", "models", "nn", "ops"]
