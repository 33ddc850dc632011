"""What a model holds without registering it, and what it reads without holding it."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, accelerate, accelerated
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, Around, noise, pixelcnn, silence, take


class Guided(nn.Module):
    """Its networks are in a list, where PyTorch does not see them."""

    levels = 256

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.weight, self.networks, self.steps = nn.Parameter(torch.ones(())), [*networks], 0
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return sum(network(x) for network in self.networks) * self.weight


def test_a_network_in_a_list_is_followed() -> None:
    base = pixelcnn()
    model = Guided(base)
    sampler, images = Sampler(model, SHAPE), torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    before, print_before = sampler.sample(3, noise=noise()), sampler.fingerprint()
    take(base, trained_on(base))
    asserting.stale(sampler, before)
    asserting.scores_as_model(sampler, model, images)
    with silence():
        sampler.refresh()
    for runtime in ("cpu", "reference"):
        now = sampler.sample(3, noise=noise(), runtime=runtime)
        assert torch.equal(now, Sampler(model, SHAPE).sample(3, noise=noise())) and not torch.equal(
            now, before
        )
    assert print_before != sampler.fingerprint() == Sampler(Guided(base), SHAPE).fingerprint()
    gradient = torch.autograd.grad(sampler.log_prob(images).sum(), [*base.parameters()], allow_unused=True)
    assert all(x is not None for x in gradient)


def assert_told_and_built_anew(sampler: Sampler, model: nn.Module, why: str) -> None:
    asserting.stale(sampler)
    with pytest.warns(UserWarning, match=why):
        sampler.refresh()
    asserting.computes_as_new(sampler, model)


def test_one_more_network_is_another_model() -> None:
    model = Guided(pixelcnn())
    sampler = Sampler(model, SHAPE)
    model.networks.append(pixelcnn())
    assert_told_and_built_anew(sampler, model, "built anew.* its networks is another")


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_what_training_loops_leave_is_no_change(runtime: Any) -> None:
    model = Guided(pixelcnn())
    sampler = Sampler(model, SHAPE, runtime=runtime)
    with silence():
        model(torch.zeros(1, *SHAPE, dtype=torch.uint8))
        model.losses.append(0.5)
        model.epoch = 3  # type: ignore[assignment]  # as they do
        model.register_forward_hook(lambda *_: None)
        sampler.sample(1)
        accelerate(model)
        sampler.sample(1)
        accelerated(model).undo()
        sampler.refresh().sample(1)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_hook_that_counts_is_a_change(runtime: Any) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    handle = model.conv_in.register_forward_hook(lambda module, given, found: found * 2)
    assert_told_and_built_anew(sampler, model, "built anew")
    handle.remove()
    asserting.stale(sampler)


def test_buffers_that_begin_to_share_memory() -> None:
    """Then one is written with the other."""

    def written(model: Any, h: Tensor) -> Tensor:
        model.one.fill_(3)
        return h * model.two

    model: Any = Around(written, one=torch.ones(1), two=torch.ones(1))
    sampler = Sampler(model, SHAPE)
    model.two = model.one
    asserting.stale(sampler)
    asserting.built_anew(sampler, "built anew.*lie in the same memory")


GLOBAL = torch.ones(1)


def test_what_the_model_does_not_hold_is_named_once_and_watched() -> None:
    model = Around(lambda model, h: h * GLOBAL)
    with pytest.warns(UserWarning, match=r"does not hold, as a global variable \(float32 \[1\]\)") as told:
        sampler = Sampler(model, SHAPE)
    assert len(told) == 1 and told[0].filename == __file__
    with silence():
        sampler.sample(1)
        sampler.refresh().sample(1)
    try:
        GLOBAL.mul_(2)
        asserting.stale(sampler)
        asserting.built_anew(sampler, "built anew.* a tensor that the model reads, and does not have")
    finally:
        GLOBAL.fill_(1)


class Free(nn.Module):
    """Its guidance is a number, its activation a function."""

    levels = 256

    def __init__(self, by: float = 1.0, activation=torch.relu, class_: int = 0) -> None:
        super().__init__()
        table = torch.randn(3, 1, generator=torch.Generator().manual_seed(0))
        self.net, self.table = pixelcnn(), nn.Parameter(table)
        self.by, self.activation, self.class_ = by, activation, class_

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.net(x)) * self.by + self.table[self.class_]


@pytest.mark.parametrize("other", [dict(by=4.0), dict(activation=torch.tanh), dict(class_=1)], ids=", ".join)
def test_a_fingerprint_is_of_all_that_decides_the_images(other: dict) -> None:
    sampler = Sampler(Free(), SHAPE)
    one = sampler.fingerprint()
    assert one == Sampler(Free(), SHAPE).fingerprint() == pickle.loads(pickle.dumps(sampler)).fingerprint()
    assert one != Sampler(Free(**other), SHAPE).fingerprint()
    reference, another = (
        Sampler(Free(**settings), SHAPE, runtime="reference").fingerprint() for settings in ({}, other)
    )
    assert one == reference != another
