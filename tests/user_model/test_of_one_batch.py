"""Models that keep something for the size of their first batch, or squeeze a batch of one away."""

import math
import warnings
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import ModelFailed, Sampler, check_causal
from pixelcnn_fast.likelihood import bits_per_dim
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.user_model.of_one_batch import with_any_batch
from tests.system.agreement import assert_runtimes_agree

SHAPE, LEVELS = (1, 5, 6), 4


class Squeezing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = MaskedConv2d(1, 6, 3, "A"), nn.Conv2d(6, LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.first(x))).squeeze()


class Keeping(nn.Module):
    """A channel of ones, made in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = MaskedConv2d(2, 6, 3, "A"), nn.Conv2d(6, LEVELS, 1)
        self.ones: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.ones is None:
            self.ones = self.some(x)
        return self.out(F.relu(self.first(torch.cat([x, self.ones], 1))))

    def some(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 1, *x.shape[2:], dtype=x.dtype)


@cache
def plane(n: int, size: tuple[int, int]) -> Tensor:
    return torch.linspace(0, 1, size[0] * size[1], dtype=torch.float64).view(1, 1, *size).repeat(n, 1, 1, 1)


class Memoising(Keeping):
    """A channel by the batch's size; where: in the module, or in a cache of all modules."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.kept = where, dict[int, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        n, *size = len(x), *x.shape[2:]
        if self.where == "module" and n not in self.kept:
            self.kept[n] = plane.__wrapped__(n, size)
        kept = self.kept[n] if self.where == "module" else plane(n, tuple(size))
        return self.out(F.relu(self.first(torch.cat([x, kept], 1))))


@pytest.mark.parametrize("where", ["module", "cache"])
@pytest.mark.parametrize("before", [[], [1], [2], [1, 2, 3]])
def test_what_is_memoised_by_the_size_of_the_batch(where: str, before: list[int]) -> None:
    """Which sizes have been seen before makes no difference."""
    torch.manual_seed(0)
    plane.cache_clear()
    model = Memoising(where).double().eval()
    for n in before:
        model(torch.zeros(n, *SHAPE, dtype=torch.float64))
    sampler = Sampler(model, SHAPE, levels=LEVELS, image_form="unit")
    assert_runtimes_agree(sampler, 5, batch_sizes=(None, 1, 2))
    model.first.weight.data *= 2
    assert_runtimes_agree(sampler.refresh(), 5)


class Crowded(Keeping):
    """Two such channels, and a weight of one row, which is one of many energies of none."""

    def __init__(self) -> None:
        super().__init__()
        self.energies = nn.Conv2d(LEVELS, 1, 1, bias=False)
        self.threes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        if self.threes is None:
            self.threes = 3 * self.some(x)
        return (
            h
            * self.energies(h).logsumexp(1, keepdim=True)
            * torch.cat([h[:, :1], self.threes], 1).sum(1, True)
        )


def called(model: nn.Module, n: int = 16) -> nn.Module:
    model(torch.zeros(n, *SHAPE, dtype=torch.float64))
    return model


of_any_batch = pytest.mark.parametrize(
    "make",
    [
        lambda: Squeezing().double(),
        lambda: Keeping().double(),
        *(partial(lambda n: called(Keeping().double(), n), n) for n in (1, 2, 3, 16)),
        *(partial(lambda n: called(Crowded().double(), n), n) for n in (1, 2)),
    ],
)


@of_any_batch
def test_any_number_of_images_is_drawn(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    kept = getattr(model, "ones", None)
    sampler = Sampler(model, SHAPE, levels=LEVELS, image_form="unit")
    assert_runtimes_agree(sampler, batch_sizes=(None, 1, 2))
    check_causal(model, SHAPE, levels=LEVELS, image_form="unit")
    assert getattr(model, "ones", None) is kept  # the user's own is left alone
    with torch.no_grad():
        model.get_parameter("out.weight").mul_(1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as it does where it has to build anew
        sampler.refresh()
    assert_runtimes_agree(sampler)


def test_images_that_are_kept_and_differ_are_refused() -> None:
    class Random(Keeping):
        def some(self, x: Tensor) -> Tensor:
            return torch.rand(len(x), 1, *x.shape[2:], dtype=x.dtype)

    with pytest.raises(ModelFailed, match="Sizes of tensors must match"):
        Sampler(called(Random().double().eval()), SHAPE, levels=LEVELS, image_form="unit")


@pytest.mark.parametrize("where", ["buffer", "late buffer", "parameter"])
@pytest.mark.parametrize("before", [0, 1, 16])
def test_what_is_kept_may_be_registered(where: str, before: int) -> None:
    class Registering(Keeping):
        def forward(self, x: Tensor) -> Tensor:
            if self.ones is None and where == "buffer":
                self.ones = self.some(x)
            elif self.ones is None:
                del self.ones
                if where == "parameter":
                    self.ones = nn.Parameter(self.some(x), requires_grad=False)
                else:
                    self.register_buffer("ones", self.some(x), persistent=False)
            return super().forward(x)

    torch.manual_seed(0)
    model = Registering().double().eval()
    if where == "buffer":
        del model.ones
        model.register_buffer("ones", None)
    if before:
        model(torch.zeros(before, *SHAPE, dtype=torch.float64))
    sampler = Sampler(model, SHAPE, levels=LEVELS, image_form="unit")
    assert_runtimes_agree(sampler, batch_sizes=(None, 1, 2))
    check_causal(model, SHAPE, levels=LEVELS, image_form="unit")
    assert (model.ones is None) == (not before)


@of_any_batch
def test_any_number_of_images_is_scored(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    kept = getattr(model, "ones", None)
    sampler = Sampler(model, SHAPE, levels=LEVELS, image_form="unit")
    images = sampler.sample(5)
    first, others, last = (sampler.log_prob(x) for x in (images[:1], images[1:3], images[3:]))
    assert getattr(model, "ones", None) is kept
    logits = sampler.logits(images)[:, 0].log_softmax(-1)
    expected = logits.gather(-1, images.long().movedim(1, -1)).sum((1, 2, 3))
    assert torch.allclose(torch.cat([first, others, last]), expected)
    first.sum().backward()
    assert model.get_parameter("out.bias").grad is not None
    loader = [x.double() / (LEVELS - 1) for x in (images[:1], images[1:3], images[3:])]
    bits = bits_per_dim(model, loader, levels=LEVELS, image_form="unit")
    assert bits == pytest.approx(-float(expected.sum()) / images.numel() / math.log(2))
    assert getattr(model, "ones", None) is kept


def test_weights_are_left_alone() -> None:
    """Even those whose rows are alike, of as many rows as the batch before had images."""
    net = nn.Conv2d(3, 5, 1)
    nn.init.ones_(net.weight)
    net.requires_grad_(False).register_buffer("scale", torch.ones(5, 2))
    seen = list[torch.Size]()

    def failing(x: nn.Module) -> None:
        seen.append(x.get_parameter("weight").shape)
        raise ModelFailed

    with pytest.raises(ModelFailed):
        with_any_batch(failing, net, 7)
    assert seen == [(5, 3, 1, 1)]
