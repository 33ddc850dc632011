"""What the backend compiles computes what it did, in training and in inference, also after its weights have moved."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from public_networks import MaskedChild as Masked
from public_networks import stack_mask
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pixelcnn_fast import accelerate
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.rewriting import pipeline
from pixelcnn_fast.rewriting.backend import Backend
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from tests.needs import needs_native
from tests.tiers import thorough

CONVOLUTION, GATE = "masked_conv2d", "gated_activation"


class MaskedInPlace(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data *= self.mask
        return self.conv(x)


class GatedBlock(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.vertical = Masked(channels, 2 * channels, stack_mask(3, False), dilation)
        self.horizontal = Masked(channels, 2 * channels, stack_mask(1, False), dilation)
        self.link, self.out = nn.Conv2d(2 * channels, 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vertical(v)
        a, b = features.chunk(2, dim=1)
        moved = self.horizontal(h) + self.link(features)
        c, d = moved.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b), self.out(torch.sigmoid(d) * torch.tanh(c)) + h


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = raster_mask(5, 5, "A")
        self.first, self.blocks = Masked(1, 4, first), nn.ModuleList([GatedBlock(4, d) for d in (1, 2)])
        self.last = nn.Conv2d(4, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = h = self.first(x)
        for block in self.blocks:
            v, h = block(v, h)
        return self.last(F.elu(h))


class Swapped(nn.Module):
    """What a layer does besides a convolution with a mask: forward(layer, x)."""

    mask: Tensor
    ones: Tensor
    a: Tensor
    b: Tensor
    gain: Tensor
    c: Tensor
    other: Tensor
    soft: Tensor

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parameters: Tensor) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("mask", raster_mask(3, 3, "B").expand(4, 4, 3, 3).clone())
        self.register_buffer("ones", torch.ones(1, 1, 3, 3))
        for name, x in parameters.items():
            self.register_parameter(name, nn.Parameter(x))
        self.forward_of = forward

    def forward(self, x: Tensor) -> Any:
        return self.forward_of(self, x)

    def convolved(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.conv.bias, padding=1)

    @property
    def weight(self) -> Tensor:
        return self.conv.weight


def written_before(layer: Swapped, x: Tensor) -> Tensor:
    product = layer.weight * layer.mask
    layer.weight.detach().add_(0.1)
    return layer.convolved(x, product)


def product_written(layer: Swapped, x: Tensor) -> Tensor:
    product = layer.weight.detach() * layer.mask
    product[:, :, 2] = 1
    return layer.convolved(x, product)


def gate_written(layer: Swapped, x: Tensor) -> Tensor:
    features = layer.convolved(x, layer.weight).clone()
    t = torch.tanh(features[:, :2])
    features.detach().mul_(2)
    return t * torch.sigmoid(features[:, 2:])


def written_after(layer: Swapped, x: Tensor) -> Tensor:
    y = layer.convolved(x, layer.weight * layer.mask)
    layer.weight.data.add_(0.1)
    return y


def gate_written_after(layer: Swapped, x: Tensor) -> Tensor:
    features = layer.convolved(x, layer.weight).clone()
    gated = torch.tanh(features[:, :2]) * torch.sigmoid(features[:, 2:])
    features.detach().mul_(2)
    return gated


def gate_with_relu(layer: Swapped, x: Tensor) -> Tensor:
    features = layer.convolved(x, layer.weight).clone()
    t = torch.tanh(features[:, :2])
    F.relu(features.detach(), True)
    return t * torch.sigmoid(features[:, 2:])


def rows(layer: Swapped, x: Tensor) -> Tensor:
    a, b = layer.convolved(x, layer.weight).chunk(2, 2)
    return torch.tanh(a) * torch.sigmoid(b)


def exchanged(layer: Swapped, x: Tensor) -> Tensor:
    a, b = layer.convolved(x, layer.weight).chunk(2, 1)
    return torch.tanh(b) * torch.sigmoid(a)


def checkpointed(layer: Swapped, x: Tensor) -> Tensor:
    def body(x: Tensor) -> Tensor:
        return F.relu(layer.convolved(x, layer.weight * layer.mask))

    return checkpoint(body, x, use_reentrant=False)


def without_gradients(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.mul_(layer.mask)
    return layer.conv(x)


def times_equal(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.conv.weight *= layer.mask
    return layer.conv(x)


def of_data(layer: Any, x: Tensor) -> Tensor:
    layer.weight.data *= layer.mask
    return layer.conv(x)


def of_data_twice(layer: Swapped, x: Tensor) -> Tensor:
    return of_data(layer, torch.tanh(of_data(layer, x)))


def new_data(layer: Swapped, x: Tensor) -> Tensor:
    layer.weight.data = layer.weight.data * layer.mask
    return layer.conv(x)


def copied(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.copy_(layer.weight * layer.mask)
    return layer.conv(x)


def filled(layer: Swapped, x: Tensor) -> Tensor:
    layer.weight.data.masked_fill_(layer.mask == 0, 0)
    return layer.conv(x)


def masked_then_written(layer: Swapped, x: Tensor) -> Tensor:
    layer.weight.data.mul_(layer.mask)
    layer.weight.data.add_(0.1)
    return layer.conv(x)


def masked_then_written_in_part(layer: Swapped, x: Tensor) -> Tensor:
    layer.weight.data.mul_(layer.mask)
    layer.weight.data[:, :, 2] = 0.1
    return layer.conv(x)


def mask_written(layer: Swapped, x: Tensor) -> Tensor:
    y = of_data(layer, x)
    layer.mask.neg_()
    return y


def in_place_of_a_copy(layer: Swapped, x: Tensor) -> Tensor:
    weight = layer.weight.clone()
    weight *= layer.mask
    return layer.convolved(x, weight)


def one_mask_for_two(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.weight.mul_(layer.ones[..., :1] * layer.mask[:1, :1])
        layer.other.mul_(layer.mask[:1, :1])
    return layer.convolved(layer.convolved(x, layer.other), layer.weight)


def mask_that_learns(layer: Swapped, x: Tensor) -> Tensor:
    layer.soft.data *= 1
    return layer.convolved(x, layer.weight * layer.soft)


def gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def condition_written(layer: Swapped, x: Tensor) -> Tensor:
    condition = layer.c * 1
    y = gate(layer.conv(x) + condition)
    condition.detach().mul_(2)
    return y


def sum_read_twice(layer: Swapped, x: Tensor) -> Tensor:
    total = layer.conv(x) + layer.c
    return gate(total) + total[:, :2]


def halves_with_conditions(layer: Swapped, x: Tensor) -> Tensor:
    (a, b), (ca, cb) = layer.conv(x).chunk(2, 1), layer.c.chunk(2, 1)
    return torch.tanh(a + ca) * torch.sigmoid(cb + b)


def halves_with_maps(layer: Swapped, x: Tensor) -> Tensor:
    y, z = layer.conv(x), layer.convolved(x, layer.weight * layer.mask)
    return torch.sigmoid(y[:, 2:] + z[:, 2:]) * torch.tanh(y[:, :2] + z[:, :2])


def halves_with_exchanged_conditions(layer: Swapped, x: Tensor) -> Tensor:
    (a, b), (ca, cb) = layer.conv(x).chunk(2, 1), layer.c.chunk(2, 1)
    return torch.tanh(a + cb) * torch.sigmoid(b + ca)


def halves_with_conditions_written(layer: Swapped, x: Tensor) -> Tensor:
    y, c = layer.conv(x), layer.c * 1
    a = y[:, :2] + c[:, :2]
    c.detach().mul_(2)
    return torch.tanh(a) * torch.sigmoid(y[:, 2:] + c[:, 2:])


def product_without_gradients(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = layer.weight * layer.mask
    return layer.convolved(x, weight)


def tanh_without_gradients(layer: Swapped, x: Tensor) -> Tensor:
    y = layer.conv(x)
    with torch.no_grad():
        t = torch.tanh(y[:, :2])
    return t * torch.sigmoid(y[:, 2:])


def halves_without_gradients(layer: Swapped, x: Tensor) -> Tensor:
    y = layer.conv(x)
    with torch.no_grad():
        a, b = y.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b) * y.mean()


def sum_without_gradients(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        total = layer.conv(x) + layer.convolved(x, layer.weight)
    return gate(total) * x.mean()


def gate_without_gradients(layer: Swapped, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = gate(layer.conv(x))
    return y * x.mean()


def low_rank(layer: Swapped, x: Tensor) -> Tensor:
    return layer.convolved(x, (layer.weight + (layer.a @ layer.b)[:, :, None, None]) * layer.mask)


def masked_where(layer: Swapped, x: Tensor) -> Tensor:
    return layer.convolved(x, layer.mask * layer.weight * layer.gain)


# what a layer does, its further parameters, and how many convolutions and gates are rewritten
LAYERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Tensor], int, int]] = {
    "product": (lambda m, x: m.convolved(x, m.weight * m.mask), {}, 1, 0),
    "other order": (lambda m, x: m.convolved(x, m.mask * m.weight), {}, 1, 0),
    "gain of the result": (
        lambda m, x: m.gain * m.convolved(x, m.weight * m.mask),
        {"gain": torch.ones(())},
        1,
        0,
    ),
    "gain of the weight": (
        lambda m, x: m.convolved(x, m.gain * m.weight * m.mask),
        {"gain": torch.ones(4, 1, 1, 1)},
        1,
        0,
    ),
    "gain of the product": (masked_where, {"gain": torch.ones(4, 1, 1, 1)}, 1, 0),
    "scale of the product": (lambda m, x: m.convolved(x, m.weight * m.mask * 0.3 / 7), {}, 1, 0),
    "two masks": (lambda m, x: m.convolved(x, m.weight * m.mask * m.ones), {}, 1, 0),
    "where": (lambda m, x: m.convolved(x, torch.where(m.mask > 0, m.weight, 0.0)), {}, 1, 0),
    "where not": (
        lambda m, x: m.convolved(x, torch.where(m.mask == 0, torch.zeros_like(m.weight), m.weight)),
        {},
        1,
        0,
    ),
    "method where": (lambda m, x: m.convolved(x, m.weight.where(m.mask == 1, 0)), {}, 1, 0),
    "where ones": (lambda m, x: m.convolved(x, torch.where(m.mask > 0, m.weight, 1.0)), {}, 0, 0),
    "masked_fill": (lambda m, x: m.convolved(x, m.weight.masked_fill(m.mask == 0, 0)), {}, 1, 0),
    "masked_fill of a gain": (
        lambda m, x: m.convolved(x, -(m.gain * m.weight).masked_fill(m.mask == 0, 0.0)),
        {"gain": torch.ones(4, 1, 1, 1)},
        1,
        0,
    ),
    "without gradients": (without_gradients, {}, 1, 0),
    "times equal": (times_equal, {}, 1, 0),
    "data": (of_data, {}, 1, 0),
    "data, twice in a graph": (of_data_twice, {}, 1, 0),
    "new data": (new_data, {}, 1, 0),
    "copied": (copied, {}, 1, 0),
    "filled": (filled, {}, 1, 0),
    "masked, then written": (masked_then_written, {}, 0, 0),
    "masked, then written in part": (masked_then_written_in_part, {}, 0, 0),
    "mask written": (mask_written, {}, 0, 0),
    "in place of a copy": (in_place_of_a_copy, {}, 1, 0),
    "one mask for two": (one_mask_for_two, {"other": torch.randn(4, 4, 3, 3)}, 1, 0),
    "mask that learns": (mask_that_learns, {"soft": raster_mask(3, 3, "B")[None, None]}, 0, 0),
    "low rank": (low_rank, {"a": torch.randn(4, 2), "b": torch.zeros(2, 4)}, 1, 0),
    "learned mask": (
        lambda m, x: m.convolved(x, m.weight * torch.sigmoid(m.soft)),
        {"soft": torch.ones(1)},
        0,
        0,
    ),
    "learned mask that has zeros": (
        lambda m, x: m.convolved(x, m.weight * m.soft),
        {"soft": raster_mask(3, 3, "B")[None, None]},
        0,
        0,
    ),
    "computed mask": (lambda m, x: m.convolved(x, m.weight * (m.mask > 0).to(m.weight)), {}, 1, 0),
    "dropped weights": (lambda m, x: m.convolved(x, m.weight * F.dropout(m.mask, 0.5, m.training)), {}, 0, 0),
    "weight used twice": (lambda m, x: m.convolved(x, p := m.weight * m.mask) + p.sum(), {}, 1, 0),
    "dropout": (lambda m, x: F.dropout(m.convolved(x, m.weight * m.mask), 0.5, m.training), {}, 1, 0),
    "another function in training": (
        lambda m, x: m.convolved(x, m.weight * m.mask) * (1.1 if m.training else 1),
        {},
        1,
        0,
    ),
    "norm": (lambda m, x: F.relu(m.norm(m.convolved(x, m.weight * m.mask))), {}, 1, 0),
    "weight written before": (written_before, {}, 1, 0),
    "weight written after": (written_after, {}, 1, 0),
    "gate written after": (gate_written_after, {}, 0, 0),
    "product written": (product_written, {}, 0, 0),
    "checkpoint": (checkpointed, {}, 1, 0),
    "product without gradients": (product_without_gradients, {}, 1, 0),
    "gate partly without gradients": (tanh_without_gradients, {}, 0, 1),
    "gate of halves without gradients": (halves_without_gradients, {}, 0, 1),
    "gate of a sum without gradients": (sum_without_gradients, {}, 0, 1),
    "gate without gradients": (gate_without_gradients, {}, 0, 1),
    "gate of the input": (lambda m, x: gate(x), {}, 0, 1),
    "gate of a gate": (lambda m, x: gate(gate(m.conv(x))), {}, 0, 1),
    "gate of a result": (lambda m, x: (lambda y: (gate(y), y))(m.conv(x))[0], {}, 0, 1),
    "no mask": (lambda m, x: m.convolved(x, m.weight * 2), {}, 0, 0),
    "mask of ones": (lambda m, x: m.convolved(x, m.weight * m.ones), {}, 0, 0),
    "gate of slices": (
        lambda m, x: (lambda f: torch.tanh(f[:, :2]) * f[:, 2:].sigmoid())(m.convolved(x, m.weight)),
        {},
        0,
        1,
    ),
    "gate of a split": (
        lambda m, x: (lambda parts: parts[0].tanh() * parts[1].sigmoid())(
            m.convolved(x, m.weight).split(2, dim=1)
        ),
        {},
        0,
        1,
    ),
    "gate of a sum of two dtypes": (lambda m, x: gate(m.conv(x) + x.float()), {}, 0, 1),
    "gate of a sum": (lambda m, x: gate(m.conv(x) + x), {}, 0, 1),
    "gate of a sum of maps": (lambda m, x: gate(m.conv(x) + m.convolved(x, m.weight)), {}, 0, 1),
    "gate with a condition per image": (lambda m, x: gate(x.mean((2, 3), keepdim=True) + m.conv(x)), {}, 0, 1),
    "gate with a condition for all": (lambda m, x: gate(m.conv(x) + m.c), {"c": torch.randn(1, 4, 1, 1)}, 0, 1),
    "gate with a condition for each": (
        lambda m, x: gate(m.conv(x) + m.c),
        {"c": torch.randn(2, 4, 1, 1)},
        0,
        1,
    ),
    "gate of halves with conditions": (halves_with_conditions, {"c": torch.randn(2, 4, 1, 1)}, 0, 1),
    "gate of halves with maps": (halves_with_maps, {}, 1, 1),
    "gate of halves with exchanged conditions": (
        halves_with_exchanged_conditions,
        {"c": torch.randn(2, 4, 1, 1)},
        0,
        0,
    ),
    "gate of halves with conditions for all": (halves_with_conditions, {"c": torch.randn(1, 4, 1, 1)}, 0, 0),
    "gate of halves with conditions that are written": (
        halves_with_conditions_written,
        {"c": torch.randn(2, 4, 1, 1)},
        0,
        0,
    ),
    "where a tensor of zero": (
        lambda m, x: m.convolved(x, torch.where(m.mask > 0, m.weight, torch.tensor(0.0, dtype=torch.float64))),
        {},
        1,
        0,
    ),
    "gate with a condition per pixel": (
        lambda m, x: gate(m.conv(x) + m.c),
        {"c": torch.randn(2, 1, 6, 5)},
        0,
        1,
    ),
    "gate with a condition that is written": (condition_written, {"c": torch.randn(2, 4, 1, 1)}, 0, 1),
    "gate of a sum that is read twice": (sum_read_twice, {"c": torch.randn(2, 4, 1, 1)}, 0, 1),
    "gate of thirds": (
        lambda m, x: (lambda f: torch.tanh(f[:, :1]) * f[:, 1:].sigmoid())(m.convolved(x, m.weight)),
        {},
        0,
        0,
    ),
    "gate of rows": (rows, {}, 0, 0),
    "gate of exchanged halves": (exchanged, {}, 0, 0),
    "gate written": (gate_written, {}, 0, 0),
    "gate written by relu": (gate_with_relu, {}, 0, 0),
}


INSIDE = (
    "gate of halves with conditions",
    "gate of halves with maps",
    "gate of a sum of maps",
    "gate with a condition per image",
    "gate with a condition for each",
)


def moved(model: nn.Module) -> None:
    """As training moves its parameters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def outputs_and_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)  # of dropout
    x = x.clone().requires_grad_()
    y = model(x)
    model.zero_grad()
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in (x, *model.parameters()) if p.grad is not None)]


