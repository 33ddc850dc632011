"""The naive runtime: a full forward per draw. It is the oracle, and what the fast runtimes are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pixelcnn_fast.capture.wrapped_model import WrappedModel
from pixelcnn_fast.runtimes.job import Job


class ReferenceRuntime:
    """The model's own forward, for every pixel once for each of ``draws``, the image channels drawn together."""

    def __init__(self, model: WrappedModel, draws: Sequence[slice]) -> None:
        self._model, self._draws = model, draws

    @torch.no_grad()
    def run(self, job: Job) -> None:
        height, width = job.levels.shape[2:]
        for y in range(height):
            job.on_row(y)
            for x in range(width):
                for channels in self._draws:
                    if job.wants(y, x, channels):
                        logits = self._model.logits(job.levels, job.given)[:, channels, y, x]
                        job.settle(y, x, channels, logits)
