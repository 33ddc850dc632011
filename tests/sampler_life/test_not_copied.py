"""Modules that can't be copied are used as if they were copies, and keep nothing."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, likelihood
from pixelcnn_fast.runtimes import RuntimeName
from tests.refresh.test_weights import trained_on
from tests.sampler_life import asserting
from tests.sampler_life.common import SHAPE, STALE, InPlace, NoCopies, noise, pixelcnn, silence, take
from tests.system.networks import ABOVE, LEFT, Masked
from tests.tiers import few


class NotCopied(InPlace):
    def __deepcopy__(self, memo: dict) -> NotCopied:
        raise TypeError("there is only one")


class Single(nn.Module):
    """It can't be copied, and assigns a buffer."""

    levels = 5
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.single, self.first, self.last = NoCopies(), Masked(1, 6, [*ABOVE, *LEFT]), nn.Conv2d(6, 5, 1)
        self.register_buffer("cache", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x.to(self.cache)))
        self.cache = h.detach()[0, :, 0, 0]
        return self.last(h)


def test_a_module_that_can_t_be_copied_is_as_good_as_a_copy() -> None:
    model = Single()
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE)
    assert torch.equal(model.cache, torch.zeros(6))
    before = sampler.sample(3, noise=noise())
    with torch.no_grad():
        model.last.weight.mul_(-1)
    with pytest.warns(UserWarning, match=STALE):
        assert torch.equal(sampler.sample(3, noise=noise(), runtime="reference"), before)
    found, expected = sampler.log_prob(images), -likelihood.nll(model, images)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(x.sum(), model.last.weight)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients)
    model.cache = torch.zeros(6)
    sampler.refresh()
    now = sampler.sample(3, noise=noise(), runtime="reference")
    assert torch.equal(now, sampler.sample(3, noise=noise())) and not torch.equal(now, before)
    assert torch.equal(model.cache, torch.zeros(6))


class Caching(Single):
    """It keeps something of its weights at its first call."""

    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = self.last.weight.detach() * 2
        return nn.functional.conv2d(torch.relu(self.first(x.to(self.cache))), self.kept)


def test_what_the_first_call_of_such_a_module_keeps_is_followed() -> None:
    model = Caching()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = Sampler(model, SHAPE)
        with torch.no_grad():
            model.last.weight.mul_(-1)
        sampler.refresh()
    images = (sampler.sample(3, noise=noise(), runtime=runtime) for runtime in ("cpu", "reference"))
    assert torch.equal(*images)


@contextmanager
def opened() -> Iterator[object]:
    with open(__file__) as file:
        yield file


@pytest.mark.parametrize("runtime", ["auto", "reference"])
@pytest.mark.parametrize(
    "held",
    [
        lambda: nullcontext(threading.Lock()),
        opened,
        lambda: nullcontext(iter("abc")),
        lambda: nullcontext(torch),
    ],
    ids=["a lock", "a file", "an iterator", "a Python module"],
)
def test_what_has_no_copies_and_is_not_read_is_no_trouble(held: Any, runtime: Any) -> None:
    """Whether the model had it from the start or not."""
    model, expected = pixelcnn(), Sampler(pixelcnn(), SHAPE).sample(3, noise=noise())
    with held() as one, silence():
        vars(model)["notes"] = [1, {"held": one}]
        sampler = Sampler(model, SHAPE, runtime=runtime)
        assert torch.equal(sampler.sample(3, noise=noise()), expected)
        vars(model.conv_in)["notes"] = one
        assert torch.equal(sampler.sample(3, noise=noise()), expected)
        assert torch.equal(sampler.refresh().sample(3, noise=noise()), expected)
    take(model, trained_on(pixelcnn()))
    asserting.stale(sampler, expected)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_hook_that_logs_into_the_model_is_no_change(runtime: Any) -> None:
    model, logged = pixelcnn(), list[Tensor]()
    sampler = Sampler(model, SHAPE, runtime=runtime)
    vars(model)["logged"] = logged
    model.conv_in.register_forward_hook(
        lambda module, given, found: vars(model)["logged"].append(found.detach())
    )
    with silence():
        sampler.sample(1)
        sampler.refresh().sample(1)
    assert logged
    model.conv_in.register_forward_hook(
        lambda module, given, found: found * (1 + model.conv_in.weight.mean())
    )
    asserting.stale(sampler)


