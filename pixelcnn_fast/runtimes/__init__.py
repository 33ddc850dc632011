"""Runtimes, which draw images: their names, and the precisions they multiply in."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from pixelcnn_fast.program.schema import MATHS, WeightFormat

RuntimeName = Literal["auto", "reference", "eager", "cpu", "cuda"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

Precision = Literal["same", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ON_CPU = frozenset(format.value for format in WeightFormat)  # precisions that the runtime 'cpu' has
DTYPES: dict[str, torch.dtype] = {
    math.name: getattr(torch, math.dtype) for math in MATHS
}  # of what is multiplied
