"""The mixture of logistics: its likelihood and its draws against the formulas written out number by number, the
layouts and variants of published models, and how far apart two mixtures are."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import CaptureMismatch, Sampler, UnknownLayout, check_causal, likelihood
from pixelcnn_fast.errors import NonFiniteLogits, RuntimeUnavailable
from pixelcnn_fast.heads import LogisticMixture, SamplingOptions
from pixelcnn_fast.image_forms import from_levels
from pixelcnn_fast.native import native
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, Limits
from tests.csrc.emulated import EmulatedKernels
from tests.needs import needs_native
from tests.system.agreement import assert_runtimes_agree, noise
from tests.tolerances import assert_identical_up_to_rounding

K = 3
RUNTIMES: list[RuntimeName] = ["eager", "cpu"] if native() else ["eager"]
HEADS = {
    "three colours": LogisticMixture(K),
    "two colours": LogisticMixture(K, 16, colours=2),
    "one colour": LogisticMixture(K, colours=1),
    "two levels": LogisticMixture(K, 2),
    "a component each": LogisticMixture(K, per_colour=True, uniform=1e-4),
    "mostly uniform": LogisticMixture(K, 8, uniform=0.6),
}
UNROUNDED = {rounding: LogisticMixture(K, 8, rounding=rounding) for rounding in ("never", "end")}


def parameters(head: LogisticMixture, *shape: int, seed: int = 0) -> Tensor:
    """Random ones, [*shape, P]: logits and coefficients of both signs, means inside and outside, scales from the
    floor to beyond the image."""
    generator = torch.Generator().manual_seed(seed)
    count = head.components * (1 + head.colours * (3 if head.colours > 1 else 2))
    found = torch.randn(*shape, count, dtype=torch.float64, generator=generator)
    each = found[..., head.components :].unflatten(-1, (head.colours, -1, head.components))
    each[..., 1, :] = 3 * each[..., 1, :] - 3
    return found


# -- the formulas, number by number


def components(head: LogisticMixture, p: list[float], x: list[float]) -> list[list[tuple[float, float]]]:
    """(mean, log-scale) by colour and component, where the colours are x."""
    count = head.components

    def at(c: int, number: int, k: int) -> float:
        return p[count + (3 if head.colours > 1 else 2) * count * c + count * number + k]

    def mean(c: int, k: int) -> float:
        if c == 0:
            return at(0, 0, k)
        if c == 1:
            return at(1, 0, k) + math.tanh(at(0, 2, k)) * x[0]
        return at(2, 0, k) + math.tanh(at(1, 2, k)) * x[0] + math.tanh(at(2, 2, k)) * x[1]

    return [[(mean(c, k), max(at(c, 1, k), -7)) for k in range(count)] for c in range(head.colours)]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


def softplus(z: float) -> float:
    return max(z, 0) + math.log1p(math.exp(-abs(z)))


def log_mass(head: LogisticMixture, x: float, mean: float, s: float) -> float:
    half, scale = 1 / (head.levels - 1), math.exp(s)
    below, above, mid = (x - half - mean) / scale, (x + half - mean) / scale, (x - mean) / scale
    upper, lower = 1 if x == 1 else sigmoid(above), 0 if x == -1 else sigmoid(below)
    if head.uniform:
        return math.log((1 - head.uniform) * (upper - lower) + head.uniform / head.levels)
    if x == -1:
        return -softplus(-above)
    if x == 1:
        return -softplus(below)
    if upper - lower > 1e-5:
        return math.log(upper - lower)
    return mid - s - 2 * softplus(mid) - math.log((head.levels - 1) / 2)


def numbers(head: LogisticMixture, levels: list[int]) -> list[float]:
    return [2 * level / (head.levels - 1) - 1 for level in levels]


def weights(logits: list[float], temperature: float = 1.0) -> list[float]:
    each = [math.exp((x - max(logits)) / temperature) for x in logits]
    return [x / sum(each) for x in each]


def log_probability(head: LogisticMixture, p: list[float], levels: list[int]) -> float:
    x = numbers(head, levels)
    pi, each = weights(p[: head.components]), components(head, p, x)
    if head.per_colour:
        of_colours = [
            [w * math.exp(log_mass(head, x[c], *at)) for w, at in zip(pi, each[c], strict=True)]
            for c in range(len(x))
        ]
        return sum(math.log(sum(terms)) for terms in of_colours)
    terms = [
        math.log(pi[k]) + sum(log_mass(head, x[c], *each[c][k]) for c in range(len(x)))
        for k in range(head.components)
    ]
    return max(terms) + math.log(sum(math.exp(term - max(terms)) for term in terms))


def chosen(pi: list[float], u: float) -> int:
    total = 0.0
    for k, w in enumerate(pi):
        total += w
        if u < total:
            return k
    return len(pi) - 1


def drawn(
    head: LogisticMixture,
    p: list[float],
    u: list[float],
    temperature: float = 1.0,
    known: tuple[int, ...] = (),
) -> list[float]:
    """The numbers x of a pixel's colours; known: the levels of the first ones."""
    logits, x, k = p[: head.components], numbers(head, list(known)), 0
    for c, level in enumerate(x):
        at = components(head, p, [*x, 0, 0])[c]
        logits = [w + log_mass(head, level, *of) for w, of in zip(logits, at, strict=True)]

    def choice(logits: list[float], u: float) -> int:
        return logits.index(max(logits)) if temperature == 0 else chosen(weights(logits, temperature), u)

    if not head.per_colour:
        k = choice(logits, u[0])
    for c in range(len(known), head.colours):
        if head.per_colour:
            k = choice(p[: head.components], u[2 * c])
        v = u[2 * c + 1] if head.per_colour else u[1 + c]
        mean, s = components(head, p, [*x, 0, 0])[c][k]
        if v < head.uniform and temperature > 0:
            x.append(2 * math.floor(v * head.levels / head.uniform) / (head.levels - 1) - 1)
        else:
            v = min(max((v - head.uniform) / (1 - head.uniform), 1e-5), 1 - 1e-5)
            number = mean + math.exp(s) * temperature * (math.log(v) - math.log(1 - v))
            x.append(min(max(number, -1), 1))
        if head.rounding == "each":
            x[-1] = numbers(head, [round((x[-1] + 1) * (head.levels - 1) / 2)])[0]
    return x


