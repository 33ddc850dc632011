"""Fast sampling for PixelCNN-family models: same weights, same images, orders of magnitude sooner."""

from pixelcnn_fast import checkpoint, distributed, heads, image_forms, likelihood, models, nn, ops
from pixelcnn_fast.accelerate import accelerate, accelerated
from pixelcnn_fast.errors import (
    CaptureMismatch,
    CheckFailed,
    InvalidProgram,
    ModelFailed,
    NonFiniteLogits,
    NotCausal,
    PixelCNNFastError,
    RuntimeUnavailable,
    SamplingInterrupted,
    UnknownLayout,
    Unsupported,
)
from pixelcnn_fast.receptive_field import ReceptiveField, check_causal, receptive_field
from pixelcnn_fast.sampler import Sampler

__version__ = "0.1.0"
__all__ = [
    "CaptureMismatch",
    "CheckFailed",
    "InvalidProgram",
    "ModelFailed",
    "NonFiniteLogits",
    "NotCausal",
    "RuntimeUnavailable",
    "PixelCNNFastError",
    "ReceptiveField",
    "Sampler",
    "SamplingInterrupted",
    "UnknownLayout",
    "Unsupported",
    "__version__",
    "accelerate",
    "accelerated",
    "check_causal",
    "checkpoint",
    "distributed",
    "heads",
    "image_forms",
    "likelihood",
    "models",
    "nn",
    "ops",
    "receptive_field",
]
