"""How outputs are read: every layout, what is inferred, and what is refused with the alternatives."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, heads
from pixelcnn_fast.errors import UnknownLayout, Unsupported
from pixelcnn_fast.heads import LAYOUTS, Bernoulli, Categorical
from pixelcnn_fast.native import native
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes import RuntimeName
from tests.system.agreement import assert_runtimes_agree, noise
from tests.system.networks import Written

RUNTIMES: list[RuntimeName] = ["eager", "cpu"] if native() else ["eager"]
LEVELS = 7


class Net(nn.Module):
    """One masked layer; ``shape`` turns its [N, C * L, H, W] into the output."""

    def __init__(self, channels: int, shape=lambda x: x, levels: int = LEVELS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = MaskedConv2d(channels, channels * levels, 3, "A")
        self.shape = shape

    def forward(self, images):
        return self.shape(6 * self.conv(images.to(self.conv.weight.dtype)))


def split(x):
    """[N, C * L, H, W] -> [N, C, L, H, W]."""
    return x.unflatten(1, (-1, LEVELS))


OUTPUTS = {
    "N,C,H,W,L": lambda x: split(x).permute(0, 1, 3, 4, 2),
    "N,L,C,H,W": lambda x: split(x).transpose(1, 2),
    "N,C,L,H,W": split,
    "N,C*L,H,W": lambda x: x,
    "N,L*C,H,W": lambda x: x,
}


def sampler_of(output=lambda x: x, channels: int = 2, **how) -> Sampler:
    """Of images of 4x5; how: by default, with LEVELS levels."""
    return Sampler(Net(channels, output).double(), (channels, 4, 5), **(how or {"levels": LEVELS}))


def assert_all_runtimes_agree(sampler: Sampler, n: int = 4) -> torch.Tensor:
    return assert_runtimes_agree(sampler, n, runtimes=RUNTIMES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_runtimes_read_every_layout_the_same_way(layout):
    images = assert_all_runtimes_agree(sampler_of(OUTPUTS[layout], head=heads.Categorical(LEVELS, layout)))
    assert images.unique().numel() == LEVELS
    same = sampler_of(OUTPUTS["N,C,H,W,L"]).sample(4, noise=noise(4, (2, 4, 5)), runtime="reference")
    assert torch.equal(images, same) == (layout != "N,L*C,H,W")  # whose channels are in another order


@pytest.mark.parametrize("layout", ["N,C,H,W,L", "N,L,C,H,W", "N,C,L,H,W"])
def test_layouts_that_are_inferred(layout):
    assert sampler_of(OUTPUTS[layout]).head == Categorical(LEVELS, layout)


def test_one_channel_is_never_ambiguous():
    assert assert_all_runtimes_agree(sampler_of(channels=1)).unique().numel() > 3


BERNOULLI, FLAT = {"head": Bernoulli()}, {"head": Categorical(LEVELS, "N,C*L,H,W")}
# By name: Net's arguments, the images' size, the sampler's other arguments, the message.
UNKNOWN: dict[str, tuple[Any, tuple[int, int], dict[str, Any], str]] = {
    "flat": ((2,), (4, 5), {}, r"(?s)several ways.*layout='N,C\*L,H,W'.*channel \* L.*'N,L\*C,H,W'"),
    "as many channels as levels": (
        (3, lambda x: x.unflatten(1, (3, 3)), 3),
        (4, 5),
        {"levels": 3},
        r"(?s)several ways.*'N,L,C,H,W'.*'N,C,L,H,W'",
    ),
    "as high as levels": ((1, split), (7, 7), {}, r"(?s)several ways.*'N,C,H,W,L'.*'N,C,L,H,W'"),
    "too few axes": (
        (2, lambda x: x.mean(1)),
        (4, 5),
        {},
        r"(?s)shape \[2, 4, 5\].*for 7 levels.*\[2, 2, 4, 5, 7\].*Bernoulli",
    ),
    "a tuple": ((2, lambda x: (x, x)), (4, 5), {}, r"a tuple of 0: a tensor \[2, 14, 4, 5\], 1: .*output="),
    "two numbers": (
        (1, lambda x: x, 2),
        (4, 5),
        BERNOULLI,
        r"\[2, 2, 4, 5\], but Bernoulli.*expects \[2, 1, 4, 5\]",
    ),
    "not as was said": ((2, split), (4, 5), FLAT, r"Categorical.*expects \[2, 14, 4, 5\]"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_outputs_are_refused_with_what_is_expected_and_ambiguous_ones_with_the_alternatives(name):
    net, size, how, message = UNKNOWN[name]
    with pytest.raises(UnknownLayout, match=message):
        Sampler(Net(*net), (net[0], *size), **(how or {"levels": LEVELS}))


class Saying(Net):
    def __init__(self, logits_layout: object, shape) -> None:
        super().__init__(1, shape)
        self.logits_layout = logits_layout


@pytest.mark.parametrize("size", [(4, LEVELS), (LEVELS, 5)])
def test_a_shape_that_tells_counts_more_than_what_the_model_says(size):
    sampler = Sampler(Saying("N,C,H,W,L", split), (1, *size), levels=LEVELS)
    assert sampler.head == Categorical(LEVELS, "N,C,L,H,W")


@pytest.mark.parametrize("said", ["NCHW", ["N,C,H,W,L"], 5])
def test_a_model_may_mean_something_else_by_the_name(said):
    model = Saying(said, OUTPUTS["N,L,C,H,W"])
    assert Sampler(model, (1, LEVELS, LEVELS), levels=LEVELS).head == Categorical(LEVELS, "N,L,C,H,W")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("probabilities", [False, True])
def test_bernoulli(channels, probabilities):
    net = Net(channels, torch.sigmoid if probabilities else lambda x: x, levels=1).double()
    sampler = Sampler(net, (channels, 4, 5), head=heads.Bernoulli(probabilities))
    images = assert_all_runtimes_agree(sampler)
    assert images.unique().tolist() == [0, 1]
    p = net(images).detach() if probabilities else net(images).detach().sigmoid()
    assert torch.allclose(sampler.logits(images).softmax(-1)[..., 1], p, rtol=1e-12)
    assert sampler.head == Bernoulli(probabilities)  # whatever the model's dtype


def test_probabilities_that_are_certain():
    net = Net(1, lambda x: (100 * x).sigmoid(), levels=1).double()
    assert net(torch.ones(1, 1, 4, 5)).max() == 1
    assert_all_runtimes_agree(Sampler(net, (1, 4, 5), head=Bernoulli(probabilities=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_certain_is_so_by_the_digits_of_the_model(dtype):
    """Also in a copy of it that has more."""
    certain = torch.ones(1, 1, 1, 1)
    head = Bernoulli(probabilities=True).of_model_in(dtype)
    logit = head.arranged(certain, 1)[..., 1]
    assert logit.item() == torch.logit(1 - torch.tensor(torch.finfo(dtype).eps)).item()
    assert head.arranged(certain.to(dtype), 1)[..., 1].item() == pytest.approx(logit.item(), rel=0.01)


SOFTMAX = {  # over the levels, from [N, C * L, H, W], channels first
    "N,C,H,W,L": lambda f, x: f(OUTPUTS["N,C,H,W,L"](x), -1),
    "N,L,C,H,W": lambda f, x: f(OUTPUTS["N,L,C,H,W"](x), dim=1),
    "N,C*L,H,W": lambda f, x: f(split(x), dim=2).flatten(1, 2),
}


@pytest.mark.parametrize("layout", SOFTMAX)
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_softmax_at_the_end_is_left_out(layout, probabilities):
    f = F.softmax if probabilities else F.log_softmax
    net = Net(2, lambda x: SOFTMAX[layout](f, x)).double()
    head = Categorical(LEVELS, layout, probabilities)
    sampler, plain = Sampler(net, (2, 4, 5), head=head), sampler_of(split)
    assert sampler.program.weight_bytes == plain.program.weight_bytes
    images = assert_all_runtimes_agree(sampler)
    assert torch.equal(images, plain.sample(4, noise=noise(4, (2, 4, 5))))
    expected = head.arranged(net(images).detach(), 2)
    for runtime in ("reference", *RUNTIMES):
        assert torch.allclose(sampler.logits(images, runtime=runtime), expected, rtol=1e-12)


def log_of_a_softmax(x):
    x.softmax(1).mean()  # this one is thrown away
    return torch.log(torch.softmax(split(x), 2).clamp_min(0))


PROBABILITIES = {"head": Categorical(LEVELS, probabilities=True)}
CLOSED = {
    "a log of a softmax": (2, log_of_a_softmax, {}),
    "one for each channel": (2, lambda x: torch.stack([c.log_softmax(1) for c in x.chunk(2, 1)], 1), {}),
    "in another order": (2, lambda x: split(x).log_softmax(2).flip(2), {}),
    "probabilities of zero": (1, lambda x: (200 * x).softmax(1), PROBABILITIES),
    "probabilities, written out": (1, lambda x: x.exp() / x.exp().sum(1, keepdim=True), PROBABILITIES),
    "probabilities that underflow": (1, lambda x: torch.exp(-(20 * x).square()), PROBABILITIES),
}


@pytest.mark.parametrize("name", CLOSED)
def test_levels_that_are_normalised(name):
    channels, closed, how = CLOSED[name]
    sampler = sampler_of(closed, channels, **how)
    images = assert_all_runtimes_agree(sampler)
    if name in ("probabilities of zero", "probabilities that underflow"):
        assert Net(channels, closed).double()(images).min() == 0
    if name == "probabilities, written out":
        assert torch.equal(images, sampler_of(channels=1).sample(4, noise=noise(4, (1, 4, 5))))
    for runtime in RUNTIMES:
        found, expected = (sampler.logits(images, runtime=r).softmax(-1) for r in (runtime, "reference"))
        assert torch.allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("logit", [0.0, 1.5])
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_logit_of_a_level_may_be_a_constant(logit, probabilities):
    """It counts in a softmax at the end, too."""

    def closed(x):
        f = F.softmax if probabilities else F.log_softmax
        return f(F.pad(x[:, 1:], (0, 0, 0, 0, 1, 0), value=logit), 1)

    sampler = sampler_of(closed, 1, head=Categorical(LEVELS, probabilities=probabilities))
    assert_all_runtimes_agree(sampler)
    images = torch.zeros(1, 1, 4, 5, dtype=torch.long)
    for runtime in RUNTIMES:
        found, expected = (sampler.logits(images, runtime=r).softmax(-1) for r in (runtime, "reference"))
        assert torch.allclose(found, expected, rtol=1e-9)


def test_a_softmax_over_as_many_channels_as_levels_is_refused():
    net = Net(2, lambda x: x.unflatten(1, (2, 2)).log_softmax(1), levels=2)
    with pytest.raises(Unsupported, match="not over the levels"):
        Sampler(net.double(), (2, 4, 5), head=Categorical(2, "N,C,L,H,W"))


def partly_exchanged(x):
    """The last level of each channel is that of the other one."""
    return torch.cat([x[:, :, :-1], x[:, :, -1:].flip(1)], 2)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: split(x).softmax(2), "softmax.*probabilities=True"),
        (lambda x: split(x).log_softmax(-1), "not over the levels"),
        (lambda x: split(x.log_softmax(1)), "not over the levels"),  # over both channels
        (
            lambda x: partly_exchanged(x.unflatten(1, (7, 2)).transpose(1, 2).log_softmax(2)),
            "not over the levels",
        ),
        (lambda x: split(x).log_softmax(2).flip(4), "rearrangement"),
    ],
)
def test_another_softmax_is_refused(output, message):
    with pytest.raises(Unsupported, match=message):
        sampler_of(output)


@pytest.mark.parametrize(
    "output",
    [
        lambda x: 2 * split(x).log_softmax(2),
        lambda x: split(x + x.softmax(1)).log_softmax(2),
        lambda x: split(x * x.log_softmax(1).exp()) - split(x).logsumexp(2, keepdim=True),
        lambda x: (split(x).softmax(2) * split(x)[:, :1].softmax(1)).log(),
    ],
)
def test_a_softmax_of_features_is_computed(output):
    assert_all_runtimes_agree(sampler_of(output))


def test_probabilities_where_logits_are_expected_are_refused():
    with pytest.raises(Unsupported, match=r"heads\.Bernoulli\(probabilities=True\)"):
        sampler_of(lambda x: x[:, :1].sigmoid(), 1, head=Bernoulli())


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_images_that_are_no_integers_are_no_levels(dtype):
    with pytest.raises(ValueError, match=f"images are {dtype}: expected integer levels"):
        Categorical(4).checked(torch.ones(1, 1, 2, 2, dtype=dtype))


def test_bad_heads_are_refused():
    with pytest.raises(ValueError, match="layout"):
        Categorical(4, "NCHW")  # type: ignore[arg-type]  # there is no such layout
    with pytest.raises(ValueError, match=r"heads\.Categorical"):
        Sampler(Net(1), (1, 4, 5), head="categorical")  # type: ignore[arg-type]  # a name is not a head
    with pytest.raises(ValueError, match="leave levels out"):
        Sampler(Net(1), (1, 4, 5), head=Categorical(4), levels=5)


# -- how far distributions are apart


def apart(head: heads.Head, one: torch.Tensor, other: torch.Tensor, channels: int = 1) -> torch.Tensor:
    """[N, D, H, W, P], other's last axes alone given."""
    found = head.distance(one, other, channels)
    assert found.dtype == torch.float64 and found.shape == one.shape[:-1]
    return found


