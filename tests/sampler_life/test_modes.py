"""Models whose weights are others in eval mode, as LoRA's layers merge theirs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, likelihood
from pixelcnn_fast.user_model.contents import Contents
from pixelcnn_fast.user_model.tensors import are_equal
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, Around, NoCopies, noise, pixelcnn, silence
from tests.system.networks import ABOVE, LEFT, Masked

IMAGES = torch.randint(0, 5, (3, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Merging(nn.Module):
    """In eval mode, a product is in its weight."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.merged = Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(6, 5, 1), False
        self.a, self.b = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 6))

    def delta(self) -> Tensor:
        return (self.a @ self.b).view_as(self.last.weight)

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged == mode:
            self.last.weight.data += self.delta() * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.to(self.a)))
        weight = self.last.weight if self.merged else self.last.weight + self.delta()
        return nn.functional.conv2d(h, weight, self.last.bias)


class Fusing(nn.Module):
    """In eval mode, two branches become one layer, as RepVGG's do."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = Masked(1, 6, [*ABOVE, *LEFT])
        self.one, self.two, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 1)
        self.both: nn.Conv2d | None = None

    def train(self, mode: bool = True) -> Fusing:
        super().train(mode)
        self.both = None if mode else copy.deepcopy(self.one)
        if self.both is not None:
            self.both.weight.data += self.two.weight
            self.both.get_parameter("bias").data += self.two.get_parameter("bias")
        return self

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.float()))
        return self.last(torch.tanh(self.one(h) + self.two(h) if self.both is None else self.both(h)))


def step(model: nn.Module) -> None:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    likelihood.nll(model, IMAGES).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", [Merging, Fusing])
@pytest.mark.parametrize("modes", [(a, b) for a in (True, False) for b in (True, False)])
def test_weights_of_eval_mode_are_drawn_from_in_any_mode(kind, modes):
    """Of the building, and of refreshing."""
    model = kind().train(modes[0])
    sampler = Sampler(model, SHAPE)
    first = sampler.sample(3, noise=noise())
    for _ in range(2):
        step(model)
        model.train(modes[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            now = sampler.refresh().sample(3, noise=noise())
        expected = copy.deepcopy(model).eval()
        assert torch.equal(now, Sampler(expected, SHAPE).sample(3, noise=noise(), runtime="reference"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = sampler.log_prob(IMAGES)
        torch.testing.assert_close(found, -likelihood.nll(expected, IMAGES))
    assert not torch.equal(first, now)


def test_gradients_are_those_of_eval_mode_and_what_gets_none_is_named_once() -> None:
    model = Merging()
    sampler = Sampler(model, SHAPE)
    with pytest.warns(UserWarning, match="log_prob gives no gradients to a, b: eval mode") as told:
        sampler.log_prob(IMAGES).sum().backward()
        sampler.log_prob(IMAGES)
        with torch.no_grad():
            sampler.log_prob(IMAGES)
    assert len(told) == 1 and told[0].filename == __file__
    expected = copy.deepcopy(model).eval()
    expected.zero_grad()
    (-likelihood.nll(expected, IMAGES)).sum().backward()
    assert model.a.grad is None and model.b.grad is None
    torch.testing.assert_close(model.last.weight.grad, expected.last.weight.grad)
    torch.testing.assert_close(model.first.weight.grad, expected.first.weight.grad)


@pytest.mark.parametrize("kind", [Merging, Fusing])
def test_switching_modes_is_no_change(kind: type[nn.Module]) -> None:
    model = kind()
    sampler = Sampler(model, SHAPE)
    with silence():
        for mode in (True, False, True, False, False):
            model.train(mode)
            sampler.sample(1)
    step(model)
    with pytest.warns(UserWarning, match="the model has changed"):
        sampler.sample(1)


def test_that_refreshing_takes_longer_is_said_once() -> None:
    sampler = Sampler(Merging(), SHAPE)
    model = trained_on(Merging())
    with pytest.warns(
        UserWarning, match=r"parts of Merging may set other weights in train\(\) or eval\(\)"
    ) as told:
        sampler.refresh(model)
    assert len(told) == 1
    with silence():
        sampler.refresh()
    model.double()
    with pytest.warns(UserWarning, match="another dtype") as told:
        sampler.refresh().refresh()
    assert len(told) == 1


class OnlyOne(Merging):
    def __deepcopy__(self, memo: dict) -> OnlyOne:
        raise TypeError("there is only one")


class Rebinding(OnlyOne):
    """It assigns ``.data``, and changes what it only holds."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [torch.zeros(5, 6, 1, 1)]

    def train(self, mode: bool = True) -> Rebinding:
        if self.merged == mode and self.training != mode:
            before = self.last.weight.data
            super().train(mode)
            self.held[0] += self.last.weight.data - before
            self.last.weight.data = self.last.weight.data.clone()
        return self


