"""A refreshed sampler is bit by bit a new one, however the model makes its weights, and whatever they become."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NonFiniteLogits
from tests.sampler_life.common import BEFORE, SHAPE, noise, refreshed, silence

Weight = Callable[["Network"], Tensor]
Change = Callable[["Network"], object]


class Network(nn.Module):
    levels = 5
    mask: Tensor
    gain: Tensor

    def __init__(self, weight: Weight, mask_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.last = nn.Parameter(torch.randn(6, 1, 3, 3)), nn.Conv2d(6, 5, 1)
        mask = torch.zeros(6, 1, 3, 3, dtype=mask_dtype)
        mask[:, :, 0] = mask[:, :, 1, 0] = 1
        self.register_buffer("mask", mask)
        self.register_buffer("gain", torch.zeros(()))
        self.weight_of = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(F.conv2d(x.to(self.weight), self.weight_of(self), padding=1)))


def product(net: Network) -> Tensor:
    return net.weight * net.mask


def columns(net: Network) -> Tensor:
    return torch.stack([net.weight[..., i] * 2 + 1 for i in range(3)], -1) * net.mask


def joined_columns(net: Network) -> Tensor:
    rows = torch.cat([net.weight.flatten(1)[:, i] * 2 for i in range(9)]).view(9, 6)
    return rows.flip(0).t().reshape(6, 1, 3, 3) * net.mask


def cast_mask(net: Network) -> Tensor:
    return net.weight * net.mask.type_as(net.weight)


def rounded_roots(net: Network) -> Tensor:
    roots = [net.weight[i].abs().add(0.1).bfloat16().rsqrt() for i in range(6)]
    return torch.stack(roots).float() * net.mask


def signed(net: Network) -> Tensor:
    return product(net) * torch.copysign(torch.ones(()), net.gain)


def exponential(net: Network) -> Tensor:
    return net.weight.exp() * net.mask


def distinct(net: Network) -> Tensor:
    return product(net) * torch.unique(net.last.bias).sum()


def in_place(net: Network) -> Tensor:
    net.weight.data.mul_(net.mask)
    return net.weight


def moved(net: Network) -> Tensor:
    return net.weight.data.add_(0.1)


def at_a_masked_tap(value: float) -> Change:
    return lambda net: net.weight[0, 0, 2, 2].fill_(value)


def zero_first(weight: Weight) -> Callable[[], Network]:
    def build() -> Network:
        net = Network(weight)
        net.weight.data[0, 0, 0, 0] = 0
        return net

    return build


def of(weight: Weight, **settings: Any) -> Callable[[], Network]:
    return lambda: Network(weight, **settings)


CASES: dict[str, tuple[Callable[[], Network], Change]] = {
    "columns": (of(columns), moved),
    "joined columns": (of(joined_columns), moved),
    "a mask of float64": (of(cast_mask, mask_dtype=torch.float64), moved),
    "a mask of float16": (of(cast_mask, mask_dtype=torch.float16), moved),
    "roots in bfloat16": (of(rounded_roots), moved),
    "the sign of zero": (of(signed), lambda net: net.gain.fill_(-0.0)),
    "written in place": (of(in_place), moved),
    "infinity at a masked tap": (of(product), at_a_masked_tap(float("inf"))),
    "NaN at a masked tap": (of(product), at_a_masked_tap(float("nan"))),
    "NaN at a masked tap, and a zero": (zero_first(product), at_a_masked_tap(float("nan"))),
    "overflow at a masked tap": (of(exponential), at_a_masked_tap(1000.0)),
    "another number of numbers": (of(distinct), lambda net: net.get_parameter("last.bias").fill_(0.1)),
}


@BEFORE
@pytest.mark.parametrize("name", CASES)
def test_a_refreshed_sampler_is_bit_by_bit_a_new_one(name: str, before: int) -> None:
    build, change = CASES[name]
    net = build()
    sampler = refreshed(Sampler(net, SHAPE), before)
    with torch.no_grad():
        change(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = is_refused(lambda: Sampler(copy.deepcopy(net), SHAPE))
        assert is_refused(sampler.refresh) == refused
    if refused:
        return
    new, images = Sampler(net, SHAPE), torch.zeros(2, *SHAPE, dtype=torch.uint8)
    for runtime in ("cpu", "eager"):
        assert torch.equal(sampler.logits(images, runtime=runtime), new.logits(images, runtime=runtime))
    assert sampler.fingerprint() == new.fingerprint()


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except NonFiniteLogits:
        return True
    return False


@pytest.mark.parametrize("name", ["columns", "joined columns", "a mask of float64", "roots in bfloat16"])
@BEFORE
def test_that_needs_no_building(name: str, before: int) -> None:
    build, change = CASES[name]
    net = build()
    sampler = refreshed(Sampler(net, SHAPE), before)
    with torch.no_grad():
        change(net)
    with silence():
        sampler.refresh()


def test_a_model_that_writes_into_its_weights_is_not_taken_for_a_changed_one() -> None:
    net = Network(in_place)
    sampler = Sampler(net, SHAPE)
    moved(net)
    sampler.refresh()
    before = sampler.fingerprint()
    net(torch.zeros(1, *SHAPE))
    with silence():
        sampler.sample(3, noise=noise(), runtime="reference")
    assert sampler.fingerprint() == before == Sampler(net, SHAPE).fingerprint()


class Dilated(nn.Module):
    levels = 5

    def __init__(self, dilation: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 5, (1, 2), dilation=(1, dilation))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x.float(), (self.conv.dilation[1] + 1, 0)))[..., : x.shape[-1]]


def test_another_dilation_is_another_setting() -> None:
    sampler, images = Sampler(Dilated(1), SHAPE), torch.ones(1, *SHAPE, dtype=torch.uint8)
    with pytest.warns(UserWarning, match="something else now: its conv.dilation is another"):
        sampler.refresh(other := Dilated(2))
    assert torch.equal(sampler.logits(images), Sampler(other, SHAPE).logits(images))


def test_refreshed_in_inference_mode_it_works_outside() -> None:
    net = Network(product)
    sampler = Sampler(net, SHAPE)
    moved(net)
    with torch.inference_mode():
        sampler.refresh()
    images = sampler.sample(3, noise=noise(), runtime="reference")
    assert (
        sampler.log_prob(images).requires_grad
        and copy.deepcopy(sampler).fingerprint() == sampler.fingerprint()
    )
