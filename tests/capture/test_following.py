"""Calls that move features and pixels around, and the rest of what capture follows: same images in every runtime."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.capture.lower import tables
from pixelcnn_fast.errors import Unsupported
from tests.system.agreement import assert_runtimes_agree
from tests.system.networks import ABOVE, HERE, LEFT, Masked
from tests.tolerances import assert_identical_up_to_rounding

C, SHAPE = 6, (2, 5, 6)


class Net(nn.Module):
    """conv_in -> body -> conv_out, with layers for the body to use: all causal, all with 6 channels in."""

    def __init__(self, body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = Masked(2, C, [*ABOVE, *LEFT])
        self.same = Masked(C, C, [*ABOVE, *LEFT, *HERE])
        self.wide = Masked(C, 2 * C, [*ABOVE, *LEFT, *HERE])
        self.narrow = Masked(2 * C, C, [*ABOVE, *LEFT, *HERE])
        self.above = Masked(2, C, ABOVE)
        self.plain = nn.Conv2d(C, C, (2, 3))
        self.point = nn.Linear(C, C)
        self.embed = nn.Embedding(256, 3)
        self.embed_in, self.embed_one = Masked(6, C, [*ABOVE, *LEFT]), Masked(3, C, [*ABOVE, *LEFT])
        self.norm = nn.LayerNorm(C)
        self.conv_out = nn.Conv2d(C, 512, 1)
        self.body = body

    def forward(self, images):
        x = images.to(self.conv_out.weight.dtype) / 128 - 1
        h = self.body(self, self.conv_in(x), x, images)
        n, c, height, width = images.shape
        return 3 * self.conv_out(h).view(n, c, 256, height, width).permute(0, 1, 3, 4, 2)


def gate(x):
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def with_first_row_zero(x):
    x[:, :, 0] = 0
    return x


def written_into(x):
    out = torch.zeros_like(x)
    out[:, :, 1:, :] = x[:, :, :-1, :]
    return out


def left(x):
    return F.pad(x, (1, 0))[..., :-1]


CHECKERED = (torch.arange(5)[:, None] + torch.arange(6)) % 2 == 0
COORDINATES = torch.linspace(-1, 1, 5)[:, None]


def above(x):
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def sines(x, weight, bias=None):
    """Of what a convolution, whose weights are [2, 2], makes of levels: [N, 1, H, W]."""
    bias = bias if bias is None else bias.to(x)
    return left(torch.sin(F.conv2d(x, weight.to(x)[:, :, None, None], bias))).sum(1, keepdim=True)


def channels_last(f):
    return lambda x: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def nested(net, h):
    def split(x):
        return (x[:, :3], {"rest": [x[:, 3:]]})

    first, rest = split(h)
    return torch.cat([first * 2, F.elu(rest["rest"][0])], 1)


def shuffled(x):
    n, c, height, width = x.shape
    return x.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)


def unflattened_norm(x):
    return F.layer_norm(x.unflatten(-1, (2, 3)), (3,)).flatten(-2)


def normed_halves(x):
    return torch.cat([channels_last(lambda y: F.layer_norm(y, (3,)))(part) for part in x.chunk(2, 1)], 1)


def split_and_sliced(x):
    a, _, b = x.split(2, 1)
    return (a * b + x[:, 1:3].repeat(1, 3, 1, 1)[:, :2]).repeat(1, 3, 1, 1)


def one_hot(levels, dtype):
    return F.one_hot(levels.long(), 256).to(dtype).permute(0, 1, 4, 2, 3).flatten(1, 2)


def grouped(net, x):
    weight = net.plain.weight[:, :2].repeat(1, 1, 2, 1)[:, :, :3]
    return F.conv2d(F.pad(x, (2, 0, 2, 0)), weight, groups=3)


def cropped_off_the_middle(net, x):
    larger = F.conv2d(x, net.plain.weight, net.plain.bias, padding=(2, 3))
    return larger.mul(2).tanh()[:, :, 1:6, 1:7]


def normed_by_hand(x):
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-3)


def depthwise_and_pointwise(net, h):
    causal = net.same.weight * net.same.mask
    return F.conv2d(F.conv2d(h, causal[:, :1], groups=C, padding=1), causal[:, :2, :1, :1], groups=3)


def summed_up(net, h):
    """From zeros, as skip connections are summed."""
    total = torch.zeros_like(h)
    total += h
    for layer in (net.same, net.same):
        total.add_(layer(h))
    return total


BODIES = {
    "masked in any shape": lambda net, h, x, i: (
        net.same(torch.where(CHECKERED, h, 0.5 * net.same(h))) + h.tril()
    ),
    "coordinates": lambda net, h, x, i: net.narrow(
        torch.cat([h, COORDINATES.to(h).expand(len(h), C, 5, 6)], 1)
    ),
    "chosen by levels": lambda net, h, x, i: torch.where(left(i)[:, :1] > 99, h, -2.0).masked_fill(
        left(i)[:, 1:] < 9, 3
    ),
    "codes shifted before they are looked up": lambda net, h, x, i: (
        h + net.embed_one(net.embed(F.pad(i.long(), (0, 0, 1, 0), value=7)[:, 0, :-1]).permute(0, 3, 1, 2))
    ),
    "several functions of one level": lambda net, h, x, i: (
        h * torch.logical_xor(left(i) > 200, left(i) % 2 == 1)[:, :1]
    ),
    "sines of levels": lambda net, h, x, i: (
        h + left(torch.sin(x[:, :1] * torch.arange(C).to(x).view(C, 1, 1)))
    ),
    "windows": lambda net, h, x, i: (net.same.mask.flatten(1) @ F.unfold(h, 3, padding=1)).view_as(h),
    "a gated linear unit": lambda net, h, x, i: F.glu(net.wide(h), 1),
    "a gated linear unit over the last axis": lambda net, h, x, i: channels_last(F.glu)(net.wide(h)),
    "shifted, channels last, and multiplied": lambda net, h, x, i: channels_last(
        lambda y: F.pad(y, (0, 0, 0, 0, 1, 0))[:, :-1] * (1 + y)
    )(h),
    "a slope per channel": lambda net, h, x, i: F.prelu(h, torch.linspace(-1, 1, C, dtype=h.dtype)),
    "one slope": lambda net, h, x, i: F.prelu(h, torch.full((1,), 0.3, dtype=h.dtype)),
    "a matrix product": lambda net, h, x, i: channels_last(lambda y: y @ net.point.weight)(h),
    "depthwise and pointwise": lambda net, h, x, i: depthwise_and_pointwise(net, h),
    "summed up in place": lambda net, h, x, i: summed_up(net, h),
    "a plane of ones": lambda net, h, x, i: net.narrow(
        torch.cat([h, h[:, :5], torch.ones(len(h), 1, 5, 6).to(h)], 1)
    ),
    "gate": lambda net, h, x, i: gate(net.wide(h)),
    "gate also read whole": lambda net, h, x, i: (lambda v: gate(v) + net.narrow(v))(net.wide(h)),
    "gate with a condition first": lambda net, h, x, i: gate(
        F.relu(net.wide(h)) + torch.arange(12)[:, None, None] / 6
    ),
    "split and slices": lambda net, h, x, i: split_and_sliced(h),
    "cat": lambda net, h, x, i: net.narrow(torch.cat([h, F.relu(net.same(h))], 1)),
    "cat then activation": lambda net, h, x, i: F.silu(net.narrow(F.elu(torch.cat([h, -h], 1)))),
    "cat of shifted and plain": lambda net, h, x, i: net.narrow(
        torch.cat([F.pad(h, (0, 0, 1, 0))[:, :, :-1], h], 1)
    ),
    "stack and unbind": lambda net, h, x, i: torch.stack([h, net.same(h)], 1).unbind(1)[1],
    "channels shuffled": lambda net, h, x, i: net.same(shuffled(h)) + shuffled(h),
    "channels flipped": lambda net, h, x, i: h.flip(1) * h,
    "channels by index": lambda net, h, x, i: h[:, torch.tensor([5, 0, 0, 3, 2, 1])] + h,
    "one channel for all": lambda net, h, x, i: h * torch.sigmoid(h[:, 2:3]),
    "nested": lambda net, h, x, i: nested(net, h),
    "pad and valid": lambda net, h, x, i: net.plain(F.pad(h, (2, 0, 1, 0))),
    "padded on all sides": lambda net, h, x, i: F.conv2d(h, net.plain.weight, padding=(1, 2)).relu()[
        ..., :5, :6
    ],
    "cropped off the middle": lambda net, h, x, i: cropped_off_the_middle(net, h),
    "cropped then padded": lambda net, h, x, i: h + net.same(F.pad(h[:, :, :-1, :], (0, 0, 1, 0))),
    "zero pad module": lambda net, h, x, i: h + nn.ZeroPad2d((1, 0, 0, 0))(h)[:, :, :, :-1],
    "convolution of a crop": lambda net, h, x, i: F.pad(net.same(h[:, :, :-1]), (0, 0, 1, 0)) + h,
    "rolled with its first row zeroed": lambda net, h, x, i: net.same(
        with_first_row_zero(torch.roll(h, 1, 2))
    ),
    "rolled and multiplied": lambda net, h, x, i: (
        net.same(with_first_row_zero(torch.roll(F.relu(h), 1, 2))) * h
    ),
    "written into zeros": lambda net, h, x, i: net.same(written_into(net.same(h))),
    "zeros inside the image": lambda net, h, x, i: net.same(F.pad(h[:, :, 1:-1, 1:-1], (1, 1, 1, 1))),
    "zeros inside, through a sigmoid": lambda net, h, x, i: h * torch.sigmoid(F.pad(h[:, :, :, :-1], (1, 0))),
    "a shift of a shift": lambda net, h, x, i: net.same(
        F.pad(F.pad(h, (0, 0, 1, 0))[:, :, :-1], (1, 0))[:, :, :, :-1]
    ),
    "a vertical stack shifted down": lambda net, h, x, i: (
        h + F.pad(F.elu(net.above(x)), (0, 0, 1, 0))[:, :, :-1]
    ),
    "a channel of ones": lambda net, h, x, i: (
        net.same(h) + torch.arange(30.0, dtype=h.dtype).view(1, 1, 5, 6) / 30
    ),
    "a map over the image": lambda net, h, x, i: (
        h * torch.linspace(0, 1, 180, dtype=h.dtype).view(1, 6, 5, 6)
    ),
    "concat-elu": lambda net, h, x, i: net.narrow(F.elu(torch.cat([h, -h], dim=1))),
    "gelu": lambda net, h, x, i: F.gelu(h) + F.gelu(net.same(h), approximate="tanh"),
    "softplus": lambda net, h, x, i: F.softplus(3 * h, beta=2),
    "layer norm": lambda net, h, x, i: channels_last(net.norm)(net.same(h)),
    "layer norm of a sum": lambda net, h, x, i: h + channels_last(net.norm)(h + F.relu(net.same(h))),
    "layer norm in groups": lambda net, h, x, i: channels_last(unflattened_norm)(h),
    "layer norm of halves": lambda net, h, x, i: net.same(normed_halves(h)),
    "layer norm by hand": lambda net, h, x, i: net.same(normed_by_hand(h)),
    "linear on channels last": lambda net, h, x, i: channels_last(net.point)(net.same(h)),
    "groups": lambda net, h, x, i: h + grouped(net, h),
    "depthwise": lambda net, h, x, i: F.conv2d(F.pad(h, (2, 0, 1, 0)), net.plain.weight[:, :1], groups=6),
    "ratios and powers": lambda net, h, x, i: h / (1 + h * h) + (1 + h.square()).sqrt() + 2 / (2 + h**2),
    "pixels in raster order, shifted": lambda net, h, x, i: (
        h + net.same(F.pad(h.flatten(2), (1, 0))[..., :-1].view(h.shape))
    ),
    "a start token, and flattened pixels": lambda net, h, x, i: (
        h + net.above(F.pad(x.flatten(2), (2, 0), value=0.5)[..., :-2].view(x.shape))
    ),
    "padded, then scaled by channel": lambda net, h, x, i: (
        h + net.above(((F.pad(x, (0, 0, 1, 0)) - torch.arange(1.0, 3.0)[:, None, None]) / 3)[:, :, :-1])
    ),
    "a start token": lambda net, h, x, i: h + net.above(left((i.long() + 1) % 7).to(h)),
    "scaled inputs": lambda net, h, x, i: h + net.above((x - 0.1) / torch.arange(3.0, 5.0)[:, None, None]),
    "levels between bounds": lambda net, h, x, i: h + net.above(i.clamp_min(90).clamp(max=200).to(h) / 255),
    "rows of a weight, its channels first": lambda net, h, x, i: (
        h
        + net.embed_one(
            net.embed.weight.T.index_select(1, i[:, 0].long().flatten()).view(3, *i[:, 0].shape).movedim(0, 1)
        )
    ),
    "scattered": lambda net, h, x, i: (
        h
        + F.conv2d(
            torch.zeros(len(i), 256, 5, 6).to(h).scatter(1, i[:, :1].long(), 9.0), weights(256), padding=1
        )
    ),
    "one-hot": lambda net, h, x, i: h + F.conv2d(one_hot(i, h.dtype), weights(512), padding=1),
    "embedding of levels": lambda net, h, x, i: (
        h + net.embed_in(net.embed(i.long()).movedim(-1, 2).flatten(1, 2))
    ),
    "embedding of one channel": lambda net, h, x, i: (
        h + net.embed_one(net.embed(i[:, 1].long()).permute(0, 3, 1, 2))
    ),
}


def weights(channels: int):
    """[6, channels, 3, 3], mask A."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(6, channels, 3, 3, dtype=torch.float64, generator=generator) / channels**0.5
    weight[:, :, 1, 1:] = 0
    weight[:, :, 2] = 0
    return weight


