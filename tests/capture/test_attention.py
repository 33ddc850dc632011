"""Attention as people write it: right in all runtimes, or refused clearly."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, check_causal, receptive_field
from pixelcnn_fast.capture.lower import averages
from pixelcnn_fast.errors import NonFiniteLogits, NotCausal, PixelCNNFastError, Unsupported
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes import RuntimeName
from tests.system.agreement import assert_runtimes_agree
from tests.tiers import few

HEIGHT, WIDTH, LEVELS, CHANNELS, HEADS = 4, 5, 3, 8, 2
PIXELS, OF_HEAD = HEIGHT * WIDTH, CHANNELS // HEADS
SHAPE = (1, HEIGHT, WIDTH)
INCLUSIVE = torch.ones(PIXELS, PIXELS).tril().bool()
STRICT = INCLUSIVE.tril(-1)

Attend = Callable[["Net", Tensor, Tensor, Tensor], Tensor]  # query, key and value, [N, H * W, C]


class Net(nn.Module):
    """Attention over features that see earlier pixels; with ``sees_own``, keys and values see their own, too."""

    mask: Tensor

    def __init__(self, attend: Attend, sees_own: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.own = MaskedConv2d(1, CHANNELS, 3, "A"), nn.Conv2d(1, CHANNELS, 1)
        self.of_query, self.of_key, self.of_value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.narrow = nn.Linear(CHANNELS, OF_HEAD)
        self.temperature = nn.Parameter(torch.rand(HEADS, 1, 1))
        self.relative = nn.Parameter(torch.randn(HEADS, 2 * PIXELS))
        self.layer = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
        self.out, self.last = nn.Linear(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, LEVELS, 1)
        self.attend, self.sees_own = attend, sees_own
        self.register_buffer("mask", STRICT if sees_own else INCLUSIVE)
        for weights in self.parameters():
            nn.init.normal_(weights, std=0.8 if weights.dim() > 1 else 0.1)

    def forward(self, x: Tensor) -> Tensor:
        before = torch.tanh(self.first(x))
        of_keys = before + self.own(x) if self.sees_own else before
        flat, flat_keys = (y.flatten(2).transpose(1, 2) for y in (before, of_keys))
        found = self.attend(self, self.of_query(flat), self.of_key(flat_keys), self.of_value(flat_keys))
        return self.last(before + self.out(found).mT.view_as(before))


def split(x: Tensor) -> Tensor:
    """[N, H * W, C] -> [N, heads, H * W, channels of a head]"""
    return x.unflatten(2, (HEADS, OF_HEAD)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def together(x: Tensor) -> Tensor:
    """-> [N * heads, channels of a head, H * W]"""
    return x.mT.reshape(-1, OF_HEAD, PIXELS)


def added_mask(net: Net, fill: float = -torch.inf) -> Tensor:
    return torch.zeros(PIXELS, PIXELS, dtype=net.out.weight.dtype).masked_fill(~net.mask, fill)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return split(q) @ split(k).mT / math.sqrt(OF_HEAD)


def masked(net: Net, q: Tensor, k: Tensor, v: Tensor, fill: float = -1e9) -> Tensor:
    return joined(scores(q, k).masked_fill(~net.mask, fill).softmax(-1) @ split(v))


def filled_with_little(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return masked(net, q, k, v, -1e4)


def zeroed(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    start = torch.ones(PIXELS, 1)
    start[0] = 0
    return joined(scores(q, k).masked_fill(~net.mask, -1e4).softmax(-1) * start @ split(v))


def zeroed_afterwards(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    start = torch.ones(PIXELS, 1)
    start[0] = 0
    return F.relu(masked(net, q, k, v, -1e4) - 0.1) * start


def decayed(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    apart = (torch.arange(PIXELS)[:, None] - torch.arange(PIXELS)).abs()
    powers = scores(q, k).exp() * net.mask * 0.8**apart
    return joined(powers / powers.sum(-1, keepdim=True) @ split(v))


def zeroed_far_behind(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first pixel, which sees all."""
    start = torch.arange(PIXELS)[:, None] > 0
    found = scores(q, k).masked_fill(~(net.mask | ~start), -math.inf).softmax(-1) @ split(v)
    return F.layer_norm(q + net.out(joined(found)), (CHANNELS,)) * start