def levels_of(head: LogisticMixture, n: int) -> Tensor:
    """The lowest and the highest among them."""
    values = torch.randint(head.levels, (n, head.colours), generator=torch.Generator().manual_seed(2))
    values[:4], values[4:8] = 0, head.levels - 1
    return values


@pytest.mark.parametrize("name", HEADS)
def test_the_log_probability_is_the_formula(name: str) -> None:
    head = HEADS[name]
    p, values = parameters(head, 40), levels_of(head, 40)
    expected = [log_probability(head, *row) for row in zip(p.tolist(), values.tolist(), strict=True)]
    found = head.log_probability(p, values)
    assert found.shape == (40, head.colours)
    assert_identical_up_to_rounding(found.sum(1), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(found, head.log_probability(p, values.int()))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("name", [*HEADS, *UNROUNDED])
def test_a_draw_is_the_formula(name: str, temperature: float) -> None:
    head = {**HEADS, **UNROUNDED}[name]
    p, u = parameters(head, 60), torch.rand(60, head.uniforms, dtype=torch.float64)
    u[:5], u[5:10] = 0, math.nextafter(1, 0)
    none = torch.zeros(60, head.colours)
    found = head.draw(p, u, SamplingOptions(temperature=temperature), none.to(head.value_dtype), none.bool())
    pixels = zip(p.tolist(), u.tolist(), strict=True)
    expected = torch.tensor([drawn(head, *pixel, temperature) for pixel in pixels], dtype=torch.float64)
    assert found.dtype == (torch.int32 if name in HEADS else torch.float32)
    if head.rounding == "each":
        assert torch.equal(found, head.nearest(expected)) and found.unique().numel() > 1
    else:
        torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)
        assert found.abs().max() <= 1 and found.unique().numel() > 20


