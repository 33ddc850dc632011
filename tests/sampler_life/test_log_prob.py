"""Likelihoods of the model as it is now."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from pixelcnn_fast import Sampler, likelihood
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, Around, InPlace, Network, pixelcnn, silence, take
from tests.system.networks import Written


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

    def written(model: Any, h: Tensor) -> Tensor:
        model.one.fill_(3)
        return h * model.two

    one = torch.ones(4)
    model, images = (
        Around(written, one=one, two=one[1:2]),
        torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8),
    )
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


class Frozen(nn.Conv2d):
    """In eval mode it has merged an adapter, which is not trained then."""

    def __init__(self) -> None:
        super().__init__(6, 6, 1)
        self.adapter = nn.Parameter(torch.rand(6, 6, 1, 1))
        self.is_merged = False

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        if mode == self.is_merged:
            self.weight.data += (-1 if mode else 1) * self.adapter.detach()
            self.is_merged = not mode
            self.adapter.requires_grad_(mode)
        return self

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.conv2d(
            h, self.weight if self.is_merged else self.weight + self.adapter, self.bias
        )


class Swapping(nn.Conv2d):
    """In eval mode it has the average of its weights."""

    def __init__(self) -> None:
        super().__init__(6, 6, 1)
        self.average, self.is_averaged = nn.Parameter(torch.rand(6, 6, 1, 1)), False

    def train(self, mode: bool = True) -> Swapping:
        super().train(mode)
        if mode == self.is_averaged:
            self.weight, self.average = self.average, self.weight
            self.is_averaged = not mode
        return self


@pytest.mark.filterwarnings("ignore:log_prob gives no gradients to")
@pytest.mark.parametrize("kind", [Frozen, Swapping])
@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_what_eval_does_with_parameters_alone(kind: Callable[[], nn.Module], runtime: Any) -> None:
    model = Network(nn.Sequential(kind(), kind())).train()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    plain, names = copy.deepcopy(model), [name for name, _ in model.named_parameters()]
    of_plain = dict(zip(names, plain.parameters(), strict=True))  # which eval() may give other names
    expected, found = -likelihood.nll(plain.eval(), images), sampler.log_prob(images)
    torch.testing.assert_close(found, expected)
    expected.sum().backward()
    found.sum().backward()
    assert any(x.grad is None for x in model.parameters())
    for name, x in model.named_parameters():
        torch.testing.assert_close(x.grad, of_plain[name].grad)
    assert model.training and all(x.requires_grad for x in model.parameters())


class Own(nn.Module):
    """Its copies are made anew, and know of no memo."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(6, 6, 1)

    def forward(self, h: Tensor) -> Tensor:
        return self.inside(h)

    def __deepcopy__(self, memo: dict) -> Own:
        other = Own()
        other.load_state_dict(self.state_dict())
        return other


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("is_script", [False, True])
def test_a_part_that_copies_itself_gets_gradients(is_script: bool) -> None:
    part: Any = Own()
    model = Network(torch.jit.trace(part, torch.zeros(1, 6, 2, 2)) if is_script else part)
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    found = Sampler(model, SHAPE, runtime="reference").log_prob(images)
    expected, parameters = -likelihood.nll(model, images), [*model.parameters()]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), parameters) for x in (found, expected)), rtol=1e-4, atol=1e-4
    )


def test_a_table_of_another_dtype_keeps_it() -> None:
    table = torch.rand(6, 6, dtype=torch.float64)
    mid = Written(lambda net, h: torch.einsum("nchw,cd->ndhw", h.double(), net.table).to(h), table=table)
    model, images = Network(mid), torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    asserting.scores_as_model(Sampler(model, SHAPE), model, images)


def test_a_network_of_another_dtype_that_is_held_keeps_it() -> None:
    mid = Written(lambda net, h: net.held[0](h.double()).to(h), held=[nn.Conv2d(6, 6, 1).double()])
    model, images = Network(mid), torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    asserting.scores_as_model(Sampler(model, SHAPE), model, images)


def test_a_network_without_values_that_is_held_to_be_called_with_others() -> None:
    def stateless(module: Any, x: Tensor) -> Tensor:
        own = {**dict(module.net.named_parameters()), **dict(module.net.named_buffers())}
        return torch.func.functional_call(module.shell[0], own, (x,))

    net = Network(nn.Identity())
    model = Written(stateless, levels=5, net=net, shell=[copy.deepcopy(net).to("meta")])
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    asserting.scores_as_model(Sampler(model, SHAPE), model, images)


def test_a_held_network_that_is_moved_to_meta_has_no_likelihood() -> None:
    held = [nn.Conv2d(6, 6, 1)]
    model = Network(Written(lambda net, h: net.held[0](h), held=held))
    sampler, images = Sampler(model, SHAPE), torch.zeros(1, *SHAPE, dtype=torch.uint8)
    sampler.log_prob(images)
    held[0].to("meta")
    with pytest.raises(ValueError, match="a part of the model is on the device meta"):
        sampler.log_prob(images)


def test_that_gradients_are_not_averaged_over_ranks_is_told_once() -> None:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(pixelcnn())
        sampler, images = Sampler(model, SHAPE), torch.zeros(1, *SHAPE, dtype=torch.uint8)
        with silence(), torch.no_grad():
            sampler.log_prob(images)
        with pytest.warns(UserWarning, match="gradients of log_prob are this process's own"):
            sampler.log_prob(images)
        with silence():
            sampler.refresh().log_prob(images)
    finally:
        torch.distributed.destroy_process_group()
