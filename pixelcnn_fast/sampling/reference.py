"""The naive runtime: a full forward per pixel. It is the oracle, and what the fast runtimes are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pixelcnn_fast.sampling.job import Job


class ReferenceRuntime:
    """model(encode(levels)[, labels]) -> logits [N, C, H, W, L], once for every pixel."""

    def __init__(self, model: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        self._model, self._encode = model, encode

    @torch.no_grad()
    def run(self, job: Job) -> None:
        height, width = job.levels.shape[2:]
        for y in range(height):
            job.on_row(y)
            for x in range(width):
                if job.wants(y, x):
                    images = self._encode(job.levels)
                    logits = self._model(images) if job.labels is None else self._model(images, job.labels)
                    job.settle(y, x, logits[:, :, y, x])
