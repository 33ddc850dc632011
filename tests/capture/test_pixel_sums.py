"""Matrices over an image's pixels, as in a MADE: right in all runtimes, or refused clearly."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, check_causal
from pixelcnn_fast.errors import NotCausal, PixelCNNFastError, Unsupported
from tests.system.agreement import assert_runtimes_agree

HEIGHT, WIDTH, LEVELS = 4, 5, 3
PIXELS = HEIGHT * WIDTH
SHAPE = (1, HEIGHT, WIDTH)
INCLUSIVE = torch.ones(PIXELS, PIXELS).tril()
STRICT = INCLUSIVE.tril(-1)


def made_lively(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for weights in net.parameters():
        nn.init.normal_(weights, std=0.7)
    return net.double().eval()


class MaskedLinear(nn.Linear):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        """mask: [out, in]"""
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Made(nn.Module):
    """Germain et al. 2015, whose hidden units are of pixels: 3 and 2 of each, channel after channel or side by side."""

    def __init__(self, channel_first: bool, first: Tensor = STRICT, extra: int = 0) -> None:
        super().__init__()

        def mask(of_pixels: Tensor, out: int, into: int) -> Tensor:
            if channel_first:
                return of_pixels.repeat(out, into)
            return of_pixels.repeat_interleave(out, 0).repeat_interleave(into, 1)

        hidden = F.pad(mask(INCLUSIVE, 2, 3), (0, 0, 0, extra)), F.pad(mask(INCLUSIVE, LEVELS, 2), (0, extra))
        self.layers = nn.ModuleList(map(MaskedLinear, (mask(first, 3, 1), *hidden)))
        self.channel_first = channel_first

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        x = 3 * last(F.relu(second(F.elu(first(x.flatten(1))))))
        return (
            x.view(-1, LEVELS, HEIGHT, WIDTH)
            if self.channel_first
            else x.view(-1, HEIGHT, WIDTH, LEVELS).movedim(3, 1)
        )


class Mixer(nn.Module):
    """The same matrix for all features, from either side."""

    def __init__(self, from_left: bool) -> None:
        super().__init__()
        self.features, self.weight = nn.Conv2d(1, 4, 1), nn.Parameter(torch.empty(PIXELS, PIXELS))
        self.head, self.from_left = nn.Conv2d(4, LEVELS, 1), from_left

    def forward(self, x: Tensor) -> Tensor:
        x, matrix = torch.tanh(self.features(x)).flatten(2), self.weight * STRICT
        x = (matrix @ x.mT).mT if self.from_left else x @ matrix.T
        return 3 * self.head(torch.relu(x.reshape(-1, 4, HEIGHT, WIDTH)))


class MadeOfDegrees(nn.Module):
    """Whose hidden units see as many pixels as may be, in any order."""

    def __init__(self, *hidden: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        of_units = [torch.randint(PIXELS - 1, (many,), generator=generator) for many in hidden]
        degrees = [torch.arange(PIXELS), *of_units, torch.arange(PIXELS).repeat(LEVELS) - 1]
        masks = [
            (above[:, None] >= below).float() for below, above in zip(degrees, degrees[1:], strict=False)
        ]
        self.layers = nn.Sequential(*(layer for mask in masks for layer in (MaskedLinear(mask), nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.layers(x.flatten(1)).view(-1, LEVELS, HEIGHT, WIDTH)


class BesidesBlind(Made):
    """Beside hidden units that see nothing."""

    def __init__(self) -> None:
        super().__init__(channel_first=True)
        masks = torch.zeros(7, PIXELS), torch.ones(LEVELS * PIXELS, 7)
        self.blind = nn.Sequential(*map(MaskedLinear, masks))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.blind(x.flatten(1)).view(-1, LEVELS, HEIGHT, WIDTH)


class Heads(nn.Module):
    """Another matrix for each head, and then for rows, and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, LEVELS, 1)
        self.weight = nn.Parameter(torch.empty(2, PIXELS, PIXELS))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.features(x)).view(-1, 2, 2, PIXELS).mT
        x = (self.weight * STRICT.to(x) @ x).mT.reshape(-1, 4, HEIGHT, WIDTH)
        x = x @ (self.weight[0, :WIDTH, :WIDTH] * INCLUSIVE[:WIDTH, :WIDTH]).mT
        return 3 * self.head((self.weight[1, :HEIGHT, :HEIGHT] * INCLUSIVE[:HEIGHT, :HEIGHT]) @ x)


NETS = {
    "made": lambda: Made(channel_first=True),
    "made, channels last": lambda: Made(channel_first=False),
    "made, and more units": lambda: Made(channel_first=True, extra=7),
    "made, random degrees": lambda: MadeOfDegrees(30, 3 * PIXELS, PIXELS, WIDTH, HEIGHT),
    "made, and units that see nothing": BesidesBlind,
    "heads, rows, columns": Heads,
    "from the left": lambda: Mixer(from_left=True),
    "from the right": lambda: Mixer(from_left=False),
}


@pytest.mark.parametrize("name", NETS)
def test_it_is_drawn_as_by_the_model(name: str) -> None:
    net = made_lively(NETS[name]())
    sampler = Sampler(net, SHAPE, levels=LEVELS, image_form="unit")
    assert assert_runtimes_agree(sampler, 4, batch_sizes=(None, 1)).unique().numel() == LEVELS
    with torch.no_grad():
        next(net.parameters()).mul_(-1)
    sampler.refresh()
    assert_runtimes_agree(sampler, 4)


@pytest.mark.parametrize(
    "net, error, says",
    [
        (lambda: Made(True, INCLUSIVE), NotCausal, r"pixel \(0, 0\) reads \(0, 0\)"),
        (
            lambda: Made(True, torch.ones(PIXELS, PIXELS)),
            NotCausal,
            r"reads \(\d, \d\), so .* sees a later pixel",
        ),
    ],
)
def test_what_leaks_or_is_of_no_pixel_is_told(net, error: type[PixelCNNFastError], says: str) -> None:
    with pytest.raises(error, match=says):
        check_causal(made_lively(net()), SHAPE, levels=LEVELS, image_form="unit")


class OfColours(nn.Module):
    """Two colours, of which the second sees the first of its own pixel."""

    def __init__(self) -> None:
        super().__init__()
        order = torch.arange(2 * PIXELS).view(PIXELS, 2).T.flatten()  # of colour after colour
        self.layer = MaskedLinear((order[:, None] > order).float().repeat(LEVELS, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).view(-1, LEVELS, 2, HEIGHT, WIDTH).movedim(1, 2)


def test_colours_in_order_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="colours in order within a pixel are not supported"):
        check_causal(made_lively(OfColours()), (2, HEIGHT, WIDTH), levels=LEVELS, image_form="unit")