def check(model: nn.Module, x: Tensor, mode: Any = "eager") -> Backend:
    """Compares a compiled copy with the model, in training and in inference, before and after its weights move."""
    torch._dynamo.reset()
    model = model.double().train()
    fast, backend = copy.deepcopy(model), Backend(mode)
    fast.compile(backend=backend)
    for _ in range(2):
        found, expected = outputs_and_gradients(fast, x), outputs_and_gradients(model, x)
        assert len(found) == len(expected) and found[0].stride() == expected[0].stride()
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        for each in (fast, model):
            moved(each)
    fast.eval(), model.eval()
    with torch.no_grad():
        found, expected = [fast(x)], [model(x)]
    torch.testing.assert_close(found[0], expected[0])
    assert found[0].stride() == expected[0].stride()
    return backend


def times(backend: Backend, op: str) -> int:
    """How often an op was put in, in training: it is compiled again for inference."""
    return sum(bool(op in what) for what, _ in backend.report.rewritten)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_it_did(name: str) -> None:
    forward, parameters, convolutions, gates = LAYERS[name]
    layer = Swapped(forward, **parameters)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    backend = check(layer, x)
    assert (times(backend, CONVOLUTION), bool(times(backend, GATE))) == (convolutions, gates), str(
        backend.report
    )
    assert ("with what is added" in str(backend.report)) == (name in INSIDE)


