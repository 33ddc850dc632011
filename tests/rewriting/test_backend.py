"""What the backend compiles computes what it did, in training and in inference, also after its weights have moved."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from public_networks import MaskedChild as Masked
from public_networks import Tutorial
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pixelcnn_fast import accelerate
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.rewriting import pipeline
from pixelcnn_fast.rewriting.backend import Backend
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from tests.needs import needs_native
from tests.rewriting.networks import (
    Programmed,
    check,
    compiled_copy,
    images,
    in_order,
    outputs_and_gradients,
    times,
)
from tests.tiers import few, thorough

CONVOLUTION, GATE = "masked_conv2d", "gated_activation"


class MaskedInPlace(Masked):
    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.data *= self.mask
        return self.conv(x)


def product_written(m: Any, x: Tensor) -> Tensor:
    product = m.weight.detach() * m.mask
    product[:, :, 2] = 1
    return m.convolved(x, product)


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.weight.mul_(m.mask)
    return m.conv(x)


def times_equal(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.conv.weight *= m.mask
    return m.conv(x)


def of_data(m: Any, x: Tensor) -> Tensor:
    m.weight.data *= m.mask
    return m.conv(x)


def new_data(m: Any, x: Tensor) -> Tensor:
    m.weight.data = m.weight.data * m.mask
    return m.conv(x)


def copied(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.weight.copy_(m.weight * m.mask)
    return m.conv(x)


def masked_then_written_in_part(m: Any, x: Tensor) -> Tensor:
    m.weight.data.mul_(m.mask)
    m.weight.data[:, :, 2] = 0.1
    return m.conv(x)


def in_place_of_a_copy(m: Any, x: Tensor) -> Tensor:
    weight = m.weight.clone()
    weight *= m.mask
    return m.convolved(x, weight)


def one_mask_for_two(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.weight.mul_(m.ones[..., :1] * m.mask[:1, :1])
        m.b.weight.mul_(m.mask[:1, :1])
    return m.convolved(m.convolved(x, m.b.weight), m.weight)


def mask_that_learns(m: Any, x: Tensor) -> Tensor:
    m.learned.data *= 1
    return m.convolved(x, m.weight * m.learned)


def gated(a: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(a) * torch.sigmoid(b)


def linear(a: Tensor, b: Tensor) -> Tensor:
    return a * torch.sigmoid(b)


def gate(x: Tensor) -> Tensor:
    return gated(*x.chunk(2, 1))


def halves(features: Tensor, condition: Tensor) -> Any:
    return *features.chunk(2, 1), *condition.chunk(2, 1)


def halves_with_maps(m: Any, x: Tensor) -> Tensor:
    y, z = m.conv(x), m.convolved(x, m.weight * m.mask)
    return torch.sigmoid(y[:, 2:] + z[:, 2:]) * torch.tanh(y[:, :2] + z[:, :2])


def product_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.weight * m.mask
    return m.convolved(x, weight)


def tanh_without_gradients(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.no_grad():
        t = torch.tanh(y[:, :2])
    return t * torch.sigmoid(y[:, 2:])


def halves_without_gradients(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.no_grad():
        a, b = y.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b) * y.mean()


def sum_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        total = m.conv(x) + m.convolved(x, m.weight)
    return gate(total) * x.mean()


def gate_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = gate(m.conv(x))
    return y * x.mean()


Program = Callable[[Any, Tensor], Any]
# what a network does, by what of it is rewritten
CONVOLUTIONS: dict[str, Program] = {
    "product": lambda m, x: m.convolved(x, m.weight * m.mask),
    "other order": lambda m, x: m.convolved(x, m.mask * m.weight),
    "gain of the result": lambda m, x: m.scalar * m.convolved(x, m.weight * m.mask),
    "gain of the weight": lambda m, x: m.convolved(x, m.gains * m.weight * m.mask),
    "gain of the product": lambda m, x: m.convolved(x, m.mask * m.weight * m.gains),
    "scale of the product": lambda m, x: m.convolved(x, m.weight * m.mask * 0.3 / 7),
    "two masks": lambda m, x: m.convolved(x, m.weight * m.mask * m.ones),
    "where": lambda m, x: m.convolved(x, torch.where(m.mask > 0, m.weight, 0.0)),
    "where not": lambda m, x: m.convolved(x, torch.where(m.mask == 0, torch.zeros_like(m.weight), m.weight)),
    "method where": lambda m, x: m.convolved(x, m.weight.where(m.mask == 1, 0)),
    "masked_fill": lambda m, x: m.convolved(x, m.weight.masked_fill(m.mask == 0, 0)),
    "masked_fill of a gain": lambda m, x: m.convolved(x, -(m.gains * m.weight).masked_fill(m.mask == 0, 0.0)),
    "without gradients": without_gradients,
    "times equal": times_equal,
    "data": of_data,
    "data, twice in a graph": lambda m, x: of_data(m, torch.tanh(of_data(m, x))),
    "new data": new_data,
    "copied": copied,
    "filled": lambda m, x: in_order(m.weight.data.masked_fill_(m.mask == 0, 0), m.conv(x)),
    "in place of a copy": in_place_of_a_copy,
    "one mask for two": one_mask_for_two,
    "low rank": lambda m, x: m.convolved(x, (m.weight + (m.left @ m.right)[:, :, None, None]) * m.mask),
    "computed mask": lambda m, x: m.convolved(x, m.weight * (m.mask > 0).to(m.weight)),
    "weight used twice": lambda m, x: m.convolved(x, p := m.weight * m.mask) + p.sum(),
    "dropout": lambda m, x: F.dropout(m.convolved(x, m.weight * m.mask), 0.5, m.training),
    "another function in training": lambda m, x: (
        m.convolved(x, m.weight * m.mask) * (1.1 if m.training else 1)
    ),
    "norm": lambda m, x: F.relu(m.norm(m.convolved(x, m.weight * m.mask))),
    "weight written before": lambda m, x: in_order(
        product := m.weight * m.mask, m.weight.detach().add_(0.1), m.convolved(x, product)
    ),
    "weight written after": lambda m, x: in_order(
        y := m.convolved(x, m.weight * m.mask), m.weight.data.add_(0.1), y
    ),
    "checkpoint": lambda m, x: checkpoint(
        lambda x: F.relu(m.convolved(x, m.weight * m.mask)), x, use_reentrant=False
    ),
    "product without gradients": product_without_gradients,
    "where a tensor of zero": lambda m, x: m.convolved(
        x, torch.where(m.mask > 0, m.weight, torch.tensor(0.0, dtype=torch.float64))
    ),
}
GATES: dict[str, Program] = {
    "gate partly without gradients": tanh_without_gradients,
    "gate of halves without gradients": halves_without_gradients,
    "gate of a sum without gradients": sum_without_gradients,
    "gate without gradients": gate_without_gradients,
    "gate of the input": lambda m, x: gate(x),
    "gate of a gate": lambda m, x: gate(gate(m.conv(x))),
    "gate of a result": lambda m, x: (lambda y: (gate(y), y))(m.conv(x))[0],
    "gate of slices": lambda m, x: (lambda f: torch.tanh(f[:, :2]) * f[:, 2:].sigmoid())(m.conv(x)),
    "gate of a split": lambda m, x: (lambda a, b: a.tanh() * b.sigmoid())(*m.conv(x).split(2, dim=1)),
    "linear gate": lambda m, x: linear(*m.conv(x).chunk(2, 1)),
    "linear gate of a gate": lambda m, x: linear(*linear(*m.conv(x).chunk(2, 1)).sigmoid().chunk(2, 1)),
    "linear gate of which a half is read twice": lambda m, x: (lambda a, b: b.sigmoid() * a + a)(
        *m.conv(x).chunk(2, 1)
    ),
    "linear gate with a condition for each": lambda m, x: linear(*(m.conv(x) + m.condition).chunk(2, 1)),
    "gate of a sum of two dtypes": lambda m, x: gate(m.conv(x) + x.float()),
    "gate of a sum": lambda m, x: gate(m.conv(x) + x),
    "gate of a sum of maps": lambda m, x: gate(m.conv(x) + m.convolved(x, m.weight)),
    "gate with a condition per image": lambda m, x: gate(x.mean((2, 3), keepdim=True) + m.conv(x)),
    "gate with a condition for all": lambda m, x: gate(m.conv(x) + m.condition_of_all),
    "gate with a condition for each": lambda m, x: gate(m.conv(x) + m.condition),
    "gate of halves with conditions": lambda m, x: (
        lambda a, b, ca, cb: torch.tanh(a + ca) * torch.sigmoid(cb + b)
    )(*halves(m.conv(x), m.condition)),
    "gate with a condition per pixel": lambda m, x: gate(m.conv(x) + m.condition_of_pixels),
    "gate with a condition that is written": lambda m, x: in_order(
        c := m.condition * 1, y := gate(m.conv(x) + c), c.detach().mul_(2), y
    ),
    "gate of a sum that is read twice": lambda m, x: in_order(
        total := m.conv(x) + m.condition, gate(total) + total[:, :2]
    ),
}
UNTOUCHED: dict[str, Program] = {
    "where ones": lambda m, x: m.convolved(x, torch.where(m.mask > 0, m.weight, 1.0)),
    "masked, then written": lambda m, x: in_order(
        m.weight.data.mul_(m.mask), m.weight.data.add_(0.1), m.conv(x)
    ),
    "masked, then written in part": masked_then_written_in_part,
    "mask written": lambda m, x: in_order(y := of_data(m, x), m.mask.neg_(), y),
    "mask that learns": mask_that_learns,
    "learned mask": lambda m, x: m.convolved(x, m.weight * torch.sigmoid(m.soft)),
    "learned mask that has zeros": lambda m, x: m.convolved(x, m.weight * m.learned),
    "dropped weights": lambda m, x: m.convolved(x, m.weight * F.dropout(m.mask, 0.5, m.training)),
    "gate written after": lambda m, x: in_order(
        f := m.convolved(x, m.weight).clone(), y := gated(f[:, :2], f[:, 2:]), f.detach().mul_(2), y
    ),
    "product written": product_written,
    "no mask": lambda m, x: m.convolved(x, m.weight * 2),
    "mask of ones": lambda m, x: m.convolved(x, m.weight * m.ones),
    "gate of halves with exchanged conditions": lambda m, x: (lambda a, b, ca, cb: gated(a + cb, b + ca))(
        *halves(m.conv(x), m.condition)
    ),
    "gate of halves with conditions for all": lambda m, x: (lambda a, b, ca, cb: gated(a + ca, cb + b))(
        *halves(m.conv(x), m.condition_of_all)
    ),
    "gate of halves with conditions that are written": lambda m, x: in_order(
        y := m.conv(x),
        c := m.condition * 1,
        a := y[:, :2] + c[:, :2],
        c.detach().mul_(2),
        gated(a, y[:, 2:] + c[:, 2:]),
    ),
    "gate of thirds": lambda m, x: (lambda f: torch.tanh(f[:, :1]) * f[:, 1:].sigmoid())(
        m.convolved(x, m.weight)
    ),
    "gate of rows": lambda m, x: gated(*m.convolved(x, m.weight).chunk(2, 2)),
    "gate of exchanged halves": lambda m, x: gated(*m.convolved(x, m.weight).chunk(2, 1)[::-1]),
    "gate written": lambda m, x: in_order(
        f := m.convolved(x, m.weight).clone(),
        t := torch.tanh(f[:, :2]),
        f.detach().mul_(2),
        t * torch.sigmoid(f[:, 2:]),
    ),
    "gate written by relu": lambda m, x: in_order(
        f := m.convolved(x, m.weight).clone(),
        t := torch.tanh(f[:, :2]),
        F.relu(f.detach(), True),
        t * torch.sigmoid(f[:, 2:]),
    ),
}
CONVOLUTION_AND_GATE: dict[str, Program] = {"gate of halves with maps": halves_with_maps}
# how many convolutions and gates of each are rewritten
COUNTS = {
    **{name: (1, 0) for name in CONVOLUTIONS},
    **{name: (0, 1) for name in GATES},
    **{name: (1, 1) for name in CONVOLUTION_AND_GATE},
    **{name: (0, 0) for name in UNTOUCHED},
}
PROGRAMS = CONVOLUTIONS | GATES | CONVOLUTION_AND_GATE | UNTOUCHED


INSIDE = (
    "gate of halves with conditions",
    "gate of halves with maps",
    "gate of a sum of maps",
    "gate with a condition per image",
    "gate with a condition for each",
    "linear gate with a condition for each",
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_network_computes_what_it_did(name: str) -> None:
    backend = check(Programmed(PROGRAMS[name]), images(5))
    counts = (times(backend, CONVOLUTION), bool(times(backend, GATE)))
    assert counts == COUNTS[name], str(backend.report)
    assert ("with what is added" in str(backend.report)) == (name in INSIDE)


# what is no masked convolution or no gate of halves, though it looks like one; f is a map [2, 4, 6, 5]
LOOKALIKES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "filled with ones": lambda m, f: m.convolved(f, m.weight.masked_fill(m.mask == 0, 1.0)),
    "filled with ones in place": lambda m, f: m.convolved(f, m.weight.clone().masked_fill_(m.mask == 0, 1.0)),
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
    "the product of two sigmoids": lambda m, f: linear(torch.sigmoid(f[:, :2]), f[:, 2:]),
    "a map by its own sigmoid": lambda m, f: linear(f, f),
    "linear halves that are exchanged": lambda m, f: linear(f[:, 2:], f[:, :2]),
    "halves with conditions in another dtype": lambda m, f: (
        lambda c: gated(f[:, :2] + c[:, :2], f[:, 2:] + c[:, 2:])
    )(f.float()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_what_only_looks_like_a_pattern_is_left() -> None:
    model = Programmed(lambda m, x: {name: form(m, 1 * x) for name, form in LOOKALIKES.items()}).double()
    fast, backend = compiled_copy(model)
    torch.testing.assert_close(fast(images(5)), model(images(5)))
    assert not backend.report.rewritten and not backend.report.warnings, str(backend.report)


class Chain(nn.Module):
    """Many layers, of which each has a convolution of its own before it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Programmed(PROGRAMS[name]) for name in names)
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
    names = [
        name for name in PROGRAMS if name != "new data"
    ]  # of which Inductor itself lays results out anew
    model = Chain(names[part::4]).double()
    model(images(5))  # makes the links
    with torch._inductor.config.patch(fallback_random=True):
        backend = check(model, images(5), "inductor")
    found = sum(n for (what, _), n in backend.report.rewritten.items() if CONVOLUTION in what)
    assert found >= sum(COUNTS[name][0] for name in names[part::4]), str(backend.report)
    tag = getattr(torch.compiler.config, "cache_key_tag", "pixelcnn_fast")
    assert "pixelcnn_fast" in tag  # what Inductor keeps on disk is for these ops alone


