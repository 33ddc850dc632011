"""The runtime 'reference' over a model's life: what was found out about its forward is found out again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NotCausal
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, STALE, Network, noise, silence
from tests.system.networks import Written

REFERENCE: Any = dict(runtime="reference")


def trained(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(torch.randn(x.shape, generator=generator))


class Coloured(nn.Module):
    """Each colour sees those before it, but for the last layer, which is zero at first, or a gate, which is shut."""

    levels = 5

    def __init__(self, is_gated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        mask = torch.zeros(6, 3, 3, 3)
        mask[:, :, 0] = mask[:, :, 1, 0] = 1
        for colour in range(3):
            mask[2 * colour : 2 * colour + 2, :colour, 1, 1] = 1
        self.register_buffer("mask", mask)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 15, 1, groups=3)
        self.gate = nn.Parameter(torch.tensor(-0.1 if is_gated else 1.0))
        if not is_gated:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight * self.get_buffer("mask") * self.gate.relu()
        h = torch.tanh(F.conv2d(x.to(weight), weight, self.first.bias, padding=1))
        return self.last(h).unflatten(1, (3, 5))


@pytest.mark.parametrize("is_gated", [False, True])
def test_colours_that_begin_to_see_each_other_are_drawn_one_by_one(is_gated: bool) -> None:
    model, shape = Coloured(is_gated), (3, 4, 5)
    sampler = Sampler(model, shape, **REFERENCE)
    trained(model)
    model.gate.data.abs_()
    of_three = torch.rand(3, *sampler.noise_shape, dtype=torch.float64)
    with silence():
        found, told = sampler.refresh().sample(3, noise=of_three, log_probability=True)
    assert torch.equal(found, Sampler(model, shape, **REFERENCE).sample(3, noise=of_three))
    torch.testing.assert_close(told.float(), sampler.log_prob(found).detach())


def leaking(net: Any, h: Tensor) -> Tensor:
    x, at = net.all(h), (torch.arange(6) - net.shift).clamp_min(0)[: h.shape[-1]]
    shifted = h.take_along_dim(at.view(1, 1, 1, -1), 3)
    return h + shifted + net.gain * x + x.masked_fill(net.is_hidden, 0) + (x + net.score).sigmoid()


@pytest.mark.parametrize(
    "name, value",
    [("mid.gain", 1), ("first.mask", 1), ("mid.is_hidden", False), ("mid.score", 0), ("mid.shift", -1)],
)
def test_a_model_that_begins_to_leak_is_refused(name: str, value: float) -> None:
    layers = dict(all=nn.Conv2d(6, 6, 3, padding=1), gain=nn.Parameter(torch.zeros(())))
    buffers = dict(is_hidden=torch.tensor(True), score=torch.tensor(-1e9), shift=torch.tensor(1))
    model = Network(Written(leaking, **layers, **buffers))
    sampler = Sampler(model, SHAPE, **REFERENCE)
    before = sampler.sample(3, noise=noise())
    dict([*model.named_parameters(), *model.named_buffers()])[name].data.fill_(value)
    with pytest.raises(NotCausal):
        sampler.refresh()
    asserting.stale(sampler, before)


class Own(nn.Conv2d):
    """Its copies know of no memo."""

    def __init__(self) -> None:
        super().__init__(6, 6, 1)
        self.gain = torch.ones(())

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h) * self.gain

    def __deepcopy__(self, memo: dict) -> Own:
        other = Own()
        other.load_state_dict(self.state_dict())
        other.gain = self.gain.clone()
        return other


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("runtime, is_script", [("auto", False), ("reference", False), ("reference", True)])
def test_a_part_that_copies_itself_has_the_present_weights(runtime: Any, is_script: bool) -> None:
    part: Any = Own()
    model = Network(torch.jit.trace(part, torch.zeros(1, 6, 2, 2)) if is_script else part)
    sampler = Sampler(model, SHAPE, runtime=runtime)
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    for _ in range(3):
        trained(model)
        if not is_script:
            part.gain.mul_(2)
        found = sampler.refresh().logits(images, runtime="reference")
        torch.testing.assert_close(found[:, 0].movedim(-1, 1), model(images).detach())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.two.weight = self.one.weight

    def forward(self, h: Tensor) -> Tensor:
        return self.two(self.one(h).tanh())

    def __deepcopy__(self, memo: dict) -> Tied:
        other = Tied()
        other.load_state_dict(self.state_dict())
        return other


def test_tied_weights_of_a_part_that_copies_itself_stay_tied() -> None:
    model = Network(Tied())
    sampler, images = Sampler(model, SHAPE, **REFERENCE), torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    trained(model)
    found = sampler.refresh().logits(images)
    torch.testing.assert_close(found[:, 0].movedim(-1, 1), model(images).detach())


class ByLabel(nn.Module):
    levels, n_classes = 5, 3

    def __init__(self) -> None:
        super().__init__()
        self.net, self.weights = Network(nn.Identity()), [1.0, 2.0, 3.0]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.net(x).float()
        return logits * torch.tensor([self.weights[int(each)] for each in labels])[:, None, None, None]


def test_a_number_for_one_label_beside_autocast_is_seen() -> None:
    model, labels = ByLabel(), torch.tensor([2, 2, 2])
    sampler = Sampler(model, SHAPE, **REFERENCE)
    before = sampler.fingerprint()
    model.weights[2] = 9.0
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(3, labels)
    with pytest.warns(UserWarning, match="does something else"):
        assert sampler.refresh().fingerprint() != before


def test_parametrizations_may_be_removed_meanwhile() -> None:
    """By which PyTorch changes a class that copies would share."""
    model = Network(parametrizations.weight_norm(nn.Conv2d(6, 6, 1)))
    sampler = Sampler(model, SHAPE, **REFERENCE)
    before = sampler.sample(3, noise=noise())
    with silence():
        sampler.refresh()
    parametrize.remove_parametrizations(model.mid, "weight")
    asserting.stale(sampler, before)
    assert torch.equal(copy.deepcopy(sampler).sample(3, noise=noise()), before)
