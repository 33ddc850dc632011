"""Likelihoods of the model as it is now."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_tensors_that_share_memory_do_so_in_log_prob(runtime: Any) -> None:
    """A forward writes into one of them."""

    class Sharing(nn.Module):
        levels = 256

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = pixelcnn()
            self.register_buffer("one", torch.ones(4))
            self.register_buffer("two", self.get_buffer("one")[1:2])

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("one").fill_(3)
            return self.net(x) * self.get_buffer("two")

    model, images = Sharing(), torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
    sampler = Sampler(model, SHAPE, runtime=runtime)
    expected = -likelihood.nll(copy.deepcopy(model), images)
    torch.testing.assert_close(sampler.log_prob(images), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.refresh()
    found = sampler.logits(images)
    torch.testing.assert_close(found, Sampler(model, SHAPE).logits(images))


def test_a_model_on_meta_has_no_likelihood() -> None:
    model = pixelcnn().to("meta")
    with pytest.raises(ValueError, match="on the device meta, where tensors have no values"):
        likelihood.bits_per_dim(model, [torch.zeros(1, *SHAPE, dtype=torch.uint8)])
