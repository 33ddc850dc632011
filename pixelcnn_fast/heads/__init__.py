"""Heads: how a model's output is read as the distribution of each sub-pixel's value."""

from pixelcnn_fast.heads.bernoulli import Bernoulli
from pixelcnn_fast.heads.categorical import LAYOUTS, Categorical
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.heads.resolve import Head, resolved

__all__ = ["LAYOUTS", "Bernoulli", "Categorical", "Head", "SamplingOptions", "resolved"]
