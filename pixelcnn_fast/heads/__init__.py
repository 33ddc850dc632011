"""Heads: how a model's output is read as the distribution of each pixel's values."""

from pixelcnn_fast.heads.base import Head, resolved
from pixelcnn_fast.heads.bernoulli import Bernoulli
from pixelcnn_fast.heads.categorical import LAYOUTS, Categorical
from pixelcnn_fast.heads.gaussian import DiscretizedGaussian, GaussianMixture
from pixelcnn_fast.heads.logistic_mixture import LogisticMixture
from pixelcnn_fast.heads.options import SamplingOptions

__all__ = [
    "LAYOUTS",
    "Bernoulli",
    "Categorical",
    "DiscretizedGaussian",
    "GaussianMixture",
    "Head",
    "LogisticMixture",
    "SamplingOptions",
    "resolved",
]