@pytest.mark.parametrize(
    "mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])]
)  # where a compiler is
def test_the_tutorial_s_network_is_rewritten(mode: str) -> None:
    backend = check(Tutorial(4, (1, 2)), images()[:, :1], mode)
    # In training and in inference, which adds sums.
    assert sum(backend.report.rewritten.values()) == 2 * (6 + 4) + 2
    text = str(backend.report)
    assert "conv2d [8, 4, 3, 3] → masked_conv2d (4 times): public_networks.py" in text
    assert "tanh · sigmoid → gated_activation" in text and "return F.conv2d(x, weight" in text
    assert "conv2d [256, 4, 1, 1]: its weight has no mask, and no padding or crop could be taken in" in text


def test_a_call_that_a_module_of_pytorch_makes_is_named_by_the_module() -> None:
    model, backend = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1))), Backend()
    torch.compile(model, backend=backend)(torch.randn(2, 4, 6, 5))
    assert str(backend.report).endswith(": in module 1.0")


@pytest.mark.parametrize("mode", ["eager", pytest.param("inductor", marks=[needs_native, thorough])])
@pytest.mark.parametrize("live", [False, True])
def test_weights_that_are_masked_in_place_have_the_gradients_of_plain_pytorch_or_live_ones(mode, live):
    model = Programmed(of_data).double()
    fast, backend = compiled_copy(model, mode, live_gradients=live)
    for each in (fast, model):
        each(images()).square().sum().backward()
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
    model = style(2, 3, raster_mask(3, 3, "B")).double()
    fast, backend = compiled_copy(model, mode)
    x = images()[:, :2]
    for each in (fast, model):
        outputs_and_gradients(each, x)
        CHANGES[name](each)
    torch.testing.assert_close(outputs_and_gradients(fast, x), outputs_and_gradients(model, x))
    assert times(backend, CONVOLUTION), str(backend.report)


