"""Fast sampling for PixelCNN-family models: same weights, same images, orders of magnitude sooner."""

from pixelcnn_fast import likelihood, models, nn, ops
from pixelcnn_fast.accelerate import accelerate
from pixelcnn_fast.fields import ReceptiveField, check_causal, receptive_field
from pixelcnn_fast.sampling import Sampler, heads

__version__ = "0.1.0"
__all__ = [
    "ReceptiveField",
    "Sampler",
    "__version__",
    "accelerate",
    "check_causal",
    "heads",
    "likelihood",
    "models",
    "nn",
    "ops",
    "receptive_field",
]
