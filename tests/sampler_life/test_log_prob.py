"""Likelihoods of the model as it is now."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pixelcnn_fast import Sampler, likelihood
from tests.capture.test_weights import trained_on
from tests.sampler_life.common import SHAPE, InPlace, silence, take
from tests.system.networks import pixelcnn


def test_log_prob_is_the_live_model_s_with_its_gradients() -> None:
    model, labels = pixelcnn(classes=3), torch.tensor([0, 2, 1])
    sampler = Sampler(model, SHAPE)
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    take(model, trained_on(model))
    with silence():
        found = sampler.log_prob(images, labels)
    expected = -likelihood.nll(model, images, labels)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    for x, y in zip(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="conditional"):
        sampler.log_prob(images)


def test_log_prob_leaves_the_model_alone() -> None:
    model = pixelcnn().train()
    seen: list[nn.Module] = []
    model.conv_in.register_forward_hook(lambda module, *_: seen.append(module))
    sampler = Sampler(model, SHAPE)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    images = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    found = sampler.log_prob(images)
    assert model.training and seen and model.conv_in not in seen
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    torch.testing.assert_close(found, -likelihood.nll(copy.deepcopy(model).eval(), images))


def test_log_prob_writes_into_no_weight_and_goes_through_checkpoints() -> None:
    model = InPlace()
    sampler, images = Sampler(model, SHAPE), torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    take(model, trained_on(model))
    before = model.first.weight.detach().clone()
    found = sampler.log_prob(images)
    gradients = torch.autograd.grad(found.sum(), list(model.parameters()))
    assert torch.equal(model.first.weight, before) and not hasattr(model, "cached")
    expected = torch.autograd.grad(-likelihood.nll(model, images).sum(), list(model.parameters()))
    for x, y in zip(gradients, expected, strict=True):
        torch.testing.assert_close(x, y)