def in_place_with_ones(m: Swapped, x: Tensor) -> Tensor:
    return m.convolved(x, m.weight.clone().masked_fill_(m.mask == 0, 1.0))


def gated(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * torch.sigmoid(b)


# what is no masked convolution or no gate of halves, though it looks like one; f is a map [2, 4, 6, 5]
LOOKALIKES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "filled with ones": lambda m, f: m.convolved(f, m.weight.masked_fill(m.mask == 0, 1.0)),
    "filled with ones in place": in_place_with_ones,
    "a tensor of one where the mask is zero": lambda m, f: m.convolved(
        f, torch.where(m.mask > 0, m.weight, torch.tensor(1.0, dtype=torch.float64))
    ),
    "a stride": lambda m, f: F.conv2d(f, m.weight * m.mask, stride=(1, 2)),
    "groups": lambda m, f: F.conv2d(f, (m.weight * m.mask)[:, :2], groups=2),
    "groups of masked parts": lambda m, f: F.conv2d(f, m.weight[:, :2] * m.mask[:, :2], groups=2),
    "one image": lambda m, f: F.conv2d(f[0], m.weight * m.mask),
    "padded unevenly": lambda m, f: F.conv2d(f, m.weight[:, :, :2] * m.mask[:, :, :2], padding="same"),
    "every second channel": lambda m, f: gated(f[:, :2:2], f[:, 2::2]),
    "halves of some rows": lambda m, f: gated(f[:, :2, 1:], f[:, 2:, 1:]),
    "halves of some images": lambda m, f: gated(f[:1, :2], f[:1, 2:]),
    "quarters": lambda m, f: gated(*torch.cat([f, f + 1], 1).split(2, 1)[:2]),
    "quarters by number": lambda m, f: gated(*torch.cat([f, f + 1], 1).chunk(4, 1)[:2]),
    "later quarters": lambda m, f: gated(*torch.cat([f, f + 1], 1).split(2, 1)[1:3]),
    "images": lambda m, f: gated(*f.chunk(2)),
    "halves with conditions in another dtype": lambda m, f: (
        lambda c: gated(f[:, :2] + c[:, :2], f[:, 2:] + c[:, 2:])
    )(f.float()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_what_only_looks_like_a_pattern_is_left() -> None:
    torch._dynamo.reset()
    model, backend = Swapped(lambda m, x: [form(m, 1 * x) for form in LOOKALIKES.values()]).double(), Backend()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    found, expected = torch.compile(model, backend=backend)(x), model(x)
    torch.testing.assert_close(
        dict(zip(LOOKALIKES, found, strict=True)), dict(zip(LOOKALIKES, expected, strict=True))
    )
    assert not backend.report.rewritten and not backend.report.warnings, str(backend.report)


class Chain(nn.Module):
    """Many layers, of which each has a convolution of its own before it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        given = (LAYERS[name][:2] for name in names)
        self.layers = nn.ModuleList(
            Swapped(forward, **{k: v.clone() for k, v in more.items()}) for forward, more in given
        )
        self.links = nn.ModuleList(nn.LazyConv2d(4, 1) for _ in names)

    def forward(self, x: Tensor) -> Tensor:
        for layer, link in zip(self.layers, self.links, strict=True):
            x = torch.tanh(link(layer(x)))
            if x.shape[2] < 6:  # a gate of rows leaves half of them
                x = x.repeat(1, 1, 2, 1)
        return x


@needs_native  # where a compiler is
@pytest.mark.parametrize("part", range(4))
@thorough
def test_layers_compute_what_they_did_in_inductor(part: int) -> None:
    names = [name for name in LAYERS if name != "new data"][
        part::4
    ]  # of which Inductor itself lays results out anew
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Chain(names)
    model.double()(x)  # makes the links
    with torch._inductor.config.patch(fallback_random=True):
        backend = check(model, x, "inductor")
    found = sum(n for (what, _), n in backend.report.rewritten.items() if CONVOLUTION in what)
    assert found >= sum(LAYERS[name][2] for name in names), str(backend.report)
    tag = getattr(torch.compiler.config, "cache_key_tag", "pixelcnn_fast")
    assert "pixelcnn_fast" in tag  # what Inductor keeps on disk is for these ops alone


@pytest.mark.parametrize(
    "mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])]
)  # where a compiler is
def test_the_tutorial_s_network_is_rewritten(mode: str) -> None:
    x = torch.randn(2, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    backend = check(Gated(), x, mode)
    assert (
        sum(backend.report.rewritten.values()) == 2 * (5 + 4) + 2
    )  # in training and in inference, which adds sums
    text = str(backend.report)
    assert (
        "conv2d [8, 4, 3, 3] → masked_conv2d (4 times): public_networks.py" in text
        and "tanh · sigmoid → gated_activation" in text
    )
    assert "test_backend.py" in text and "return F.conv2d(x, weight" in text
    assert "conv2d [7, 4, 1, 1]: its weight has no mask, and no padding or crop could be taken in" in text


def test_a_call_that_a_module_of_pytorch_makes_is_named_by_the_module() -> None:
    torch._dynamo.reset()
    model, backend = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1))), Backend()
    torch.compile(model, backend=backend)(torch.randn(2, 4, 6, 5))
    assert str(backend.report).endswith(": in module 1.0")


@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])])
@pytest.mark.parametrize("live", [False, True])
def test_weights_that_are_masked_in_place_have_the_gradients_of_plain_pytorch_or_live_ones(
    mode: Any, live: bool
) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Swapped(of_data).double()
    fast, backend = copy.deepcopy(model), Backend(mode, live)
    fast.compile(backend=backend)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    for each in (fast, model):
        each(x).square().sum().backward()
    found, expected = fast.weight.grad, model.weight.grad
    assert found is not None and expected is not None and bool((expected[model.mask == 0] != 0).all())
    torch.testing.assert_close(found, expected * model.mask if live else expected)
    assert ("gradients of live taps only" if live else "dense gradients") in str(backend.report)


CHANGES: dict[str, Callable[[Masked], Any]] = {
    "in place": lambda layer: layer.mask[..., 2, 1].fill_(1),
    "replaced by ones": lambda layer: setattr(layer, "mask", torch.ones_like(layer.mask)),
    "replaced by real numbers": lambda layer: setattr(layer, "mask", torch.full_like(layer.mask, 0.3)),
    "through .data": lambda layer: layer.mask.data.zero_(),
    "replaced by booleans": lambda layer: setattr(layer, "mask", raster_mask(3, 3, "A")[None, None].bool()),
}


class MaskedByWhere(Masked):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv._conv_forward(x, torch.where(self.mask != 0, self.conv.weight, 0.0), self.conv.bias)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("style", [Masked, MaskedInPlace, MaskedByWhere])
@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])])
def test_a_mask_that_changes_is_followed(name: str, style: type[Masked], mode: Any) -> None:
    torch._dynamo.reset()
    model = style(2, 3, raster_mask(3, 3, "B")).double()
    fast, backend = copy.deepcopy(model), Backend(mode)
    fast.compile(backend=backend)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    for each in (fast, model):
        outputs_and_gradients(each, x)
        CHANGES[name](each)
    for a, b in zip(outputs_and_gradients(fast, x), outputs_and_gradients(model, x), strict=True):
        torch.testing.assert_close(a, b)
    assert times(backend, CONVOLUTION), str(backend.report)


@pytest.mark.parametrize("name", ["product", "data"])
def test_second_derivatives_go_through_what_is_rewritten(name: str) -> None:
    torch._dynamo.reset()
    model = Gated().double()
    if name == "data":
        for module in [m for m in model.modules() if isinstance(m, Masked)]:
            module.__class__ = MaskedInPlace
    fast = copy.deepcopy(model)
    fast.compile(backend=Backend())

    def penalty(model: nn.Module) -> tuple[Tensor, ...]:
        x = torch.randn(
            1, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), tuple(model.parameters()), allow_unused=True)

    for a, b in zip(penalty(fast), penalty(model), strict=True):
        torch.testing.assert_close(a, b)


@needs_native
@thorough
def test_inductor_refuses_second_derivatives() -> None:
    torch._dynamo.reset()
    model, x = Gated().double(), torch.randn(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    model.compile(backend=Backend("inductor"))
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.square().sum().backward()


@pytest.mark.parametrize("image", [False, True])
def test_results_are_laid_out_as_they_were(image: bool) -> None:
    model, x = Gated().to(memory_format=torch.channels_last), torch.randn(2, 1, 6, 7, dtype=torch.float64)
    check(model, x.to(memory_format=torch.channels_last) if image else x)


def test_a_rewrite_that_fails_costs_nothing_but_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()

    def fail(captured: CapturedGraph) -> None:
        for node in list(captured.graph.nodes)[::-1][1:3]:
            node.args = ()
        raise KeyError("a mistake")

    monkeypatch.setattr(pipeline, "REWRITES", (*pipeline.REWRITES[:3], fail))
    model, x, backend = Gated(), torch.randn(2, 1, 6, 7), Backend()
    with pytest.warns(UserWarning, match="rewriting it failed .KeyError: 'a mistake'.. Please report it"):
        found = torch.compile(model, backend=backend)(x)
    torch.testing.assert_close(found, model(x))
    assert "note       a graph stays as it is" in str(backend.report) and not backend.report.rewritten


def test_it_has_a_name() -> None:
    torch._dynamo.reset()
    model, x = Masked(2, 3, raster_mask(3, 3, "B")), torch.randn(1, 2, 4, 4)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="pixelcnn_fast")(x), expected)
    in_place = MaskedInPlace(2, 3, raster_mask(3, 3, "B"))
    for live in (False, True):
        torch._dynamo.reset()
        in_place.zero_grad()
        compiled = torch.compile(in_place, backend="pixelcnn_fast", options={"live_gradients": live})
        compiled(x).sum().backward()
        gradient = in_place.conv.weight.grad
        assert gradient is not None and gradient[:, :, 2].any() == (not live)
    wrong: list[dict[str, Any]] = [{"speed": 2}, {"mode": "fast"}, {"live_gradients": 2}]
    for options in wrong:
        torch._dynamo.reset()
        with pytest.raises(Exception, match="expected {'mode': 'eager'} or {'mode': 'inductor'}"):
            torch.compile(model, backend="pixelcnn_fast", options=options)(x)


ASKING: list[Callable[[nn.Module], Any]] = [
    lambda model: accelerate(model, "inductor"),
    lambda model: torch.compile(model, backend="pixelcnn_fast", options={"mode": "inductor"}),
]


@pytest.mark.parametrize("asked", ASKING, ids=["accelerate", "by name"])
def test_inductor_is_given_what_was_rewritten(
    asked: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is replaced by one that needs no compiler."""
    torch._dynamo.reset()
    given: list[str] = []

    def compile_fx(module: torch.fx.GraphModule, inputs: Any) -> Any:
        given.append(module.code)
        return module.forward

    monkeypatch.setattr(importlib.import_module("torch._inductor.compile_fx"), "compile_fx", compile_fx)
    model, x = Masked(2, 3, raster_mask(3, 3, "B")), torch.randn(1, 2, 4, 4)
    expected = model(x)
    torch.testing.assert_close(asked(model)(x), expected)
    (code,) = given
    assert CONVOLUTION in code


def test_an_unknown_mode_is_refused() -> None:
    mode: Any = "fast"
    with pytest.raises(ValueError, match="mode is 'fast', expected 'eager' or 'inductor'"):
        Backend(mode)