@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_a_borrowed_module_keeps_nothing_of_what_its_forward_left(runtime: str) -> None:
    model = NotCopied().train()
    model.last.eval()
    modes, attributes = [m.training for m in model.modules()], {*vars(model)}
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE, runtime=runtime)  # type: ignore[arg-type]  # a str
    sampler.sample(2)
    with pytest.warns(UserWarning, match="can't be copied"):
        likelihood.bits_per_dim(model, [torch.zeros(1, *SHAPE, dtype=torch.uint8)])
    assert [m.training for m in model.modules()] == modes and {*vars(model)} == attributes


def test_it_takes_its_condition_by_its_name() -> None:
    class Conditioned(NotCopied):
        def forward(self, x: Tensor, *, condition: Tensor) -> Tensor:  # type: ignore[override]  # another kind of model
            return super().forward(x) + condition[..., None, None]

    model, condition = Conditioned(), torch.randn(2, 5)
    images = torch.randint(0, 5, (2, *SHAPE), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(model, SHAPE, condition_shape=(5,))
        expected = -likelihood.nll(model, images, condition=condition)
    torch.testing.assert_close(sampler.log_prob(images, condition=condition), expected)


def test_a_borrowed_module_keeps_no_part_that_its_forward_added() -> None:
    class Adding(NotCopied):
        def forward(self, x: Tensor) -> Tensor:
            self.register_buffer("size", torch.tensor(x.shape[-1]))
            self.gain, self.identity = nn.Parameter(torch.ones(())), nn.Identity()
            return self.identity(super().forward(x) * self.gain)

    model = Adding()
    names = [[*model.state_dict()], [name for name, _ in model.named_modules()]]
    with pytest.warns(UserWarning, match="can't be copied"):
        Sampler(model, SHAPE, runtime="reference").sample(2)
    assert [[*model.state_dict()], [name for name, _ in model.named_modules()]] == names


def test_another_such_module_makes_a_sampler_build_anew() -> None:
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(NotCopied(), SHAPE)
        other = NotCopied()
        with torch.no_grad():
            other.last.weight.mul_(-1)
        expected = Sampler(other, SHAPE).sample(3, noise=noise())
    with (
        pytest.warns(UserWarning, match="NotCopied can't be copied"),
        pytest.warns(UserWarning, match="built anew, which takes longer: its model can't be copied"),
    ):
        assert torch.equal(sampler.refresh(other).sample(3, noise=noise()), expected)


def test_it_is_called_by_its_name() -> None:
    with pytest.warns(UserWarning, match="can't be copied"):
        sampler = Sampler(NotCopied(), SHAPE)
    assert repr(sampler).startswith("<Sampler of NotCopied")
    sampler.sample(1, runtime="reference")
    assert repr(sampler).startswith("<Sampler of NotCopied")


@pytest.mark.filterwarnings("ignore:.*can't be copied")
@pytest.mark.parametrize("classes", few([3, None], 1))
@pytest.mark.parametrize("runtime", ["auto", "reference"])
def test_numbers_that_a_hook_logs_into_what_can_t_be_copied(
    classes: int | None, runtime: RuntimeName
) -> None:
    model: Any = pixelcnn(classes=classes)
    model.single, logged = NoCopies(), list[float]()
    model.conv_in.register_forward_hook(lambda module, given, found: logged.append(found.mean().item()))
    labels = None if classes is None else torch.tensor([0, 2, 1])
    sampler = Sampler(model, SHAPE, runtime=runtime)
    for step in (1, 2):
        with torch.no_grad():
            model.conv_in.weight.mul_(1.1)
        model.counted = step
        with silence():
            sampler.refresh()
            model.counted = -step
            found = sampler.sample(3, labels, noise=noise())
        assert torch.equal(found, Sampler(model, SHAPE, runtime=runtime).sample(3, labels, noise=noise()))