class Constant(nn.Module):
    """Each pixel has one component: a mean of 0.2, and e to the log-scale for its scale."""

    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.parameters_of = nn.Parameter(torch.tensor([0, 0.2, log_scale])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.parameters_of + 1e-3 * F.pad(x, (1, -1))


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
@pytest.mark.parametrize("log_scale", [8.0, 720.0])
def test_an_infinite_scale_is_a_wide_one(runtime, log_scale: float) -> None:
    """Where it is multiplied by 0, the mean is drawn."""
    sampler = Sampler(
        Constant(log_scale), (1, 1, 2), head=LogisticMixture(1, colours=1), image_form="centred"
    )
    u = torch.tensor([[0.5, 0.4], [0.5, 0.5], [0.5, 0.6]], dtype=torch.float64)[..., None, None].expand(
        -1, -1, 1, 2
    )
    drawn = [sampler.sample(3, noise=u, temperature=t, runtime=runtime) for t in (1, 1e300, 0)]
    assert [x[..., 0].flatten().tolist() for x in drawn] == [[0, 153, 255], [0, 153, 255], [153, 153, 153]]


@pytest.mark.parametrize("name", ["three colours", "two colours", "a component each", "mostly uniform"])
def test_known_colours_tell_how_likely_each_component_is(name: str) -> None:
    """Where all have one. Pixels of a batch may have different ones."""
    head = HEADS[name]
    n = 90
    p, u, values = parameters(head, n), torch.rand(n, head.uniforms, dtype=torch.float64), levels_of(head, n)
    counts = torch.arange(n) % head.colours
    known = torch.arange(head.colours) < counts[:, None]
    found = head.draw(p, u, SamplingOptions(), values.int(), known).where(~known, values)
    expected = [
        drawn(head, *pixel, known=tuple(values[i, : counts[i]].tolist()))
        for i, pixel in enumerate(zip(p.tolist(), u.tolist(), strict=True))
    ]
    assert torch.equal(found, head.nearest(torch.tensor(expected, dtype=torch.float64)))
    assert not torch.equal(found, head.draw(p, u, SamplingOptions(), values.int(), known.zero_()))


@pytest.mark.parametrize(("log_scale", "least"), [(-9.0, 1e-7), (-5.0, 1e-6), (-3.0, 0.0), (1.0, 0.0)])
def test_probabilities_sum_to_one_only_nearly(log_scale: float, least: float) -> None:
    """But exactly where a uniform distribution is mixed in, which needs no other formula for small masses."""
    head = LogisticMixture(1, colours=1)
    means = torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)[:, None]
    p = torch.cat([torch.zeros_like(means), means, torch.full_like(means, log_scale)], 1)
    for uniform, most in ((0.0, 1.4e-5), (1e-4, 1e-12)):
        head = LogisticMixture(1, colours=1, uniform=uniform)
        each = head.log_probability(p[:, None], torch.arange(256)[None, :, None].expand(301, -1, -1))
        error = (each.exp().sum((1, 2)) - 1).abs().max()
        assert (0 if uniform else least) <= error <= most


# -- samplers


class Net(nn.Module):
    """Two masked layers, whose output is rearranged by ``shape``."""

    def __init__(self, colours: int, outputs: int, shape: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = MaskedConv2d(colours, 8, 3, "A"), MaskedConv2d(8, 8, 3, "B")
        self.last, self.shape = nn.Conv2d(8, outputs, 1), shape
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.relu(self.first(images))))
        return self.shape(4 * self.last(h) - 0.5)


def outputs(head: LogisticMixture) -> int:
    return head.components * (1 + head.colours * (3 if head.colours > 1 else 2))


def sampler_of(head: LogisticMixture, height: int = 7, width: int = 5, **how) -> Sampler:
    net = Net(head.colours, outputs(head))
    return Sampler(net, (head.colours, height, width), head=head, image_form="centred", **how)


ALL = {**HEADS, **UNROUNDED}


