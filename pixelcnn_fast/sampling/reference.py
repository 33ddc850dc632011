"""The naive runtime: a full forward per pixel. It is the oracle, and what the fast runtimes are compared with."""

from __future__ import annotations

import torch

from pixelcnn_fast.sampling.job import Job
from pixelcnn_fast.sampling.model import Model


class ReferenceRuntime:
    """The model's own forward, once for every pixel."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @torch.no_grad()
    def run(self, job: Job) -> None:
        height, width = job.levels.shape[2:]
        for y in range(height):
            job.on_row(y)
            for x in range(width):
                if job.wants(y, x):
                    job.settle(y, x, self._model.logits(job.levels, job.labels)[:, :, y, x])
