"""Small causal styles of public code, small images, and models that only seem causal: right, or refused clearly."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, check_causal, heads, receptive_field
from pixelcnn_fast.errors import CaptureMismatch, NotCausal, Unsupported
from pixelcnn_fast.ops import diagonal_lstm, row_lstm
from tests.leaks import HIDDEN
from tests.system.agreement import assert_runtimes_agree
from tests.system.networks import Written
from tests.tiers import few

LEVELS, CHANNELS = 5, 6


class Net(nn.Module):
    """A first layer that sees the rows above, and whatever ``body`` makes of it."""

    ones: Tensor
    map: Tensor

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(1, CHANNELS, (2, 3)), nn.Conv2d(CHANNELS, CHANNELS, (2, 3))
        self.point, self.last = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, LEVELS, 1)
        self.of_image, self.codes = nn.Conv2d(1, CHANNELS, 1), nn.Embedding(LEVELS, CHANNELS)
        self.of_map, self.of_vector = nn.Conv2d(2, CHANNELS, 1), nn.Linear(3, CHANNELS)
        self.register_buffer("map", torch.randn(CHANNELS, 8, 7))
        self.body = body

    def above(self, x: Tensor) -> Tensor:
        """[N, 6, H + 1, W]: one row more than the image has."""
        return torch.relu(self.a(F.pad(x, (1, 1, 2, 0))))

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.last(torch.relu(self.body(self, x)))


def rows_above(net: Net, x: Tensor) -> Tensor:
    return net.above(x)[:, :, :-1]


class Conditioned(Net):
    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]  # another kind of model
        return 4 * self.last(torch.relu(self.body(self, x, condition)))


@torch.jit.script
def down(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], 2)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


def overlapping(net: Net, x: Tensor) -> Tensor:
    larger = F.conv2d(x, net.a.weight, net.a.bias, padding=(2, 1))
    here, above = larger[:, :, 1:-2], larger[:, :, :-3]
    here += net.of_image(x)  # changes the rows of ``above`` from the second on
    return net.point(above)


def flattened(net: Net, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    h = net.above(x)[:, :, :-1].permute(0, 2, 3, 1)
    n, height, width, c = h.shape
    weight = net.point.weight[:, :, 0, 0]
    out = F.linear(h.reshape([n if s == 0 else s for s in shape]), weight, net.point.bias)
    return out.view(n, height, width, c).permute(0, 3, 1, 2)


def normed_in(h: Tensor, order: tuple[int, ...], axes: tuple[int, int]) -> Tensor:
    """Over the channels, with the axes in another order, and some of them as one."""
    arranged = h.permute(order)
    flat = F.layer_norm(arranged.flatten(*axes), (CHANNELS,))
    return flat.unflatten(axes[0], arranged.shape[axes[0] : axes[1] + 1]).permute(
        [order.index(axis) for axis in range(4)]
    )


def padded_with_ones(net: Net, x: Tensor) -> Tensor:
    both = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
    return net.above(both[:, :1] + 0.3 * both[:, 1:])[:, :, :-1]


def data_replaced(net: Net, x: Tensor) -> Tensor:
    h = net.above(x)[:, :, :-1].clone()
    h.data = net.point(h)
    return h


def filled(net: Net, x: Tensor) -> Tensor:
    h = net.above(x)[:, :, :-1].clone()
    h[:, 0].fill_(0.7)
    h[:, 1][...] = -0.2
    return h


def over_padded(net: Net, x: Tensor) -> Tensor:
    """By more than the image has, and cropped."""
    return torch.tanh(F.conv2d(net.above(x)[:, :, :-1], net.point.weight, net.point.bias, padding=9))[
        :, :, 9:-9, 9:-9
    ]


def reordered_twice(net: Net, x: Tensor) -> Tensor:
    h = over_padded(net, x)
    for _ in range(2):
        a, b = h.chunk(2, 1)
        h = torch.cat([b, a], 1) + h.flip(1)
    return h


def turned_in_place(net: Net, x: Tensor) -> Tensor:
    h = net.above(x)[:, :, :-1].clone()
    h.transpose_(1, 3)
    h *= torch.arange(1, 1 + CHANNELS)
    h.transpose_(1, 3).unsqueeze_(1)
    h[:, 0, 2] = -1
    return h.squeeze_(1)


def offset(net: Net, x: Tensor) -> Tensor:
    """By a constant that a call on a batch has rounded otherwise for each image."""
    roundings = torch.finfo(net.map.dtype).eps * torch.arange(len(x)).to(net.map)
    return rows_above(net, x) + (1 + roundings).view(-1, 1, 1, 1)


def numbered_twice(net: Net, x: Tensor) -> Tensor:
    """One batch under two labels that are not given."""
    h, n = rows_above(net, x), len(x)
    labels = torch.cat([torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long)])
    both = torch.tanh(torch.cat([h, h]) + net.codes(labels)[..., None, None])
    one, other = net.point(both).chunk(2)
    return 2 * one - other


def filled_from_empty(net: Net, x: Tensor) -> Tensor:
    h = net.above(x)[:, :, :-1]
    out = torch.empty(len(h), CHANNELS, 8, 7, dtype=h.dtype)
    out[:, ::2], out[:, 1::2] = h[:, ::2], 2 * h[:, 1::2]
    return out


def of_safe_logarithms(net: Net, x: Tensor) -> Tensor:
    """Of levels, of which the lowest has none, and rounded down."""
    logarithm = torch.where(x > 0, x.log(), 0.0) + x.log().masked_fill(x == 0, 0.3)
    return net.above(logarithm + torch.div(4 * x, 3, rounding_mode="floor"))[:, :, :-1]


def under(rows: Tensor, x: Tensor, net: Net) -> Tensor:
    """[.., k, 7], [N, .., 8 + 1 - k, 7]: start rows on top, so that one row more than the image has are read."""
    return net.b(F.pad(torch.cat([rows.expand(len(x), -1, -1, -1), x], 2), (1, 1)))


STYLES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a map added after a crop": lambda net, x: net.above(x)[:, :, :-1] + net.map,
    "padded after a crop": lambda net, x: net.b(F.pad(net.above(x)[:, :, :-1], (1, 1, 1, 0))),
    "padded by the convolution after a crop": lambda net, x: F.conv2d(
        net.above(x)[:, :, :-1], net.b.weight, net.b.bias, padding=1
    )[:, :, :-1],
    "a cropped map written over": lambda net, x: filled(net, x),
    "added to one of two overlapping views": overlapping,
    "linear over all pixels of all images": lambda net, x: flattened(net, x, (-1, CHANNELS)),
    "linear over all pixels": lambda net, x: flattened(net, x, (0, -1, CHANNELS)),
    "normed, with the images last": lambda net, x: normed_in(net.above(x)[:, :, :-1], (2, 3, 0, 1), (0, 2)),
    "normed by rows of all images": lambda net, x: normed_in(net.above(x)[:, :, :-1], (0, 2, 3, 1), (0, 1)),
    "a scripted function": lambda net, x: down(net.a(F.pad(x, (1, 1, 1, 0)))),
    "a function with its own gradient": lambda net, x: Doubled.apply(net.above(x)[:, :, :-1]),
    "padded with ones": padded_with_ones,
    "under a start row": lambda net, x: under(net.map[:, :1], net.above(x)[:, :, :-1], net),
    "under two start rows, less the last one": lambda net, x: under(
        net.map[:, :2], net.above(x)[:, :, :-2], net
    ),
    "data replaced": data_replaced,
    "axes exchanged in place": turned_in_place,
    "filled from empty": filled_from_empty,
    "a constant that is rounded otherwise for each image": offset,
    "under two labels of its own": numbered_twice,
    "safe logarithms": of_safe_logarithms,
    "padded by more than the image": over_padded,
    "padded by more than the image and reordered": reordered_twice,
    "rows from the end and back": lambda net, x: net.above(x)[:, :, :-1].flip(2).contiguous().flip(2),
    "an integer of each level": lambda net, x: net.above((x * 4).round().long().remainder(3).to(x))[
        :, :, :-1
    ],
    "clamped far": lambda net, x: F.hardtanh(net.above(x)[:, :, :-1] * 1e8),
}


@pytest.mark.parametrize("dtype", few([torch.float64, torch.float32], 1))
@pytest.mark.parametrize("name", STYLES)
def test_styles_give_the_naive_images(name: str, dtype: torch.dtype) -> None:
    sampler = Sampler(Net(STYLES[name]).to(dtype), (1, 8, 7), levels=LEVELS, image_form="unit")
    assert assert_runtimes_agree(sampler, 4).unique().numel() >= 4


CONDITIONS: dict[str, tuple[Callable[..., Tensor], dict]] = {
    "a map": (
        lambda net, x, condition: net.above(x)[:, :, :-1] + net.of_map(condition),
        dict(condition_shape=(2, 8, 7)),
    ),
    "a vector where the batch is the third axis": (
        lambda net, x, condition: (
            net.above(x)[:, :, :-1].permute(2, 3, 0, 1) + net.of_vector(condition)
        ).permute(2, 3, 0, 1),
        dict(condition_shape=(3,)),
    ),
    "a start row": (
        lambda net, x, condition: under(
            net.of_vector(condition)[..., None, None].expand(-1, -1, 1, 7), net.above(x)[:, :, :-1], net
        ),
        dict(condition_shape=(3,)),
    ),
    "codes": (
        lambda net, x, condition: (
            net.above(x)[:, :, :-1] + F.interpolate(net.codes(condition).permute(0, 3, 1, 2), size=(8, 7))
        ),
        dict(condition_shape=(4, 4)),
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_give_the_naive_images(name: str) -> None:
    body, arguments = CONDITIONS[name]
    sampler = Sampler(Conditioned(body).double(), (1, 8, 7), levels=LEVELS, image_form="unit", **arguments)
    shape = (3, *arguments["condition_shape"])
    condition = torch.randint(LEVELS, shape) if name == "codes" else torch.randn(shape, dtype=torch.float64)
    assert_runtimes_agree(sampler, batch_sizes=(1, 3), condition=condition)


def square(net: Net) -> Tensor:
    return net.b.weight[..., :2]


DOUBLED: dict[str, Callable[[Net, Tensor], Tensor]] = {  # calls on [2 N, C, 8, 7]
    "linear": lambda net, x: (x.permute(0, 2, 3, 1) @ square(net)[:, :, 0, 0]).permute(0, 3, 1, 2),
    "group norm": lambda net, x: (
        F.group_norm(x.permute(0, 2, 3, 1).reshape(-1, CHANNELS), 2)
        .view(-1, 8, 7, CHANNELS)
        .permute(0, 3, 1, 2)
    ),
    "conv1d along rows": lambda net, x: (
        F.conv1d(F.pad(x.transpose(1, 2).flatten(0, 1), (1, 0)), square(net)[:, :, 0])
        .unflatten(0, (-1, 8))
        .transpose(1, 2)
    ),
    "conv1d along columns": lambda net, x: (
        F.conv1d(F.pad(x.permute(0, 3, 1, 2).flatten(0, 1), (1, 0)), square(net)[:, :, 0])
        .unflatten(0, (-1, 7))
        .permute(0, 2, 3, 1)
    ),
    "row_lstm": lambda net, x: row_lstm(x.repeat(1, 4, 1, 1), net.b.weight[:, :, 0].repeat(4, 1, 1)),
    "diagonal_lstm": lambda net, x: diagonal_lstm(x.repeat(1, 4, 1, 1), square(net)[:, :, 0].repeat(4, 1, 1)),
    "conv_transpose2d": lambda net, x: F.conv_transpose2d(
        F.conv2d(F.pad(x, (1, 0, 1, 0)), square(net), stride=2), square(net), stride=2
    )[:, :, :8, :7],
}


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("name", DOUBLED)
def test_one_batch_under_two_conditions_gives_the_naive_images(name: str, in_turn: bool) -> None:
    """in_turn: each image twice, instead of the whole batch."""

    def body(net: Net, x: Tensor, condition: Tensor) -> Tensor:
        def twice(one: Tensor, other: Tensor) -> Tensor:
            return torch.stack([one, other], int(in_turn)).flatten(0, 1)

        given = net.of_vector(twice(condition, torch.zeros_like(condition)))
        h = DOUBLED[name](net, rows_above(net, twice(x, x)) + given[..., None, None])
        with_it, without = h.unflatten(0, (-1, 2) if in_turn else (2, -1)).unbind(int(in_turn))
        return 2 * with_it - without

    model = Conditioned(body).double()
    sampler = Sampler(model, (1, 8, 7), levels=LEVELS, image_form="unit", condition_shape=(3,))
    condition = torch.randn(3, 3, dtype=torch.float64)
    assert assert_runtimes_agree(sampler, batch_sizes=(1, 3), condition=condition).unique().numel() >= 4


def test_two_conditions_in_one_batch_may_be_rounded_by_where_they_are() -> None:
    """As rows of a product are; whether they are, is up to the processor and the width."""
    weight = torch.randn(CHANNELS, 13, dtype=torch.float64)

    def body(net: Net, x: Tensor, condition: Tensor) -> Tensor:
        given = F.linear(torch.cat([condition, torch.zeros_like(condition)]), weight)
        h = torch.cat([rows_above(net, x)] * 2) + given[..., None, None]
        with_it, without = torch.tanh(h).chunk(2)
        return 2 * with_it - without

    sampler = Sampler(
        Conditioned(body).double(), (1, 8, 7), levels=LEVELS, image_form="unit", condition_shape=(13,)
    )
    assert_runtimes_agree(sampler, condition=torch.randn(3, 13, dtype=torch.float64))


def test_probabilities_that_are_changed_after_the_sigmoid() -> None:
    keep = torch.ones(8, 7, dtype=torch.float64)
    keep[0, 0] = 0
    net = Written(
        lambda net, x: torch.sigmoid(net.net(x)[:, :1]) * keep + 0.5 * (1 - keep), net=Net(rows_above)
    )
    sampler = Sampler(net.double(), (1, 8, 7), head=heads.Bernoulli(probabilities=True), image_form="unit")
    u = torch.rand(4, 1, 8, 7, dtype=torch.float64)
    naive = sampler.sample(4, noise=u, runtime="reference")
    assert torch.equal(sampler.sample(4, noise=u), naive) and torch.equal(
        naive[:, 0, 0, 0] == 1, u[:, 0, 0, 0] >= 0.5
    )


# -- images of one column, or one pixel


def tap_to_the_right(net: Net, x: Tensor) -> Tensor:
    weight = torch.tensor([0.5, 0.5, 0, 0], dtype=x.dtype).view(1, 1, 2, 2).repeat(CHANNELS, 1, 1, 1)
    return F.conv2d(net.above(x)[:, :, :-1], weight, padding="same", groups=CHANNELS)


def norm_of_a_shifted_map(net: Net, x: Tensor) -> Tensor:
    shifted = F.pad(net.above(x)[:, :, :-1], (1, 0))[..., :-1]
    return F.layer_norm(shifted.permute(0, 2, 3, 1), (CHANNELS,)).permute(0, 3, 1, 2)


def along_rows(net: Net, x: Tensor) -> Tensor:
    x = rows_above(net, x)
    n, c, height, width = x.shape
    weight = torch.ones(c, 1, 2, dtype=x.dtype)
    rows = F.pad(x.transpose(1, 2).reshape(n * height, c, width), (1, 0))
    return F.conv1d(rows, weight, groups=c).view(n, height, c, width).transpose(1, 2)


def along_columns(net: Net, x: Tensor) -> Tensor:
    x = rows_above(net, x)
    n, c, height, width = x.shape
    weight = torch.ones(c, 1, 2, dtype=x.dtype)
    columns = F.pad(x.permute(0, 3, 1, 2).reshape(n * width, c, height), (1, 0))
    return F.conv1d(columns, weight, groups=c).view(n, width, c, height).permute(0, 2, 3, 1)


def all_around(net: Net, x: Tensor) -> Tensor:
    x = rows_above(net, x)
    weight = torch.tensor([1.0, 2, 3], dtype=x.dtype).expand(CHANNELS, 1, 1, 3)
    above = F.conv2d(F.pad(x, (1, 1, 0, 0), mode="circular"), weight, groups=CHANNELS)
    return x + F.pad(above, (0, 0, 1, -1))


BODIES = [tap_to_the_right, norm_of_a_shifted_map, filled, overlapping, over_padded]
BODIES += [along_rows, along_columns, all_around]


@pytest.mark.parametrize("size", [(6, 1), (1, 6), (1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("body", BODIES)
def test_small_images(body: Callable[[Net, Tensor], Tensor], size: tuple[int, int]) -> None:
    model = Net(body).double()
    if body is norm_of_a_shifted_map and size[1] == 1:  # nothing is left of it
        with pytest.raises(Unsupported, match="does not depend on the image"):
            Sampler(model, (1, *size), levels=LEVELS, image_form="unit")
        return
    assert_runtimes_agree(Sampler(model, (1, *size), levels=LEVELS, image_form="unit"), 4)


# -- models that see the whole image through a Python number


LEAKS: dict[str, Callable[[Tensor], Tensor]] = {
    **HIDDEN,
    "a mean that stays a tensor": lambda x: x - x.mean(),
}


@pytest.mark.parametrize("name", LEAKS)
def test_what_sees_the_whole_image_is_never_called_causal(name: str) -> None:
    model = Net(lambda net, x: net.above(LEAKS[name](x))[:, :, :-1])
    arguments: dict[str, Any] = dict(levels=4, image_form="levels")
    model.last = nn.Conv2d(CHANNELS, 4, 1)
    for function in (check_causal, receptive_field, Sampler):
        with pytest.raises((Unsupported, NotCausal, CaptureMismatch)):
            function(model, (1, 4, 4), **arguments)


def test_a_plain_branch_on_the_range_is_followed_and_shown() -> None:
    model = Net(lambda net, x: net.above(x / 4 if x.max() > 1 else x)[:, :, :-1])
    sampler = Sampler(model, (1, 8, 7), levels=LEVELS, image_form="levels")
    assert "taken for granted: model: an if on the image is True" in str(sampler.program)


@pytest.mark.parametrize("eps", [1e-3, 0.2])
def test_a_logit_keeps_its_eps(eps: float) -> None:
    net = Net(lambda net, x: 20 * rows_above(net, x))
    model = Written(lambda kept, x: torch.logit(torch.sigmoid(kept.net(x)[:, :1]), eps=eps), net=net)
    sampler = Sampler(model.double(), (1, 8, 7), head=heads.Bernoulli(), image_form="unit")
    images = torch.randint(2, (20, 1, 8, 7))
    expected = sampler.logits(images, runtime="reference")
    assert expected.abs().max() < math.log(1 / eps)
    for runtime in ("eager", "auto"):
        assert torch.allclose(sampler.logits(images, runtime=runtime), expected, atol=1e-9)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_logit_of_probabilities_that_are_constants_in_part(p: float) -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        shares = torch.sigmoid(net.above(x)[:, :, :-1])
        return -torch.logit(F.pad(shares[:, 1:], (0, 0, 0, 0, 1, 0), value=p), eps=0.1)

    sampler = Sampler(Net(body).double(), (1, 8, 7), levels=LEVELS, image_form="unit")
    images = torch.randint(LEVELS, (2, 1, 8, 7))
    found, expected = (sampler.logits(images, runtime=r) for r in ("eager", "reference"))
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probabilities_may_be_zero_and_one(dtype: torch.dtype) -> None:
    def certain_in_part(certain: Any, x: Tensor) -> Tensor:
        p, column = torch.sigmoid(certain.net(x)[:, :1]), torch.arange(7)
        return torch.where(column == 3, 1.0, torch.where(column == 5, 0.0, p)).to(p)

    model = Written(certain_in_part, net=Net(rows_above)).to(dtype)
    sampler = Sampler(model, (1, 8, 7), head=heads.Bernoulli(probabilities=True), image_form="unit")
    for runtime in ("reference", "eager", "auto"):
        images = sampler.sample(50, runtime=runtime)
        assert images[..., 3].all() and not images[..., 5].any()


@pytest.mark.parametrize("is_buffer", [True, False])
def test_colours_may_be_ordered_by_a_mask_on_the_features(is_buffer: bool) -> None:
    """What is multiplied by zero is not seen."""

    def coloured(net: Any, x: Tensor) -> Tensor:
        above = net.above(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
        return torch.stack(
            [net.last(torch.tanh(above + net.here(x * getattr(net, name)))) for name in masks], 1
        )

    masks = {f"mask{c}": (torch.arange(3) < c).double().view(3, 1, 1) for c in range(3)}
    layers = dict(above=nn.Conv2d(3, CHANNELS, (2, 3)), here=nn.Conv2d(3, CHANNELS, 1))
    model = Written(coloured, last=nn.Conv2d(CHANNELS, LEVELS, 1), **layers, **(masks if is_buffer else {}))
    if not is_buffer:
        vars(model).update(masks)
    head = heads.Categorical(LEVELS, "N,C,L,H,W")
    assert_runtimes_agree(Sampler(model.double(), (3, 5, 6), head=head, image_form="unit"), 4)


@pytest.mark.parametrize("at", [None, 8])  # the one pixel, of 12, that sees the next one
def test_a_window_s_mask_may_let_through_what_lies_outside_the_image(at: int | None) -> None:
    number = torch.arange(1, 13.0)
    mask = (F.unfold(number.view(1, 1, 3, 4), 3, padding=1)[0] < number).double()
    assert mask[5, 3::4].all()  # the right neighbour in the last column
    if at is not None:
        mask[5, at] = 1

    def masked(net: Any, x: Tensor) -> Tensor:
        return (net.weight @ (F.unfold(x, 3, padding=1) * net.mask)).view(-1, LEVELS, 3, 4)

    model = Written(masked, weight=nn.Parameter(torch.randn(LEVELS, 9).double()), mask=mask)
    arguments: dict[str, Any] = dict(image_form="unit", levels=LEVELS)
    with nullcontext() if at is None else pytest.raises(NotCausal, match=r"tap \(\+0, \+1\)"):
        check_causal(model, (1, 3, 4), **arguments)
        assert_runtimes_agree(Sampler(model, (1, 3, 4), **arguments), 4)


ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "an integer divided": lambda x: (x / 255).double(),
    "float32": lambda x: (x.float() / 127.5 - 1).double(),
    "float16": lambda x: (x.half() / 255).double(),
    "bfloat16": lambda x: x.bfloat16().div(255).double(),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_levels_may_be_rounded_to_fewer_digits_than_the_model_s(name: str) -> None:
    model = Net(lambda net, x: net.above(ROUNDED[name](x))[:, :, :-1]).double()
    sampler = Sampler(model, (1, 8, 7), levels=LEVELS)
    u = torch.rand(4, 1, 8, 7, dtype=torch.float64)
    assert torch.equal(sampler.sample(4, noise=u), sampler.sample(4, noise=u, runtime="reference"))
