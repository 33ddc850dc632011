"""A sampler whose model has changed says so."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pixelcnn_fast import Sampler
from tests.capture.test_weights import trained_on
from tests.sampler_life.common import SHAPE, STALE, noise, silence
from tests.system.networks import pixelcnn


def fused(kind: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def train(model: nn.Module) -> None:
        parameters = [p.requires_grad_() for p in model.parameters()]
        optimizer = kind(parameters, lr=1e-3, fused=True)
        model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)).square().mean().backward()
        optimizer.step()

    return train


def swapped(model: nn.Module) -> None:
    """As an average of the weights is put in for an evaluation."""
    for x, y in zip(model.parameters(), trained_on(model).parameters(), strict=True):
        x.data = y.data


def copied(model: nn.Module) -> None:
    for x, y in zip(model.parameters(), trained_on(model).parameters(), strict=True):
        x.data.copy_(y.data)


def one_bias(model: nn.Module) -> None:
    model.get_parameter("conv_out.bias").data.add_(1e-3)


def statistics(model: nn.Module) -> None:
    model.train()
    model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8))
    model.eval()


def replaced(model: nn.Module) -> None:
    model.get_submodule("conv_out").bias = nn.Parameter(model.get_parameter("conv_out.bias") + 1)


CHANGES = {
    "fused Adam": fused(torch.optim.Adam),
    "fused AdamW": fused(torch.optim.AdamW),
    "fused SGD": fused(torch.optim.SGD),
    "fused Adagrad": fused(torch.optim.Adagrad),
    "swapped": swapped,
    "copied": copied,
    "one bias": one_bias,
    "statistics": statistics,
    "replaced": replaced,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sampler_whose_model_has_changed_says_so_once(name: str) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    with silence():
        before = sampler.sample(3, noise=noise())
    CHANGES[name](model)
    with pytest.warns(UserWarning, match=STALE + r".*sampler\.refresh\(\)") as told:
        assert torch.equal(sampler.sample(3, noise=noise()), before)
    assert told[0].filename == __file__
    with silence():
        assert torch.equal(sampler.sample(3, noise=noise()), before)
        sampler.logits(before)
        sampler.refresh()
        now = sampler.sample(3, noise=noise())
    assert torch.equal(now, Sampler(model, SHAPE).sample(3, noise=noise()))
    one_bias(model)
    with pytest.warns(UserWarning, match=STALE) as told:
        sampler.complete(before, torch.ones(5, 6, dtype=torch.bool))
    assert told[0].filename == __file__


def loaded(model: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def moved(model: nn.Module) -> None:
    for x in model.parameters():
        x.data = x.data.clone()


@pytest.mark.parametrize("change", [loaded, moved, nn.Module.train, nn.Module.requires_grad_])
def test_what_changes_no_weight_is_not_told(change: Callable[[nn.Module], None]) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    change(model)
    with silence():
        sampler.sample(1)
        sampler.sample(1)
