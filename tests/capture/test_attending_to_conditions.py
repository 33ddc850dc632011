"""Attention from pixels to what is given with the image, such as the states of an encoder of a coarser map."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.nn import MaskedConv2d
from tests.system.agreement import assert_runtimes_agree

HEIGHT, WIDTH, LEVELS, CHANNELS, HEADS = 4, 5, 3, 8, 2
SHAPE, COARSE = (1, HEIGHT, WIDTH), (9, 10)  # whose 90 positions are more than are multiplied together
PIXELS, POSITIONS = HEIGHT * WIDTH, 90


class Net(nn.Module):
    mask: Tensor

    def __init__(self, style: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.style, self.first, self.codes = (
            style,
            MaskedConv2d(1, CHANNELS, 3, "A"),
            nn.Embedding(4, CHANNELS),
        )
        self.places = nn.Parameter(torch.empty(POSITIONS, CHANNELS))
        self.of_query, self.of_key, self.of_value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.layer = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)
        self.last = nn.Conv2d(CHANNELS, LEVELS, 1)
        self.register_buffer("mask", torch.rand(PIXELS, POSITIONS) > 0.3)
        for weights in self.parameters():
            nn.init.normal_(weights, std=0.7)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        before = torch.tanh(self.first(x))
        states = self.codes(condition).flatten(1, 2) + self.places
        found = self.attended(before.flatten(2).mT, states)
        return 2 * self.last(before + found.mT.reshape(before.shape))

    def attended(self, x: Tensor, states: Tensor) -> Tensor:
        if self.style == "layer":
            return self.layer(x, states, states, need_weights=False)[0]
        q, k, v = self.of_query(x), self.of_key(states), self.of_value(states)
        if self.style == "queries last":
            return (v.mT @ (k @ q.mT).softmax(1)).mT
        if self.style == "not weighed":
            return q @ (k.mT @ v)
        q, k, v = (y.unflatten(2, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
        if self.style == "values of the image":
            v = v[:, :, :PIXELS] + q
            k = k[:, :, :PIXELS]
        if self.style.startswith("filled"):
            mask = self.mask & (torch.arange(PIXELS)[:, None] != 7)
            fill = float(self.style.removeprefix("filled by "))
            return ((q @ k.mT).masked_fill(~mask, fill).softmax(-1) @ v).transpose(1, 2).flatten(2)
        seen = self.mask[:, : k.shape[2]] if self.style != "all" else None
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)


def sampler(style: str) -> Sampler:
    net = Net(style).double().eval()
    return Sampler(
        net, SHAPE, levels=LEVELS, image_form="unit", condition_shape=COARSE, condition_dtype=torch.int64
    )


@pytest.mark.parametrize("style", ["masked", "all", "layer", "queries last", "filled by -1e4"])
def test_it_is_drawn_as_by_the_model(style: str) -> None:
    own = sampler(style)
    condition = torch.randint(4, (4, *COARSE), generator=torch.Generator().manual_seed(0))
    images = assert_runtimes_agree(own, 4, batch_sizes=(None, 1), condition=condition)
    u = torch.rand(4, *own.noise_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = own.sample(4, noise=u, condition=condition.flip(0))
    assert not torch.equal(images, others), "the condition is each image's own"


@pytest.mark.parametrize(
    "style, says",
    [
        ("not weighed", "only what averages features with it may follow"),
        ("values of the image", "one's keys weigh the other's values"),
    ],
)
def test_what_is_more_than_attention_is_refused(style: str, says: str) -> None:
    with pytest.raises(Unsupported, match=says):
        sampler(style)


def test_a_condition_of_numbers_without_a_key_is_told() -> None:
    net = Net("filled by -inf")
    net.codes = nn.Linear(2, CHANNELS)  # type: ignore[assignment]  # for numbers, not codes
    with pytest.raises(Unsupported, match=r"pixel \(1, 2\) is allowed no key"):
        Sampler(net.double().eval(), SHAPE, levels=LEVELS, image_form="unit", condition_shape=(*COARSE, 2))