LOGITS = torch.tensor([0.0, 1.0, -2.0, 0.5]).view(1, 1, 1, 1, 4)


def test_the_distance_of_levels_is_the_total_variation():
    head, p = Categorical(4), LOGITS.double().softmax(-1)
    other = LOGITS.clone()
    other[..., 1] += 0.3
    q = other.double().softmax(-1)
    assert apart(head, LOGITS, other).item() == pytest.approx((p - q).abs().sum().item() / 2, rel=1e-12)
    assert apart(head, LOGITS, LOGITS + 7).item() < 1e-12  # the same distribution
    certain = torch.full_like(LOGITS, -1e9)
    certain[..., 2] = 0
    assert apart(head, certain, LOGITS).item() == pytest.approx(1 - p[..., 2].item())
    bernoulli = torch.tensor([[0.0, 0.2], [0.0, 0.7]]).view(2, 1, 1, 1, 2)
    expected = abs(torch.tensor(0.2).sigmoid() - torch.tensor(0.7).sigmoid()).item()
    assert apart(Bernoulli(), bernoulli[:1], bernoulli[1:]).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "mask", [-1e9, *(torch.finfo(t).min for t in (torch.float32, torch.float64)), -torch.inf]
)
def test_a_mask_hides_nothing(mask):
    masked, other = LOGITS.double(), LOGITS.double()
    masked[..., 2] = other[..., 2] = mask
    other[..., 1] += 1e-6
    assert 1e-7 < apart(Categorical(4), masked, other).item() < 1e-6
    assert apart(Categorical(4), masked, masked).item() == 0
    masked[..., 2] = mask / 2  # another number that is as good
    assert apart(Categorical(4), masked, masked).item() == 0