@pytest.mark.parametrize("name", BODIES)
def test_what_is_followed(name):
    net = Net(BODIES[name]).double()
    sampler = Sampler(net, SHAPE)
    assert_runtimes_agree(sampler)
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8)
    expected = net(images).detach()
    for runtime in ("eager", "auto"):
        assert_identical_up_to_rounding(sampler.logits(images, runtime=runtime), expected)


def test_a_gate_is_two_halves_of_a_convolution_and_steps():
    program = Sampler(Net(BODIES["gate"]), SHAPE)._engine.require_compiled().program
    halves = [i for i in program.instructions if i.name == "wide"]
    assert [i.channels for i in halves] == [C, C]
    assert [[s.kind for s in i.instruction.steps] for i in halves] in (
        [["sigmoid"], ["tanh", "multiply"]],
        [["tanh"], ["sigmoid", "multiply"]],
    )
    assert len(program.instructions) == 5


def test_what_is_concatenated_and_added_stays_in_parts():
    """A product with the identity would take a pixel as long as one with weights of that size."""

    def body(net, h, x, i):
        beside = torch.cat([h, torch.linspace(-1, 1, 6).expand(len(h), C, 5, 6)], 1)
        return net.narrow(beside + net.wide(h).tanh())

    sampler = Sampler(Net(body), SHAPE)
    assert_runtimes_agree(sampler)
    program = sampler._engine.require_compiled().program
    taps = [tap.weight for i in program.instructions for tap in i.instruction.taps]
    assert not [
        weight for weight in taps if len(weight) > 1 and torch.equal(weight, weight.bool().to(weight))
    ]