@pytest.mark.parametrize("name", ALL)
def test_every_runtime_draws_the_same_images(name: str) -> None:
    head = ALL[name]
    sampler = sampler_of(head)
    assert sampler.noise_shape == ((2 if head.per_colour else 1) * head.colours + (not head.per_colour), 7, 5)
    images = assert_runtimes_agree(sampler, 3, runtimes=RUNTIMES, batch_sizes=(None, 2))
    assert images.unique().numel() >= min(head.levels, 20)
    assert images.dtype == (torch.float32 if name == "never" else torch.uint8)
    for runtime in RUNTIMES:
        assert sampler.sample(0, runtime=runtime).shape == (0, head.colours, 7, 5)
    for temperature in (0.0, 0.7):
        assert_runtimes_agree(sampler, 1, runtimes=RUNTIMES, temperature=temperature)


@pytest.mark.parametrize("name", HEADS)
def test_log_probabilities_are_the_likelihood_of_a_causal_model(name: str) -> None:
    head = HEADS[name]
    sampler, net = sampler_of(head), Net(head.colours, outputs(head))
    check_causal(net, (head.colours, 7, 5), head=head, image_form="centred")
    for runtime in ("reference", *RUNTIMES):
        images, log_p = sampler.sample(
            2, noise=noise(2, sampler.noise_shape), log_probability=True, runtime=runtime
        )
        assert_identical_up_to_rounding(log_p, sampler.log_prob(images).detach())
    given = from_levels(images, "centred", head.levels, torch.float64)
    bits = likelihood.bits_per_dim(net, [given], head=head, image_form="centred")
    assert bits == pytest.approx(-log_p.sum().item() / images.numel() / math.log(2))


@pytest.mark.parametrize("per_colour", [False, True])
def test_draws_follow_the_likelihood(per_colour: bool) -> None:
    """Chi-square of each pixel of 2x2 images, over the 64 colours of 4 levels, of which the rare ones are one."""
    head = LogisticMixture(2, 4, per_colour=per_colour, uniform=0.05 * per_colour)
    sampler, n = sampler_of(head, 2, 2), 1500
    images = sampler.sample(n, noise=noise(n, sampler.noise_shape))
    colours = torch.tensor([*product(range(4), repeat=3)])
    p = sampler.logits(images, runtime="eager")[:, 0, :, :, None, :].expand(-1, -1, -1, 64, -1)
    expected = head.log_probability(p, colours.expand(n, 2, 2, -1, -1)).sum(-1).exp().sum(0)  # [2, 2, 64]
    is_drawn = (images.permute(0, 2, 3, 1)[..., None, :] == colours).all(-1)
    for found, wanted in zip(is_drawn.sum(0).flatten(0, 1), expected.flatten(0, 1), strict=True):
        rare = wanted < 5
        pooled = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (found, wanted)]
        degrees = len(pooled[0]) - 1
        assert degrees > 10 and wanted.sum() == pytest.approx(n, rel=1e-4)
        assert ((pooled[0] - pooled[1]) ** 2 / pooled[1]).sum() < degrees + 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("name", ["three colours", "a component each", "never", "end"])
