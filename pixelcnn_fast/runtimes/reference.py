"""The naive runtime: a full forward per draw, with which others are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.errors import ModelFailed
from pixelcnn_fast.runtimes.job import Job, Runtime
from pixelcnn_fast.user_model.wrapped_model import WrappedModel


class ReferenceRuntime(Runtime):
    """Runs the model's own forward for each of the ``draws`` of every pixel."""

    def __init__(self, model: WrappedModel, draws: int) -> None:
        self._model, self.draws = model, draws

    @torch.no_grad()
    def run(self, job: Job) -> None:
        height, width = job.values.shape[2:]
        for y in range(height):
            job.on_row(y)
            for x in range(width):
                for draw in range(self.draws):
                    if job.wants(y, x, draw, self.draws):
                        parameters = self._parameters(job)[:, :, y, x].chunk(self.draws, 1)[draw]
                        job.draw_pixel(y, x, draw, self.draws, parameters, self._model.head)

    def _parameters(self, job: Job) -> Tensor:
        """What the model raises keeps its type: it has run before."""
        try:
            return self._model.distribution_parameters(job.values, job.given)
        except ModelFailed as failed:
            raise failed.__cause__ or failed from None