REFUSED = {
    "columns turned, below a row of zeros": (
        lambda net, h, x, i: net.same(F.pad(h, (0, 0, 1, -1)).flip(3)),
        "same: .*rearrangement",
    ),
    "rows in threes": (lambda net, h, x, i: net.same(h[:, :, [2, 1, 0, 4, 3]]), "same: .*rearrangement"),
    "flipped": (lambda net, h, x, i: net.same(h.flip(3)), "flipped"),
    "rows with columns": (
        lambda net, h, x, i: h + F.pad(h[:, :, :, :5] * h[:, :, :, :5].mT, (0, 1)),
        "rows with columns",
    ),
    "reflected padding": (
        lambda net, h, x, i: F.conv2d(F.pad(h, (1, 1, 1, 1), mode="reflect"), weights(6)),
        "reflect",
    ),
    "valid convolutions of a larger map": (
        lambda net, h, x, i: F.conv2d(F.conv2d(F.pad(h, (4, 0, 4, 0)), weights(6)), weights(6)),
        "larger than the image",
    ),
    "products of wider maps": (
        lambda net, h, x, i: (F.pad(h, (2, 0)) * F.pad(h, (0, 2)))[..., 1:-1],
        r"a map of \[5, 8\] pixels, which is larger than the image",
    ),
    "products of higher maps": (
        lambda net, h, x, i: (F.pad(h, (0, 0, 2, 0)) * F.pad(h, (0, 0, 0, 2)))[:, :, 1:-1],
        r"a map of \[7, 6\] pixels, which is larger than the image",
    ),
    "layer norm over space": (lambda net, h, x, i: F.layer_norm(h, (6, 5, 6)), "layer_norm.*pixels"),
    "instance norm": (lambda net, h, x, i: F.instance_norm(h), "instance_norm"),
    "attention": (
        lambda net, h, x, i: (h.flatten(2) @ F.softmax(h.flatten(2).mT @ h.flatten(2), -1)).view(h.shape),
        "matmul|softmax",
    ),
    "a matrix from the image": (
        lambda net, h, x, i: h.mT.matmul(h).mT[..., :5, :6] + h,
        "features of one pixel",
    ),
    "a map enlarged smoothly": (
        lambda net, h, x, i: F.interpolate(F.conv2d(h, weights(6), stride=2), (5, 6), mode="bilinear"),
        "interpolate",
    ),
    "a map enlarged by half": (
        lambda net, h, x, i: net.same(F.interpolate(F.avg_pool2d(h, (3, 2)), (5, 6))),
        "rearrangement|more pixels",
    ),
    "a sum over space": (lambda net, h, x, i: h + h.sum((2, 3), keepdim=True), "sum"),
    "a convolution of a map that is one row higher": (
        lambda net, h, x, i: F.conv2d(F.conv2d(F.pad(h, (2, 0, 3, 0)), weights(6)), weights(6)[:, :, :2, :1]),
        "larger than the image",
    ),
    "a function of two channels": (
        lambda net, h, x, i: h * torch.logical_xor(left(i)[:, :1] > 9, left(i)[:, 1:] > 9),
        "a function of several levels",
    ),
    "a function of two rows": (
        lambda net, h, x, i: h * torch.logical_xor(left(i)[:, :1] > 9, above(left(i))[:, :1] > 9),
        "a function of several levels",
    ),
    "a function of two columns": (
        lambda net, h, x, i: h * torch.logical_xor(left(i)[:, :1] > 9, left(left(i))[:, :1] > 9),
        "a function of several levels",
    ),
    "complex numbers": (
        lambda net, h, x, i: h + (left(x)[:, :1] * 1j).exp().real,
        "it computes complex numbers",
    ),
    "a sine of levels and a bias": (
        lambda net, h, x, i: h + sines(x, torch.eye(2), torch.ones(2)),
        "not a function of one level",
    ),
    "a sine of levels that are scaled": (
        lambda net, h, x, i: h + sines(x, 2 * torch.eye(2)),
        "not a function of one level",
    ),
    "a sine of a sum of levels": (
        lambda net, h, x, i: h + sines(x, torch.tensor([[1, 0.5], [0, 1]])),
        "not a function of one level",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    body, message = REFUSED[name]
    with pytest.raises(Unsupported, match=message):
        Sampler(Net(body).double(), SHAPE)


def test_a_table_holds_only_so_many_functions(monkeypatch):
    def body(functions):
        numbers = torch.arange(functions).view(-1, 1, 1)
        return lambda net, h, x, i: h + (left(i)[:, :1].long() ^ numbers).sum(1, keepdim=True)

    monkeypatch.setattr(tables, "MOST_COLUMNS", 4)
    Sampler(Net(body(4)).double(), SHAPE)
    with pytest.raises(Unsupported, match="5 functions of a level, which is more than a table holds"):
        Sampler(Net(body(5)).double(), SHAPE)