def test_completion(name: str) -> None:
    """Known pixels, and known first colours."""
    head = ALL[name]
    sampler = sampler_of(head)
    images = sampler.sample(2, noise=noise(2, sampler.noise_shape))
    known = torch.rand(7, 5) < 0.3
    masks = [known.expand(3, 7, 5), torch.stack([known | (torch.rand(7, 5) < 0.5), known, known])]
    for mask in masks:
        other = noise(2, sampler.noise_shape, seed=9)
        naive = sampler.complete(images, mask, noise=other, runtime="reference")
        assert torch.equal(naive[:, mask], images[:, mask]) and not torch.equal(naive, images)
        for runtime in RUNTIMES:
            assert torch.equal(sampler.complete(images, mask, noise=other, runtime=runtime), naive)
            if head.unscored is None:
                _, log_p = sampler.complete(images, mask, noise=other, runtime=runtime, log_probability=True)
                p = sampler.logits(naive, runtime="reference")[:, 0]
                each = head.log_probability(p, naive.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                assert_identical_up_to_rounding(log_p, each.masked_fill(mask, 0).sum((1, 2, 3)))


def test_rounding_at_the_end_gives_the_levels_next_to_what_is_never_rounded() -> None:
    u = noise(3, (4, 7, 5))
    (never, end), head = (
        (sampler_of(head).sample(3, noise=u) for head in UNROUNDED.values()),
        UNROUNDED["end"],
    )
    assert torch.equal(end, ((never.double() + 1) * 3.5).round().to(torch.uint8))
    each = sampler_of(replace(head, rounding="each")).sample(3, noise=u)
    assert torch.equal(end[:, 0, 0, 0], each[:, 0, 0, 0]) and not torch.equal(end, each)


# -- what the compiled runtimes draw


class OfLabel(nn.Module):
    """The same parameters at the first pixel of all images of a label, and others at the second."""

    def __init__(self, head: LogisticMixture) -> None:
        super().__init__()
        self.parameters_of = nn.Embedding.from_pretrained(parameters(head, 90), freeze=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.parameters_of(labels)[..., None, None] + F.pad(images[:, :1], (1, -1))


@needs_native
@pytest.mark.parametrize("name", HEADS)
def test_any_parameters_are_drawn_from_and_scored_as_in_python(name: str) -> None:
    """Narrow and wide, inside and outside."""
    head, labels = HEADS[name], torch.arange(90)
    sampler = Sampler(OfLabel(head), (head.colours, 1, 2), head=head, image_form="centred", conditional=True)
    u = noise(90, sampler.noise_shape)
    first = torch.zeros(head.colours, 1, 2, dtype=torch.bool)
    first[0] = head.colours > 1
    images = levels_of(head, 180).view(90, 1, 2, -1).permute(0, 3, 1, 2)
    for known in (torch.zeros_like(first), first):
        (drawn, log_p), (expected, exact) = (
            sampler.complete(images, known, labels, noise=u, runtime=runtime, log_probability=True)
            for runtime in ("cpu", "eager")
        )
        assert torch.equal(drawn, expected)
        assert_identical_up_to_rounding(log_p, exact)


class Rescaled(LogisticMixture):
    def score(self, x: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
        return super().score(x, means, log_scales + 1)


class Wide(LogisticMixture):
    log_scales_within = (-2.0, torch.inf)


@dataclass(frozen=True, repr=False)
class OfWidth(LogisticMixture):
    log_scales_within: tuple[float, float] = LogisticMixture.log_scales_within


@needs_native
def test_what_scores_in_another_way_is_drawn_in_python() -> None:
    assert sampler_of(HEADS["two colours"])._engine.auto == "cpu"
    sampler = sampler_of(Rescaled(K, 16, colours=2))
    assert sampler._engine.auto == "eager"
    with pytest.raises(RuntimeError, match="Rescaled.* is drawn in Python only: use runtime 'eager'"):
        sampler.sample(1, runtime="cpu")
    assert Wide.native is OfWidth.native is None


@pytest.mark.parametrize("head", [Rescaled(K), Wide(K), OfWidth(K, log_scales_within=(-2.0, torch.inf))])
def test_what_scores_in_another_way_has_that_likelihood(head: LogisticMixture) -> None:
    p, values = parameters(head, 2, 1, 1, 3), levels_of(head, 6).view(2, 1, 3, 3).permute(0, 3, 1, 2)
    of_pixels = values.permute(0, 2, 3, 1)[:, None]
    expected = -head.log_probability(p, of_pixels).flatten(1).sum(1)
    torch.testing.assert_close(head.nll(p, values), expected)
    assert (head.nll(p, values) - LogisticMixture(K).nll(p, values)).abs().min() > 0.1


@needs_native
def test_cuda_refuses_it() -> None:
    head = HEADS["three colours"]
    single = Sampler(Net(3, outputs(head)).float(), (3, 7, 5), head=head, image_form="centred")
    compiled = single._engine.require_compiled()
    with pytest.raises(RuntimeUnavailable, match="draws from no head logistic_mixture: use runtime 'eager'"):
        CudaRuntime(
            compiled.program_for("cuda"),
            compiled.conditions,
            head,
            kernels=EmulatedKernels(),
            limits=Limits(1 << 17, 4),
        )


# -- layouts

LAYOUTS = {
    "K|c|p|k": lambda each: each,  # from [N, c, p, k, H, W]
    "K|p|k|c": lambda each: each.permute(0, 2, 3, 1, 4, 5),
    "K|c|k|p": lambda each: each.transpose(2, 3),
}


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(layout, colours: int) -> None:
    def shape(x: Tensor) -> Tensor:
        each = LAYOUTS[layout](x[:, K:].unflatten(1, (colours, 3, K)))
        return torch.cat([x[:, :K], each.flatten(1, 3)], 1)

    head = LogisticMixture(K, 8, colours, layout)
    net = Net(colours, K * (1 + 3 * colours), shape)
    sampler = Sampler(net, (colours, 3, 4), head=head, image_form="centred")
    images = assert_runtimes_agree(sampler, 4, runtimes=RUNTIMES)
    net.shape = lambda x: x
    plain = Sampler(net, (colours, 3, 4), head=replace(head, layout="K|c|p|k"), image_form="centred")
    assert torch.equal(images, plain.sample(4, noise=noise(4, plain.noise_shape)))
    used = K * (1 + (2 if colours == 1 else 3) * colours)
    assert plain.logits(images).shape == (4, 1, 3, 4, used)  # one colour has no coefficients


def test_the_published_layout_is_read_in_place() -> None:
    """No copy is made of it."""
    for head, channels in ((LogisticMixture(K), 10 * K), (LogisticMixture(K, colours=1), 4 * K)):
        output = torch.randn(2, channels, 3, 4)
        assert head.arranged(output, head.colours).data_ptr() == output.data_ptr()


@pytest.mark.parametrize(
    ("head", "channels", "message"),
    [
        (LogisticMixture(5), 10 * K, r"\[4, 30, 3, 4\], but LogisticMixture.*expects \[4, 50, 3, 4\]"),
        (LogisticMixture(K), 7 * K, r"expects \[4, 30, 3, 4\]"),
        (LogisticMixture(K, colours=1), 10 * K, "images have 3 channels, .* reads 1: say colours=3"),
    ],
)
def test_another_output_is_refused(head: LogisticMixture, channels: int, message: str) -> None:
    with pytest.raises(UnknownLayout, match=message):
        head.resolved(torch.zeros(4, channels, 3, 4), (4, 3, 3, 4))
    with pytest.raises(UnknownLayout, match=r"expects \[4, 9, 3, 4\] or \[4, 12, 3, 4\]"):
        LogisticMixture(K, colours=1).resolved(torch.zeros(4, 15, 3, 4), (4, 1, 3, 4))


# -- refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(components=0), "components is 0: expected an integer, 1 or more"),
        (dict(components=2.5), "components is 2.5: expected an integer"),
        (dict(levels=8.5), "levels is 8.5: expected an integer, 2 or more"),
        (dict(colours=1.5), "colours is 1.5: expected an integer"),
        (dict(colours=4), "colours is 4: expected 1, 2 or 3"),
        (dict(levels=1), "levels is 1"),
        (dict(layout="c|p|k"), "layout is 'c|p|k', expected one of 'K|c|p|k'"),
        (dict(rounding="sometimes"), "rounding is 'sometimes', expected one of 'each'"),
        (dict(uniform=1.0), "uniform is 1.0"),
    ],
)
def test_bad_arguments(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        LogisticMixture(**{"components": K, **wrong})


def test_how_it_is_written() -> None:
    """As it is made."""
    for head in ALL.values():
        assert eval(repr(head)) == head
    assert repr(LogisticMixture(K, layout="K|c|k|p")) == "LogisticMixture(components=3, layout='K|c|k|p')"


def test_options_that_it_does_not_use_are_refused_by_name() -> None:
    for name, options in {"top_k": SamplingOptions(top_k=3), "top_p": SamplingOptions(top_p=0.5)}.items():
        with pytest.raises(ValueError, match=f"{name} is not used by LogisticMixture"):
            HEADS["three colours"].check_options(options)
    with pytest.raises(ValueError, match="top_k is not used by LogisticMixture"):
        sampler_of(HEADS["three colours"]).sample(1, top_k=3)


@pytest.mark.parametrize("name", ["three colours", "a component each"])
def test_a_known_colour_after_one_that_is_drawn_is_refused(name: str) -> None:
    images, known = torch.zeros(2, 3, 7, 5, dtype=torch.uint8), torch.zeros(2, 3, 7, 5, dtype=torch.bool)
    known[1, 2, 4, 3] = known[:, :, 1] = True
    with pytest.raises(
        ValueError, match="channel 2 of image 1 is known at row 4, column 3, but channel 1 is not"
    ):
        sampler_of(HEADS[name]).complete(images, known)


@pytest.mark.parametrize("rounding", UNROUNDED)
def test_what_is_not_rounded_at_once_has_no_log_probability(rounding: str) -> None:
    head = UNROUNDED[rounding]
    sampler = sampler_of(head)
    images = sampler.sample(1)
    for scored in (
        lambda: sampler.sample(1, log_probability=True),
        lambda: sampler.log_prob(images),
        lambda: likelihood.nll(Net(3, outputs(head)), images.float(), head=head, image_form="centred"),
    ):
        with pytest.raises(ValueError, match="has no log-probability.*rounding='each'"):
            scored()
    with pytest.raises(ValueError, match="pass image_form='centred'"):
        Sampler(Net(3, outputs(head)), (3, 7, 5), head=head, image_form="unit")


def test_images_that_users_give() -> None:
    levels, floats = torch.randint(8, (1, 3, 7, 5)), torch.rand(1, 3, 7, 5)
    never, end = UNROUNDED.values()
    assert torch.equal(never.checked(floats), floats)
    assert torch.equal(end.as_images(end.checked(levels)), levels.to(torch.uint8))
    with pytest.raises(ValueError, match="expected floating point"):
        never.checked(levels)
    with pytest.raises(ValueError, match="expected numbers from -1 to 1"):
        never.checked(2.5 * floats)
    with pytest.raises(ValueError, match="expected integer levels"):
        end.checked(floats)


@pytest.mark.parametrize("runtime", ["reference", *RUNTIMES])
def test_a_parameter_that_is_not_a_number_is_reported(runtime) -> None:
    net = Net(3, outputs(HEADS["three colours"]))
    sampler = Sampler(net, (3, 3, 4), head=HEADS["three colours"], image_form="centred")
    for bad in (torch.nan, torch.inf):
        net.get_parameter("last.bias").data[-1] = bad
        sampler.refresh()  # building a sampler would refuse them
        with pytest.raises(NonFiniteLogits, match="image 0, channel 0, row 0, column 0"):
            sampler.sample(2, runtime=runtime)


# -- gradients


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_the_likelihood(name: str) -> None:
    """Also where a mass is small, at the edges and at the floor of scales."""
    head = HEADS[name]
    p = parameters(head, 20, 1, 1, 2).requires_grad_()
    values = levels_of(head, 40).view(20, 1, 2, head.colours).permute(0, 3, 1, 2)
    assert torch.autograd.gradcheck(lambda p: head.nll(p, values), p, fast_mode=True)


# -- how far distributions are apart


def apart(head: LogisticMixture, one: Tensor, other: Tensor) -> Tensor:
    found = head.distance(one, other, head.colours)
    assert found.dtype == torch.float64 and found.shape == one.shape[:-1]
    return found


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_that_matters_is_noticed(name: str) -> None:
    """But for logits that all move, and a coefficient that two colours do not use."""
    head = HEADS[name]
    one = 0.5 * torch.randn(1, 1, 2, 3, outputs(head), dtype=torch.float64)
    assert apart(head, one, one).eq(0).all()
    unused = range(6 * K, 7 * K) if head.colours == 2 else ()
    for number in range(outputs(head)):
        other = one.clone()
        other[0, 0, 1, 2, number] += 1e-6
        found = apart(head, one, other)
        assert found.nonzero().tolist() == ([] if number in unused else [[0, 0, 1, 2]])
        assert number in unused or 1e-8 < found.max() < 1e-4
    other = one.clone()
    other[..., :K] += 1
    assert apart(head, one, other).max() < 1e-12
    assert apart(head, one, one * torch.nan).isnan().all()


def mutants(p: Tensor) -> dict[str, Tensor]:
    """What a wrong program might make of parameters [..., 10 K]."""
    pi, each = p[..., :K], p[..., K:].unflatten(-1, (3, 3, K))
    swapped, ignored, scaled = each.flip(-3), each.clone(), each.clone()
    ignored[..., 1, 2, :] = 0
    scaled[..., 1, :] *= 1.01
    rolled = each.roll(1, -1)
    return {
        name: torch.cat([pi, x.flatten(-3)], -1)
        for name, x in dict(
            swapped=swapped, ignored=ignored, scaled=scaled, rolled=rolled, transposed=each.transpose(-3, -2)
        ).items()
    }


MUTANTS = [*mutants(torch.zeros(10 * K))]


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_parameters_are_noticed(name: str) -> None:
    p = torch.randn(2, 1, 4, 5, 10 * K, dtype=torch.float64)
    assert apart(LogisticMixture(K), p, mutants(p)[name]).min() > 1e-4


@pytest.mark.parametrize("name", MUTANTS)
def test_a_program_of_other_parameters_is_refused(name: str) -> None:
    """The model changes once it was recorded, so the program is not its own."""
    calls = iter(range(99))

    def changing(x: Tensor) -> Tensor:
        return x if next(calls) <= 1 else mutants(x.movedim(1, -1))[name].movedim(-1, 1)

    with pytest.raises(CaptureMismatch, match="bound of the total variation; .* is allowed"):
        Sampler(Net(3, 10 * K, changing), (3, 4, 5), head=LogisticMixture(K), image_form="centred")


def test_a_component_of_no_weight_tells_nothing_and_hides_nothing() -> None:
    head, p = LogisticMixture(K), torch.randn(1, 1, 1, 1, 10 * K, dtype=torch.float64)
    p[..., 1] = -60
    other = p.clone()
    other[..., K + 1] += 1  # the first colour's mean of the second component
    assert apart(head, p, other).item() < 1e-20
    hot, other_hot = head.hot(p), head.hot(other)
    assert hot is not None and other_hot is not None and apart(head, hot, other_hot).item() > 1e-3
    p[..., K + 1] = other[..., K + 1] = 1e30  # a large number
    other[..., K + 2] += 1e-6
    assert 1e-8 < apart(head, p, other).item() < 1e-4
    p[..., K + 4] = -20  # below the floor of scales
    lower = p.clone()
    lower[..., K + 4] = -30
    assert apart(head, p, lower).item() == 0


# -- with which noise values are drawn


def test_what_is_rounded_at_the_end_does_not_tell_its_noise() -> None:
    head = UNROUNDED["end"]
    with pytest.raises(NotImplementedError, match="keeps no values"):
        head.excess(parameters(head, 5), torch.zeros(5, 3), torch.zeros(5, 4))


@pytest.mark.parametrize("name", [*HEADS, "never"])
def test_noise_lies_where_what_is_drawn_with_it_comes_from(name: str) -> None:
    head = ALL[name]
    n = 500
    p, u = parameters(head, n), torch.rand(n, head.uniforms, dtype=torch.float64)
    none = torch.zeros(n, head.colours, dtype=head.value_dtype)
    values = head.draw(p, u, SamplingOptions(), none, none.bool())
    found = head.excess(p, values, u)
    assert found.shape == values.shape and found.max() < 2e-5
    wrong = values.clone()
    wrong[:, -1] = (
        (values[:, -1] + head.levels // 2) % head.levels if name != "never" else values[:, -1] + 0.05
    )
    assert (head.excess(p, wrong, u).amax(1) > 1e-4).float().mean() > 0.5
    u[:, 0] = (u[:, 0] + 0.5) % 1  # which chooses another component
    assert (head.excess(p, values, u).amax(1) > 1e-4).float().mean() > 0.5
