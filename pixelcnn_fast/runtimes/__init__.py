"""Runtimes draw images. Here are the names that users know them by, and the precisions that they may multiply in."""

from __future__ import annotations

from typing import Literal, get_args

RuntimeName = Literal["auto", "reference", "eager", "cpu", "cuda"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

Precision = Literal["same", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
