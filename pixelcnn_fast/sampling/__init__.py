"""Incremental sampling: capture -> causal program -> passes -> runtime."""

from pixelcnn_fast.sampling.conditions import ModelFailed
from pixelcnn_fast.sampling.drawing import NonFiniteLogits
from pixelcnn_fast.sampling.heads import UnknownLayout
from pixelcnn_fast.sampling.legality import NotCausal
from pixelcnn_fast.sampling.marks import Unsupported
from pixelcnn_fast.sampling.sampler import CaptureMismatch, Sampler, SamplingInterrupted

__all__ = [
    "CaptureMismatch",
    "ModelFailed",
    "NonFiniteLogits",
    "NotCausal",
    "Sampler",
    "SamplingInterrupted",
    "UnknownLayout",
    "Unsupported",
]