@pytest.mark.parametrize("name", ["product", "data"])
def test_second_derivatives_go_through_what_is_rewritten(name: str) -> None:
    model = Tutorial(4, (1, 2)).double()
    if name == "data":
        for module in [m for m in model.modules() if isinstance(m, Masked)]:
            module.__class__ = MaskedInPlace
    fast, _ = compiled_copy(model)

    def penalty(model: nn.Module) -> tuple[Tensor | None, ...]:
        x = images()[:1, :1].requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), tuple(model.parameters()), allow_unused=True)

    for a, b in zip(penalty(fast), penalty(model), strict=True):
        torch.testing.assert_close(a, b)


@needs_native
@thorough
def test_inductor_refuses_second_derivatives() -> None:
    model, x = Tutorial(4, (1, 2)).double(), images()[:1, :1].requires_grad_()
    model.compile(backend=Backend("inductor"))
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.square().sum().backward()


@pytest.mark.parametrize("image", few([False, True], 1))
def test_results_are_laid_out_as_they_were(image: bool) -> None:
    model, x = Tutorial(4, (1, 2)).to(memory_format=torch.channels_last), images()[:, :1]
    check(model, x.to(memory_format=torch.channels_last) if image else x)


def test_a_rewrite_that_fails_costs_nothing_but_speed(monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(captured: CapturedGraph) -> None:
        for node in list(captured.graph.nodes)[::-1][1:3]:
            node.args = ()
        raise KeyError("a mistake")

    monkeypatch.setattr(pipeline, "REWRITES", (*pipeline.REWRITES[:3], fail))
    model, x, backend = Tutorial(4, (1, 2)), torch.randn(2, 1, 6, 7), Backend()
    with pytest.warns(UserWarning, match="rewriting it failed .KeyError: 'a mistake'.. Please report it"):
        found = torch.compile(model, backend=backend)(x)
    torch.testing.assert_close(found, model(x))
    assert "note       a graph stays as it is" in str(backend.report) and not backend.report.rewritten


def test_it_has_a_name() -> None:
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
def test_inductor_is_given_what_was_rewritten(asked, monkeypatch):
    """Here it is replaced by one that needs no compiler."""
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
