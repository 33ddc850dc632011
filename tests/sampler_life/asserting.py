"""What tests assert of a sampler whose model may have changed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, likelihood
from tests.sampler_life.common import SHAPE, STALE, ZEROS, noise, silence


def stale(sampler: Sampler, before: Tensor | None = None) -> None:
    """It says that its model has changed, and draws what it drew before."""
    with pytest.warns(UserWarning, match=STALE):
        images = sampler.sample(3, noise=noise()) if before is not None else sampler.sample(1)
    assert before is None or torch.equal(images, before)


def quiet(sampler: Sampler) -> None:
    with silence():
        sampler.sample(1)


def built_anew(sampler: Sampler, why: str = "built anew") -> None:
    """Refreshing it says why it takes longer."""
    with pytest.warns(UserWarning, match=why):
        sampler.refresh()


def draws_as_new(sampler: Sampler, model: nn.Module, **arguments: Any) -> None:
    """It draws what a new sampler of that model draws."""
    new = Sampler(model, SHAPE, **arguments)
    assert torch.equal(sampler.sample(3, noise=noise()), new.sample(3, noise=noise()))


def follows(sampler: Sampler, model: nn.Module, to: nn.Module | None = None, **arguments: Any) -> None:
    """Refreshed, it tells nothing and is as a new sampler of the model."""
    with silence():
        sampler.refresh(to).sample(1)
    draws_as_new(sampler, model, **arguments)


def scores_as_model(sampler: Sampler, model: nn.Module, images: Tensor) -> None:
    torch.testing.assert_close(sampler.log_prob(images), -likelihood.nll(model, images))


def computes_as_new(sampler: Sampler, model: nn.Module, **tolerances: Any) -> None:
    torch.testing.assert_close(sampler.logits(ZEROS), Sampler(model, SHAPE).logits(ZEROS), **tolerances)