@pytest.mark.parametrize("kind", [OnlyOne, Rebinding])
def test_a_model_that_can_t_be_copied_gets_its_weights_back_bit_for_bit(kind: type[OnlyOne]) -> None:
    model = kind().train()
    model.last.weight.data[0] = -0.0
    before = {name: x.detach().clone() for name, x in Contents(model).tensors.items()}
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE)
    with silence():
        for _ in range(3):
            sampler.sample(1)
        sampler.sample(1, runtime="reference")
    assert model.training and all(are_equal(x, before[name]) for name, x in Contents(model).tensors.items())


class Passing(nn.Module):
    """It holds a model that merges, to which it passes its mode on, and can't be copied."""

    levels = 5

    def __init__(self, net: Merging) -> None:
        super().__init__()
        self.gain, self.held = nn.Parameter(torch.ones(())), [net, NoCopies()]

    @property
    def net(self) -> Any:
        return self.held[0]

    def train(self, mode: bool = True) -> Passing:
        super().train(mode)
        self.net.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.gain


def test_what_can_t_be_copied_gets_back_the_bits_of_what_it_only_holds() -> None:
    net = Merging().train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(Passing(net).train(), SHAPE)
    sampler.sample(1)
    sampler.log_prob(IMAGES)
    assert net.training and not net.merged
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_an_adapter_alone_is_trained(runtime: Any) -> None:
    """Eval mode reads what has become of it, and train mode has it."""
    model = Merging().train()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    with torch.no_grad():
        model.a.add_(0.5)
    with pytest.warns(UserWarning, match="the model has changed since"):
        sampler.sample(1)


def test_that_eval_returns_another_model_is_told() -> None:
    class Deploying(Around):
        def eval(self) -> Any:
            return pixelcnn(seed=1)

    model = Deploying(lambda model, h: h)
    with pytest.warns(UserWarning, match=r"eval\(\) of Deploying returns another module, a PixelCNN"):
        images = Sampler(model, SHAPE).sample(3, noise=noise())
    assert torch.equal(images, Sampler(model.net, SHAPE).sample(3, noise=noise()))


class Overriding(nn.Conv2d):
    """Its train() does nothing more."""

    def train(self, mode: bool = True) -> Overriding:
        return super().train(mode)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_step_that_is_as_small_as_rounding_is_told(runtime: Any) -> None:
    """Unlike what merging and taking apart rounds."""
    adapted = Merging().bfloat16().train()
    plain = nn.Sequential(Masked(1, 6, [*ABOVE, *LEFT]), nn.Tanh(), last := Overriding(6, 5, 1)).bfloat16()
    models: list[tuple[nn.Module, Tensor]] = [(adapted, adapted.b), (plain, last.weight)]
    for model, weight in models:
        sampler = Sampler(model, SHAPE, runtime=runtime, image_form="levels", levels=5)
        for _ in range(3):
            model.eval()
            model.train()
        with silence():
            sampler.sample(1)
        with torch.no_grad():
            weight[0] *= 1 + 2.0**-7
        with pytest.warns(UserWarning, match="the model has changed"):
            sampler.sample(1)


def test_what_gets_no_gradients_is_named_once_whatever_is_built_anew() -> None:
    model = Merging().train()
    sampler = Sampler(model, SHAPE)
    with pytest.warns(
        UserWarning, match="log_prob gives no gradients to a, b: .* compute the loss from the model"
    ):
        sampler.log_prob(IMAGES)
    model.last.register_forward_hook(lambda module, given, found: found * 2)
    model.first.register_forward_hook(lambda module, given, found: found * 2)
    asserting.built_anew(sampler)
    with silence():
        sampler.log_prob(IMAGES)