def test_where_there_is_no_distribution_the_distance_is_nan():
    assert apart(Categorical(4), LOGITS, LOGITS * float("nan")).isnan().all()


class OwnLevels(Categorical):
    """Levels with a draw of its own, which has the distance of any head."""

    distance = heads.Head.distance

    def draw(self, parameters, noise, options, values, known):
        return super().draw(parameters, noise, options, values, known)


def test_another_head_of_levels_is_compared_by_probabilities():
    one = torch.randn(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[3, 1, 2, 1, 0] += 1e-3
    found, exact = (apart(head, one, other, 2) for head in (OwnLevels(4), Categorical(4)))
    assert found.nonzero().tolist() == [[3, 1, 2, 1]] and bool((found <= exact).all())
    masked = one.masked_fill(torch.tensor([False, True, False, False]), -torch.inf)
    assert apart(OwnLevels(4), masked, masked, 2).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_probability_of_0_has_a_logit_in_any_dtype(dtype):
    head = heads.Categorical(2, "N,L,C,H,W", probabilities=True)
    logits = head.arranged(torch.tensor([0, 1], dtype=dtype).view(1, 2, 1, 1, 1), 1)
    assert logits.dtype == dtype and logits.isfinite().all()
    assert logits.flatten().softmax(0).tolist() == pytest.approx([0, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("closing", [lambda x: x.softmax(1), lambda x: x.log_softmax(1).exp()])
def test_probabilities_of_a_model_in_any_dtype(dtype, closing):
    layers = dict(conv=MaskedConv2d(1, 6, 3, "A"), last=nn.Conv2d(6, 4, 1))
    model = Written(
        lambda net, x: closing(4 * net.last(torch.tanh(net.conv(x.to(net.last.weight))))), **layers
    )
    head = heads.Categorical(4, probabilities=True)
    sampler = Sampler(model.to(dtype), (1, 5, 6), head=head, image_form="levels")
    images = torch.randint(4, (20, 1, 5, 6))
    found, expected = (sampler.logits(images, runtime=r).double().softmax(-1) for r in ("eager", "reference"))
    assert (found - expected).abs().sum(-1).max() < 16 * torch.finfo(dtype).eps