def padded(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.pad(masked(net, q, k, v, -1e10)[:, 1:], (0, 0, 1, 0))


def zeroed_itself(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first pixel, which sees itself."""
    start = torch.arange(PIXELS)[:, None] > 0
    found = scores(q, k).masked_fill(~net.mask & start, -1e9).softmax(-1)
    return joined(found * start @ split(v)) + F.relu(net.out(joined(found @ split(v)))) * start


def zeroed_where_it_sees(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    start = torch.arange(PIXELS)[:, None] > 0
    weights = scores(q, k).masked_fill(~net.mask | start, -torch.inf).softmax(-1)
    return joined(torch.nan_to_num(weights) @ split(v)) * start


def last_sees_all(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Which is allowed no key."""
    mask = net.mask & (torch.arange(PIXELS)[:, None] < PIXELS - 1)
    return joined(scores(q, k).masked_fill(~mask, -1e4).softmax(-1) @ split(v))


def masked_twice(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).masked_fill(~net.mask, -1e9).softmax(-1) * net.mask
    return joined(weights / (weights.sum(-1, keepdim=True) + 1e-1) @ split(v))


def masked_twice_and_divided(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).masked_fill(~net.mask, -1e9).softmax(-1) * net.mask
    return joined(weights / weights.sum(-1, keepdim=True) @ split(v))


def nearly_divided(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill(~net.mask, -1e9)
    weights = (found - found.amax(-1, keepdim=True)).softmax(-1)
    return joined(weights / (weights.sum(-1, keepdim=True) + 1e-1) @ split(v))


def by_hand_and_zeroed(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill(~net.mask, -1e9)
    powers = (found - found.amax(-1, keepdim=True)).exp()
    start = torch.arange(PIXELS)[:, None] > 0
    return joined(powers / powers.sum(-1, keepdim=True) * start @ split(v))


def of_rows_and_columns(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of the first 4 columns: a head along rows, the other along columns."""
    q, k, v = (x.view(-1, HEIGHT, WIDTH, HEADS, OF_HEAD)[:, :, :HEIGHT] for x in (q, k, v))
    q, k, v = (torch.stack([x[..., 0, :], x[..., 1, :].transpose(1, 2)], 1) for x in (q, k, v))
    found = (q @ k.mT).masked_fill(~net.mask[:HEIGHT, :HEIGHT], -1e9).softmax(-1) @ v
    found = torch.stack([found[:, 0], found[:, 1].transpose(1, 2)], 3)
    return F.pad(found, (0, 0, 0, 0, 0, WIDTH - HEIGHT)).reshape(-1, PIXELS, CHANNELS)


def cleared(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).masked_fill(net.mask == 0, -torch.inf).softmax(-1)
    return joined(weights.masked_fill(net.mask == 0, 0) @ split(v))


def without_nan(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(torch.nan_to_num((scores(q, k) + added_mask(net)).softmax(-1)) @ split(v))


def by_hand(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = net.mask.to(q)
    found = scores(q, k) * mask - 1e10 * (1 - mask)
    powers = (found - found.amax(-1, keepdim=True)).exp() * mask
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-1) @ split(v))


def by_hand_scaled_last(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = net.mask.to(q)
    found = split(q) @ split(k).mT - 1e10 * (1 - mask)
    powers = ((found - found.amax(-1, keepdim=True)) / 5).exp() * mask
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-1) @ split(v))


def filled_and_scaled(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = (split(q) @ split(k).mT).masked_fill(~net.mask, -1e4) / 5
    return joined(found.softmax(-1) @ split(v))


def added_to_and_scaled(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(((split(q) @ split(k).mT + added_mask(net, -1e9)) / 5).softmax(-1) @ split(v))


def by_hand_in_place(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill_(~net.mask, torch.finfo(q.dtype).min)
    found -= found.max(-1, keepdim=True)[0]
    powers = found.exp_()
    powers /= powers.sum(-1, keepdim=True)
    return joined(F.dropout(powers, 0.5, net.training) @ split(v))


def turned(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = torch.bmm(together(k).mT, together(q)).masked_fill(~net.mask.T, -1e10)
    return torch.bmm(together(v), found.softmax(1)).view(-1, CHANNELS, PIXELS).mT


def accumulated(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = added_mask(net).expand(len(q) * HEADS, -1, -1)
    found = torch.baddbmm(mask, together(q).mT, together(k), alpha=0.4)
    return torch.bmm(found.softmax(2), together(v).mT).mT.reshape(-1, CHANNELS, PIXELS).mT


def heads_last(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(2, (HEADS, OF_HEAD)) for x in (q, k, v))
    found = torch.einsum("bqhd,bkhd->bqkh", q, k)
    weights = torch.where(net.mask[:, :, None], found, torch.finfo(q.dtype).min).softmax(2)
    return torch.einsum("bqkh,bkhd->bqhd", weights, v).flatten(2)


def by_product(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), is_causal=True))


def by_product_with_mask(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=net.mask))


def by_product_with_numbers(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=added_mask(net)))


def by_layer(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return net.layer(q, k, v, attn_mask=added_mask(net), need_weights=False)[0]


def by_layer_with_weights(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return net.layer(q, k, v, attn_mask=~net.mask)[0]


def of_one_key(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = net.narrow(k), net.narrow(v)
    found = (split(q) @ k[:, None].mT).masked_fill(~net.mask, -1e9)
    return joined(found.softmax(-1) @ v[:, None])


def by_temperature(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = split(F.normalize(q, dim=-1)) @ split(k).mT * net.temperature.exp()
    return joined((found + added_mask(net, -1e9)).softmax(-1) @ split(v))


def by_distance(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    apart = torch.arange(PIXELS)[:, None] - torch.arange(PIXELS) + PIXELS
    found = (scores(q, k) + net.relative[:, apart]).masked_fill(~net.mask, -1e9)
    return joined(found.softmax(-1) @ split(v))


def of_window(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows, columns = torch.arange(PIXELS) // WIDTH, torch.arange(PIXELS) % WIDTH
    near = (rows[:, None] - rows <= 1) & ((columns[:, None] - columns).abs() <= 1)
    return joined(scores(q, k).masked_fill(~(net.mask & near), -torch.inf).softmax(-1) @ split(v))


def of_rows(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.view(-1, HEIGHT, WIDTH, HEADS, OF_HEAD).transpose(2, 3) for x in (q, k, v))
    found = (q @ k.mT).masked_fill(~net.mask[:WIDTH, :WIDTH], -1e9)
    return (found.softmax(-1) @ v).transpose(2, 3).reshape(-1, PIXELS, CHANNELS)


def of_columns(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (
        x.view(-1, HEIGHT, WIDTH, HEADS, OF_HEAD).permute(0, 3, 2, 1, 4).flatten(0, 2) for x in (q, k, v)
    )
    found = (q @ k.mT).masked_fill(~net.mask[:HEIGHT, :HEIGHT], -1e9)
    found = (found.softmax(-1) @ v).view(-1, HEADS, WIDTH, HEIGHT, OF_HEAD)
    return found.permute(0, 3, 2, 1, 4).reshape(-1, PIXELS, CHANNELS)


def of_blocks(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = torch.cat([k[..., :OF_HEAD], v[..., OF_HEAD:]], -1)  # of two values
    q, k, v = (
        x.view(-1, HEIGHT // 2, 2, WIDTH, HEADS, OF_HEAD)
        .permute(0, 4, 1, 3, 2, 5)
        .flatten(3, 4)
        .flatten(2, 3)
        for x in (q, k, v)
    )  # 2 rows of one column are a block
    q, k, v = (x.unflatten(2, (-1, 2)) for x in (q, k, v))
    found = (q @ k.mT).masked_fill(~net.mask[:2, :2], -torch.inf).softmax(-1) @ v
    found = found.view(-1, HEADS, HEIGHT // 2, WIDTH, 2, OF_HEAD)
    return found.permute(0, 2, 4, 3, 1, 5).reshape(-1, PIXELS, CHANNELS)


def in_parts(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    parts = zip(split(q).split(7, 2), added_mask(net).split(7), strict=True)
    return joined(torch.cat([(x @ split(k).mT + m).softmax(-1) @ split(v) for x, m in parts], 2))


STYLES: list[tuple[Attend, bool]] = [
    (zeroed, True),
    (zeroed_afterwards, True),
    (by_hand, True),
    (by_product, False),
    (of_rows, False),
    (by_layer, False),
    (by_distance, False),
    (heads_last, False),
    (masked, False),
    (cleared, True),
    (without_nan, True),
    (by_hand_in_place, False),
    (turned, False),
    (accumulated, False),
    (by_product_with_mask, True),
    (by_product_with_numbers, True),
    (by_layer_with_weights, False),
    (of_one_key, False),
    (by_temperature, False),
    (of_window, False),
    (of_columns, False),
    (by_hand_scaled_last, True),
    (filled_and_scaled, False),
    (added_to_and_scaled, False),
    (of_blocks, False),
    (in_parts, False),
    (padded, True),
    (decayed, False),
    (zeroed_far_behind, True),
    (zeroed_itself, True),
    (zeroed_where_it_sees, False),
    (last_sees_all, False),
    (masked_twice, True),
    (masked_twice_and_divided, False),
    (nearly_divided, False),
    (by_hand_and_zeroed, True),
    (of_rows_and_columns, False),
]


@pytest.mark.parametrize(("attend", "sees_own"), few(STYLES, 8))
def test_styles_of_attention_are_drawn_as_by_the_model(attend: Attend, sees_own: bool) -> None:
    net = Net(attend, sees_own).double().eval()
    sampler = Sampler(net, SHAPE, image_form="levels", levels=LEVELS)
    assert "attention of 2 heads" in str(sampler.program)
    images = assert_runtimes_agree(sampler, 5, batch_sizes=(None, 2))
    assert images.unique().numel() == LEVELS
    known = torch.rand(SHAPE[1:], generator=torch.Generator().manual_seed(0)) < 0.5
    known[0] = True
    for runtime in ("eager", "auto"):
        noise = torch.rand(
            5, *sampler.noise_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        completed = [sampler.complete(images, known, noise=noise, runtime=r) for r in (runtime, "reference")]
        assert torch.equal(*completed)


def test_attention_sees_all_pixels_before_and_weights_are_taken_again() -> None:
    field = receptive_field(Net(cleared, True).double().eval(), SHAPE, image_form="levels", levels=LEVELS)
    before = torch.ones_like(field.seen[0, 0]).flatten()
    before[len(before) // 2 :] = 0
    assert field.causal and torch.equal(field.seen[0, 0].flatten(), before.bool())

    net = Net(by_temperature).double().eval()
    sampler = Sampler(net, SHAPE, image_form="levels", levels=LEVELS)
    with torch.no_grad():
        net.temperature.add_(1)
        net.of_key.weight.mul_(-1)
    sampler.refresh()
    assert_runtimes_agree(sampler, 4)


def test_keys_are_rounded_to_what_they_are_kept_in_before_any_is_drawn() -> None:
    """An offset of all keys, which the softmax takes out, leaves few of their digits in bfloat16."""
    net = Net(lambda net, q, k, v: masked(net, q, k + 1000, v)).eval()
    sampler = Sampler(net, SHAPE, image_form="levels", levels=LEVELS, precision="bf16")
    noise = torch.rand(
        8, *sampler.noise_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    images, drawn = sampler.sample(8, noise=noise, log_probability=True, runtime="eager")
    assert (sampler.log_prob(images) - drawn).abs().max() > 0.5


def test_tables_of_pairs_count_as_weights() -> None:
    bare, biased = (
        Sampler(Net(attend).double().eval(), SHAPE, image_form="levels", levels=LEVELS).program.weight_bytes
        for attend in (masked, by_distance)
    )
    assert biased - bare == HEADS * PIXELS**2 * 8


# -- what is not causal, or can't be known to be


def late(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(scores(q, k).softmax(-1).masked_fill(~net.mask, 0) @ split(v))


def late_and_divided(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).softmax(-1) * net.mask
    return joined(weights / weights.sum(-1, keepdim=True) @ split(v))


def late_and_nearly_divided(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).softmax(-1) * net.mask
    return joined(weights / (weights.sum(-1, keepdim=True) + 1e-8) @ split(v))


def largest_of_all(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k)
    powers = (found - found.amax(-1, keepdim=True)).exp() * net.mask
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-1) @ split(v))


def largest_of_masked(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k) * net.mask
    powers = (found - found.amax(-1, keepdim=True)).exp() * net.mask
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-1) @ split(v))


def decayed_with_an_epsilon(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill(~net.mask, -1e9)
    powers = (found - found.amax(-1, keepdim=True)).exp() * torch.linspace(1, 2, PIXELS)
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-3) @ split(v))


def partly_counted(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    powers = scores(q, k).masked_fill(~net.mask, -1e9).exp()
    return joined(powers / (powers * net.mask.roll(2, 0)).sum(-1, keepdim=True) @ split(v))


def transposed(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(scores(q, k).masked_fill(~net.mask.T, -1e9).softmax(-1) @ split(v))


def less_added(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined((scores(q, k) + added_mask(net, -1e5)).softmax(-1) @ split(v))


def first_row_left(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return masked(net, q, k, v, -1e10)


def later_row_left(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One of the pixels has no key."""
    mask = net.mask & (torch.arange(PIXELS) != 2 * WIDTH + 3)[:, None]
    return joined(scores(q, k).masked_fill(~mask, -1e10).softmax(-1) @ split(v))


def by_hand_first_row_left(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill(~net.mask, -1e9)
    powers = (found - found.amax(-1, keepdim=True)).exp()
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-3) @ split(v))


def filled_where_it_counts(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """So that later scores, to which -1e9 is added, are larger than a pixel's own."""
    found = scores(q, k) + added_mask(net, -1e9)
    found = found.masked_fill(net.mask & (torch.arange(PIXELS) == 7)[:, None], -1e9)
    powers = (found - found.amax(-1, keepdim=True)).exp() * net.mask
    return joined(powers / (powers.sum(-1, keepdim=True) + 1e-1) @ split(v))


def divided_by_powers(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill(~net.mask, -1e9)
    return joined(found.softmax(-1) / found.exp().sum(-1, keepdim=True) @ split(v))


def inclusive(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(scores(q, k).masked_fill(~INCLUSIVE, -1e10).softmax(-1) @ split(v))


def weak(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return masked(net, q, k, v, -100)


def smallest_number(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = added_mask(net, torch.finfo(q.dtype).min)
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask))


def all_pixels(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v)))


def linear(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return joined(split(q) @ (split(k).mT @ split(v)))


def scaled_by_keys(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = scores(q, k).masked_fill(~net.mask, -1e9)
    found = (found - found.amax(-1, keepdim=True)) * torch.linspace(1, 2, PIXELS)
    return joined(found.softmax(-1) @ split(v))


def of_blocks_that_meet(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (split(x).unfold(2, 5, 3).mT for x in (q, k, v))  # of 5 pixels, of which the next has 2
    found = (q @ k.mT).masked_fill(~net.mask[:5, :5], -torch.inf).softmax(-1) @ v
    return joined(F.pad(found.mean(3), (0, 0, 0, PIXELS - found.shape[2])))


def with_prefix(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (torch.cat([net.of_key.bias.expand(len(q), 1, -1), x], 1) for x in (k, v))
    mask = F.pad(net.mask, (1, 0))
    return joined(F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask))


ONE_ROW = r"pixel \(0, 0\) attends to \(0, 1\): its mask leaves it no key"


@pytest.mark.parametrize(
    ("attend", "sees_own", "error", "says"),
    [
        (late, False, NotCausal, r"pixel \(0, 0\) attends to \(0, \d\), so the output sees a later pixel"),
        (late_and_divided, False, Unsupported, "mask the scores before the softmax"),
        (late_and_nearly_divided, False, NotCausal, "beside which later pixels count"),
        (largest_of_all, False, NotCausal, "later ones count beside the ε"),
        (largest_of_masked, False, Unsupported, "one of more pairs than are counted"),
        (decayed_with_an_epsilon, False, Unsupported, "by other numbers than 0 and 1"),
        (partly_counted, False, Unsupported, "weights that their total leaves out"),
        (transposed, False, NotCausal, r"pixel \(0, 0\) attends to \(0, \d\), so the output sees a later"),
        (less_added, False, NotCausal, "since -100000 is added to its score and does not remove it"),
        (divided_by_powers, False, Unsupported, "something else than the total of a softmax's weights"),
        (filled_where_it_counts, False, Unsupported, "its largest is one that its total leaves out"),
        (first_row_left, True, NotCausal, ONE_ROW),
        (by_hand_first_row_left, True, NotCausal, ONE_ROW),
        (smallest_number, True, NotCausal, ONE_ROW),
        (later_row_left, False, NotCausal, r"pixel \(2, 3\) attends to \(3, 3\): its mask leaves it no key"),
        (inclusive, True, NotCausal, "sees its own pixel; should its mask be strict"),
        (weak, False, NotCausal, "sees a later pixel"),
        (all_pixels, False, NotCausal, "sees a later pixel"),
        (linear, False, Unsupported, "what is summed over is not the features of one pixel"),
        (with_prefix, False, Unsupported, "neither a prefix of tokens before the 20 pixels is supported"),
        (scaled_by_keys, False, Unsupported, "scaled by what differs between keys"),
        (of_blocks_that_meet, False, Unsupported, "a pixel asks, or is a key, several times"),
    ],
)
def test_attention_that_leaks_is_told(
    attend: Attend, sees_own: bool, error: type[PixelCNNFastError], says: str
) -> None:
    with pytest.raises(error, match=says):
        check_causal(Net(attend, sees_own).double().eval(), SHAPE, image_form="levels", levels=LEVELS)


def test_a_mask_that_bfloat16_rounds_up_is_one() -> None:
    net = Net(
        lambda net, q, k, v: joined((split(q) @ split(k).mT + added_mask(net, -1e9)).softmax(-1) @ split(v))
    )
    Sampler(net.bfloat16().eval(), SHAPE, image_form="levels", levels=LEVELS).sample(1, runtime="eager")


@pytest.mark.parametrize("runtime", ["eager", "auto"])
@pytest.mark.parametrize("attend", [filled_with_little, zeroed_afterwards, last_sees_all])
def test_a_mask_that_large_scores_make_count_is_told(runtime: RuntimeName, attend: Attend) -> None:
    net = Net(attend, attend is zeroed_afterwards).double().eval()
    sampler = Sampler(net, SHAPE, image_form="levels", levels=LEVELS, runtime=runtime)
    assert sampler.sample(2).shape == (2, *SHAPE)
    with torch.no_grad():
        net.of_key.weight.zero_()
        net.of_key.bias.fill_(-1e5)
        net.of_query.weight.zero_()
        net.of_query.bias.fill_(1)
    sampler.refresh()
    with pytest.raises(NonFiniteLogits):
        sampler.sample(2)


def test_a_table_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "MOST_PAIRS", HEADS * PIXELS**2 - 1)
    net = Net(by_temperature).double().eval()
    with pytest.raises(Unsupported, match=f"a table for {HEADS} times {PIXELS}×{PIXELS} pairs of pixels"):
        Sampler(net, SHAPE, image_form="levels", levels=LEVELS)
