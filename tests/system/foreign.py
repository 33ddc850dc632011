"""Causal networks written the way people write them, each in its own style and knowing nothing of this library.

``NETWORKS``: name -> Network; the modules that attend are in ``attending.py``. All are small, in float64 and eval
mode, with weights that make lively logits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from pixelcnn_fast import Sampler, image_forms
from pixelcnn_fast.heads import Bernoulli, Categorical
from tests.system import attending

LEVELS = 8


@dataclass(frozen=True)
class Network:
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int] = (1, 5, 6)
    arguments: dict = field(default_factory=dict)  # of Sampler
    classes: int | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make().double()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    assert module.running_mean is not None and module.running_var is not None
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 1.5)
        return model.eval()

    def sampler(self, model: nn.Module) -> Sampler:
        return Sampler(model, self.shape, **self.settings())

    def settings(self) -> dict:
        """Arguments of Sampler, receptive_field and check_causal."""
        levels = {} if "head" in self.arguments else {"levels": LEVELS}
        return {"conditional": self.classes is not None, **levels, **self.arguments}

    def given(self, n: int) -> dict[str, Any]:
        """What its sampler's ``sample`` is given for n images; the values are what its forward takes, in turn."""
        labels = {} if self.classes is None else {"labels": torch.arange(n) % self.classes}
        if (shapes := self.arguments.get("condition_shape")) is None:
            return labels
        generator = torch.Generator().manual_seed(0)
        made = {name: torch.randn(n, *shape, generator=generator).double() for name, shape in shapes.items()}
        return {**labels, "condition": made}


# -- masks written into the weights in forward; one nn.Sequential; [N, levels, H, W]


class InPlaceConv(nn.Conv2d):
    mask: torch.Tensor

    def __init__(self, kind, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", self.weight.data.clone())
        _, _, h, w = self.weight.size()
        self.mask.fill_(1)
        self.mask[:, :, h // 2, w // 2 + (kind == "B") :] = 0
        self.mask[:, :, h // 2 + 1 :] = 0

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


def in_place():
    def layer(kind, c_in, c_out, k):
        return [
            InPlaceConv(kind, c_in, c_out, k, 1, k // 2, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(True),
        ]

    return nn.Sequential(
        *layer("A", 1, 9, 7), *layer("B", 9, 9, 3), *layer("B", 9, 9, 3), nn.Conv2d(9, LEVELS, 1)
    )


# -- no masks: the input is padded on one side and shifted by cropping; gated residual networks; concat-ELU


def down_shift(x):
    return F.pad(x, (0, 0, 1, 0))[:, :, : x.size(2), :]


def right_shift(x):
    return F.pad(x, (1, 0))[:, :, :, : x.size(3)]


def concat_elu(x):
    return F.elu(torch.cat([x, -x], dim=1))


class DownConv(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 1, 1, 0))
        self.conv = weight_norm(nn.Conv2d(c_in, c_out, (2, 3)))

    def forward(self, x):
        return self.conv(self.pad(x))


class DownRightConv(DownConv):
    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out)
        self.pad = nn.ZeroPad2d((1, 0, 1, 0))
        self.conv = weight_norm(nn.Conv2d(c_in, c_out, (2, 2)))


class NetworkInNetwork(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.linear = weight_norm(nn.Linear(c_in, c_out))

    def forward(self, x):
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GatedResnet(nn.Module):
    def __init__(self, width, conv, skip=0):
        super().__init__()
        self.conv_in = conv(2 * width, width)
        self.skip = NetworkInNetwork(2 * skip, width) if skip else None
        self.dropout = nn.Dropout2d(0.5)
        self.conv_out = conv(2 * width, 2 * width)

    def forward(self, x, above=None):
        h = self.conv_in(concat_elu(x))
        if self.skip is not None and above is not None:
            h += self.skip(concat_elu(above))
        h = self.conv_out(self.dropout(concat_elu(h)))
        a, b = torch.chunk(h, 2, dim=1)
        return x + a * torch.sigmoid(b)


class CroppedShifts(nn.Module):
    def __init__(self, channels=2, width=6):
        super().__init__()
        self.u_init = DownConv(channels + 1, width)
        self.ul_init = nn.ModuleList([DownConv(channels + 1, width), DownRightConv(channels + 1, width)])
        self.u = nn.ModuleList(GatedResnet(width, DownConv) for _ in range(2))
        self.ul = nn.ModuleList(GatedResnet(width, DownRightConv, width) for _ in range(2))
        self.out = NetworkInNetwork(width, channels * LEVELS)

    def forward(self, x):
        x = 2 * x - 1
        ones = torch.ones(x.size(0), 1, x.size(2), x.size(3), dtype=x.dtype)
        x = torch.cat((x, ones), 1)  # tells the padding from the image
        u = down_shift(self.u_init(x))
        ul = down_shift(self.ul_init[0](x)) + right_shift(self.ul_init[1](x))
        for up, across in zip(self.u, self.ul, strict=True):
            u = up(u)
            ul = across(ul, above=u)
        return 6 * self.out(F.elu(ul))


# -- weight norm over a masked weight, pre-activations, leaky ReLU


class NormedConv(nn.Module):
    keep: torch.Tensor

    def __init__(self, c_in, c_out, k, include_present):
        super().__init__()
        self.v = nn.Parameter(torch.randn(c_out, c_in, k, k) * 0.3)
        self.g = nn.Parameter(torch.ones(c_out))
        self.b = nn.Parameter(torch.zeros(c_out).uniform_(-0.2, 0.2))
        keep = torch.arange(k * k).view(k, k) < k * k // 2 + include_present
        self.register_buffer("keep", keep)

    def forward(self, x):
        v = torch.where(self.keep, self.v, torch.zeros_like(self.v))
        w = self.g.view(-1, 1, 1, 1) * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, w, self.b, padding=self.keep.shape[0] // 2)


class WeightNormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = NormedConv(1, 8, 5, False)
        self.layers = nn.ModuleList(NormedConv(8, 8, 3, True) for _ in range(2))
        self.last = NormedConv(8, LEVELS, 1, True)

    def forward(self, x):
        h = self.first((x - 3.5) / 2.3)
        for layer in self.layers:
            h = h + layer(F.leaky_relu(h, 0.2))
        return (2 * self.last(F.leaky_relu(h, 0.2))).unsqueeze(1).permute(0, 1, 3, 4, 2)


# -- colours, interleaved: feature k belongs to colour k modulo 3


class InterleavedConv(nn.Conv2d):
    mask: torch.Tensor

    def __init__(self, kind, c_in, c_out, k):
        super().__init__(c_in, c_out, k, padding=k // 2)
        mask = torch.ones(c_out, c_in, k, k)
        mask[:, :, k // 2, k // 2 + 1 :] = 0
        mask[:, :, k // 2 + 1 :] = 0
        for out in range(3):
            for source in range(3):
                if source > out or (source == out and kind == "A"):
                    mask[out::3, source::3, k // 2, k // 2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


class Interleaved(nn.Module):
    """11 features: 4 red, 4 green, 3 blue. Output [N, levels * 3, H, W], the level the slower index."""

    def __init__(self):
        super().__init__()
        self.conv_in = InterleavedConv("A", 3, 11, 5)
        self.norm = nn.BatchNorm2d(11)
        self.conv = InterleavedConv("B", 11, 11, 3)
        self.conv_out = InterleavedConv("B", 11, 3 * LEVELS, 1)

    def forward(self, x):
        h = torch.tanh(self.norm(self.conv_in(x)))
        return 4 * self.conv_out(F.silu(self.conv(h)) + h)


# -- colours, in thirds: masks by slices of a third of the channels; unfolded outputs


def third_mask(c_out, c_in, k, kind):
    mask = torch.zeros(c_out, c_in, k, k)
    mask[:, :, : k // 2] = 1
    mask[:, :, k // 2, : k // 2] = 1
    out, source = c_out // 3, c_in // 3
    for i in range(3):
        mask[i * out : (i + 1) * out, : i * source, k // 2, k // 2] = 1
        if kind == "B":
            mask[i * out : (i + 1) * out, i * source : (i + 1) * source, k // 2, k // 2] = 1
    return mask


class Thirds(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [("A", 3, 9, 3), ("B", 9, 9, 3), ("B", 9, 3 * LEVELS, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2) for _, i, o, k in sizes)
        self.masks = [third_mask(o, i, k, kind) for kind, i, o, k in sizes]

    def forward(self, x):
        for index, (conv, mask) in enumerate(zip(self.convs, self.masks, strict=True)):
            assert isinstance(conv, nn.Conv2d)
            with torch.no_grad():
                conv.weight.mul_(mask)
            x = conv(x)
            if index < 2:
                x = F.softplus(x) - 0.7
        n, _, h, w = x.shape
        return 5 * x.reshape(n, 3, LEVELS, h, w).transpose(1, 2)  # [N, levels, 3, H, W]


# -- functional: weights in a ParameterDict, Python control flow, tuples between functions


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.ParameterDict(
            {
                "above": torch.randn(7, 1, 2, 5) * 0.4,
                "left": torch.randn(7, 1, 1, 2) * 0.4,
                "left2": torch.randn(7, 7, 1, 2) * 0.3,
                "mix": torch.randn(7, 7, 1, 1) * 0.4,
                "out": torch.randn(LEVELS, 7, 1, 1),
                "bias": torch.randn(LEVELS),
            }
        )

    def stacks(self, x):
        vertical = F.conv2d(F.pad(x, (2, 2, 2, 0)), self.p["above"])[:, :, :-1]
        horizontal = F.conv2d(F.pad(x, [2, 0, 0, 0]), self.p["left"])[..., :-1]
        return vertical, horizontal

    def forward(self, x):
        if x.max() > 1:
            x = x / (LEVELS - 1)
        vertical, horizontal = self.stacks(x - 0.5)
        h = horizontal + F.conv2d(vertical, self.p["mix"])
        for _ in range(2):
            h = h + torch.tanh(F.conv2d(F.pad(h, (1, 0)), self.p["left2"]))
        return F.conv2d(h, self.p["out"], self.p["bias"])


# -- levels as one-hot vectors; GELU; a gate written out; 1x1 head


class OneHot(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = InPlaceConv("A", 2 * LEVELS, 10, 3, 1, 1)
        self.second = InPlaceConv("B", 10, 20, 3, 1, 1)
        self.head = nn.Sequential(nn.GELU(), nn.Conv2d(10, 2 * LEVELS, 1))

    def forward(self, x):
        n, c, h, w = x.shape
        x = F.one_hot(x.long(), LEVELS).permute(0, 1, 4, 2, 3).reshape(n, c * LEVELS, h, w)
        h = self.second(F.gelu(self.first(x.to(self.first.weight.dtype))))
        return 4 * self.head(h[:, :10] * h[:, 10:].sigmoid())  # [N, 2 * levels, H, W]


# -- the two stacks of a tutorial: dilations, 1xk horizontal masks, labels in both gates


class StackConv(nn.Module):
    mask: torch.Tensor

    def __init__(self, c_in, c_out, mask, dilation=1):
        super().__init__()
        size = mask.shape
        padding = tuple(dilation * (k - 1) // 2 for k in size)
        self.conv = nn.Conv2d(c_in, c_out, size, padding=padding, dilation=dilation)
        self.register_buffer("mask", mask[None, None])

    def forward(self, x):
        self.conv.weight.data *= self.mask
        return self.conv(x)


def vertical_mask(k, center):
    mask = torch.ones(k, k)
    mask[k // 2 + (not center) :] = 0
    return mask


def horizontal_mask(k, center):
    mask = torch.ones(1, k)
    mask[0, k // 2 + (not center) :] = 0
    return mask


class DilatedGated(nn.Module):
    def __init__(self, width=6, classes=3):
        super().__init__()
        mask_v, mask_h = vertical_mask(3, False), horizontal_mask(3, False)
        mask_v[1], mask_h[0, 1] = 0, 0
        self.v_in, self.h_in = StackConv(1, width, mask_v), StackConv(1, width, mask_h)
        self.layers = nn.ModuleList()
        for dilation in (1, 2):
            self.layers.append(
                nn.ModuleDict(
                    {
                        "v": StackConv(width, 2 * width, self.whole_rows(), dilation),
                        "h": StackConv(width, 2 * width, torch.tensor([[1.0, 1.0, 0.0]]), dilation),
                        "link": nn.Conv2d(2 * width, 2 * width, 1),
                        "out": nn.Conv2d(width, width, 1),
                        "label_v": nn.Linear(classes, 2 * width, bias=False),
                        "label_h": nn.Linear(classes, 2 * width, bias=False),
                    }
                )
            )
        self.conv_out = nn.Conv2d(width, LEVELS, 1)
        self.classes = classes

    @staticmethod
    def whole_rows():
        return torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])

    def forward(self, x, y):
        y = F.one_hot(y, self.classes).to(self.conv_out.weight.dtype)
        x = x.to(self.conv_out.weight.dtype) / (LEVELS - 1) * 2 - 1
        v, h = self.v_in(x), self.h_in(x)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            v_features = layer["v"](v)
            a, b = (v_features + layer["label_v"](y)[..., None, None]).chunk(2, dim=1)
            v = torch.tanh(a) * torch.sigmoid(b)
            h_features = layer["h"](h) + layer["link"](v_features) + layer["label_h"](y)[..., None, None]
            a, b = h_features.chunk(2, dim=1)
            h = h + layer["out"](torch.tanh(a) * torch.sigmoid(b))
        return (8 * self.conv_out(F.elu(h))).reshape(x.shape[0], LEVELS, 1, *x.shape[2:])


# -- a residual that is added twice, bottlenecks, a skip sum over all blocks


class Bottleneck(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, width // 2, 1),
            nn.ReLU(),
            InPlaceConv("B", width // 2, width // 2, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 1),
        )

    def forward(self, x):
        return self.net(x) + x


class ResidualTwice(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first = InPlaceConv("A", 1, width, 5, 1, 2)
        self.blocks = nn.ModuleList(Bottleneck(width) for _ in range(2))
        self.last = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(width, LEVELS, 1))

    def forward(self, x):
        x = self.first(x)
        total = 0
        for block in self.blocks:
            x = block(x) + x  # the block has added it already
            total = total + x
        return self.last(total / len(self.blocks))


# -- channels last: layer norm, linear layers, an embedding of the levels; rows shifted by assignment


class ChannelsLast(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(LEVELS, width)
        self.conv = nn.Conv2d(width, width, (2, 3), padding=(1, 1))
        self.along = nn.Conv2d(width, width, (1, 2))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out = nn.Linear(width, LEVELS)

    def forward(self, x):
        e = self.embed(x[:, 0].long()).permute(0, 3, 1, 2)
        left = torch.zeros_like(e)
        left[:, :, :, 1:] = e[:, :, :, :-1]
        above = self.conv(e)[:, :, :-2]
        above = torch.cat([torch.zeros_like(above[:, :, :1]), above], 2)
        h = (F.pad(above, (0, 0, 0, 1))[:, :, : x.shape[2]] + self.along(F.pad(left, (1, 0)))).permute(
            0, 2, 3, 1
        )
        h = h + self.mlp(self.norm(h))
        return 3 * self.out(h).unsqueeze(1)


# -- binary images, probabilities


class Binary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            InPlaceConv("A", 1, 6, 7, 1, 3),
            nn.LeakyReLU(0.3),
            InPlaceConv("B", 6, 6, 3, 1, 1),
            nn.ELU(),
            nn.Conv2d(6, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.net(x.to(next(self.parameters()).dtype))


# -- activations that no other network here has


class RareActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = InPlaceConv("A", 1, 8, 3, padding=1)
        self.second = InPlaceConv("B", 8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, LEVELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.hardswish(4 * self.first(x))
        h = F.gelu(self.second(h), approximate="tanh")
        return 6 * self.last((h * h + 0.1) ** 0.5)


# -- gates that are cumulative distributions of Gaussians


class CumulativeGates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = InPlaceConv("A", 1, 8, 3, padding=1), InPlaceConv("B", 8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, LEVELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.erf(4 * self.first(x))
        return 9 * self.last(h * torch.special.erfc(self.second(h)))


# -- features within bounds, some of which the label sets; logits masked and raised to a floor


class Bounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = InPlaceConv("A", 1, 8, 3, padding=1), InPlaceConv("B", 8, 8, 3, padding=1)
        self.floor, self.last = nn.Embedding(3, 8), nn.Conv2d(8, LEVELS, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = torch.maximum(3 * self.first(x), 0.3 * self.floor(y)[..., None, None])
        h = torch.minimum(h, self.second(h) + 0.5)
        h = torch.log(torch.exp(h.clamp(-1.5, 1.5)) + 0.1)
        odd = torch.arange(LEVELS)[:, None, None] % 2 == 1
        logits = 6 * self.last(h)
        return logits.masked_fill(odd, -1e9).clamp(min=-4) + 0.5 * logits


# -- the image itself is scaled, and shifted, by the label


class ScaledImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Embedding(3, 1), nn.Embedding(3, 1)
        self.first, self.last = InPlaceConv("A", 1, 8, 3, padding=1), nn.Conv2d(8, LEVELS, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x * (1 + self.scale(y)[..., None, None]) + self.shift(y)[..., None, None]
        return 6 * self.last(torch.relu(self.first(x)))


# -- half the resolution, of the rows above, and back


class Strided(nn.Module):
    def __init__(self, levels=LEVELS):
        super().__init__()
        self.levels = levels
        self.down, self.up = nn.Conv2d(1, 6, 4, 2, padding=1), nn.ConvTranspose2d(6, 6, 2, 2)
        self.left, self.out = nn.Conv2d(1, 6, (1, 2)), nn.Conv2d(6, levels, 1)

    def forward(self, images):
        x = images.to(self.out.weight.dtype)
        above = self.up(F.elu(self.down(F.pad(x, (0, 0, 3, 0))[:, :, :-3])))
        left = self.left(F.pad(x, (2, 0))[..., :-1])
        return self.out(torch.tanh(above + left))[:, None].permute(0, 1, 3, 4, 2)


# -- convolutions whose masks differ from pixel to pixel, over windows


class LocallyMasked(nn.Module):
    masks: torch.Tensor

    def __init__(self, channels, kind, size, one_by_one):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 9 * channels) / 3)
        self.one_by_one = one_by_one
        height, width = size
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        i, j = torch.meshgrid(torch.arange(-1, 2), torch.arange(-1, 2), indexing="ij")
        order = (y * width + x).flatten() + (i * width + j).reshape(-1, 1)
        inside = ((x.flatten() + j.reshape(-1, 1)) >= 0) & ((x.flatten() + j.reshape(-1, 1)) < width)
        earlier = order < (y * width + x).flatten() + (kind == "B")
        self.register_buffer("masks", (inside & earlier).double())

    def forward(self, x):
        n, c, height, width = x.shape
        windows = F.unfold(x, 3, padding=1)
        if self.one_by_one:
            windows = (windows.view(n * c, 9, -1) * self.masks).view(windows.shape)
        else:
            windows = (windows.view(n, c, 9, -1) * self.masks).flatten(1, 2)
        return (self.weight @ windows).view(n, -1, height, width)


class ByWindows(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = LocallyMasked(1, "A", (5, 6), False)
        self.second = LocallyMasked(8, "B", (5, 6), True)
        self.out = nn.Conv2d(8, LEVELS, 1)

    def forward(self, x):
        h = F.elu(self.first(x.to(self.out.weight.dtype)))
        return 3 * self.out(F.elu(h + self.second(h)))


# -- guidance: one batch under its labels and under none, at once


class Guided(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = InPlaceConv("A", 1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.label = InPlaceConv("B", 8, 8, 3, padding=1), nn.Embedding(4, 8)
        self.out = nn.Conv2d(8, LEVELS, 1)

    def forward(self, x, labels):
        both = torch.cat([labels, torch.full_like(labels, 3)])
        h = F.relu(self.norm(self.first(torch.cat([x, x])))) + self.label(both)[..., None, None]
        with_label, without = self.out(F.silu(self.second(h))).chunk(2)
        return without + 2.5 * (with_label - without)


# -- colours last, standardised: dense layers of shifted maps, layer norm, colours that see the earlier ones


class Dense(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.above, self.left = nn.Linear(3 * 3, width), nn.Linear(2 * 3, width)
        self.norm, self.mix, self.before = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(3, width)
        self.out = nn.ModuleList(nn.Linear(width, LEVELS) for _ in range(3))

    def forward(self, x):  # [N, H, W, 3] -> [N, H, W, 3, levels]
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 2, 1, 1, 0))
        above = torch.cat([padded[:, :height, k : k + width] for k in (1, 2, 3)], dim=-1)
        left = torch.cat([padded[:, 1:, k : k + width] for k in (0, 1)], dim=-1)
        h = F.gelu(self.norm(self.above(above) + self.left(left)))
        h = h + F.silu(self.mix(h))
        earlier = torch.zeros_like(x)
        found = []
        for colour, out in enumerate(self.out):
            found.append(3 * out(torch.tanh(h + self.before(earlier))))
            earlier = earlier + x * F.one_hot(torch.tensor(colour), 3)
        return torch.stack(found, dim=-2)


# -- convolutions along columns and along rows, norms of groups of a pixel's channels, the larger of two pieces


class RowsAndColumns(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.column = nn.Conv2d(1, width, 1), nn.Conv1d(width, 2 * width, 2)
        self.row, self.norm = nn.Conv1d(2 * width, 2 * width, 3), nn.GroupNorm(2, width)
        self.left, self.out = nn.Conv1d(width, width, 2), nn.Conv2d(width, LEVELS, 1)

    def forward(self, x):
        x = self.first(x)
        n, c, height, width = x.shape
        columns = F.pad(x, (0, 0, 2, 0)).permute(0, 3, 1, 2).reshape(n * width, c, height + 2)
        above = self.column(columns)[..., :-1].view(n, width, -1, height).permute(0, 3, 2, 1)
        above = self.row(F.pad(above.reshape(n * height, -1, width), (1, 1)))
        above = above.view(n, height, 2, c, width).max(dim=2)[0].transpose(1, 2)
        rows = F.pad(x, (2, 0)).transpose(1, 2).reshape(n * height, c, width + 2)
        left = self.left(rows)[..., :-1].view(n, height, c, width).transpose(1, 2)
        pixels = (above + left).permute(0, 2, 3, 1).reshape(-1, c)
        h = torch.tanh(self.norm(pixels)).view(n, height, width, c).permute(0, 3, 1, 2)
        return 4 * self.out(h)


# -- a learned row above the image, columns that meet round the back, two experts


class Around(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, width, 1, 6) / 2)
        self.embed, self.above = nn.Conv2d(1, width, 1), nn.Conv2d(width, width, (2, 3))
        self.left, self.gate = nn.Conv2d(width, width, (1, 2)), nn.Conv2d(width, 1, 1)
        self.experts = nn.Conv2d(width, 2 * LEVELS, 1)

    def forward(self, x):
        e = self.embed(x)
        start = self.start.expand(len(x), -1, -1, -1)
        rows = torch.cat([start, e[:, :, :-1]], 2)
        rows = F.pad(rows, (1, 1, 0, 0), mode="circular")
        above = self.above(F.pad(rows, (0, 0, 1, 0)))
        h = F.selu(above + self.left(F.pad(e, (2, 0))[..., :-1]))
        gate = self.gate(h).sigmoid()
        one, two = (5 * self.experts(h)).chunk(2, 1)
        return gate * one + (1 - gate) * two


# -- two streams on two scales, with skips that are popped: averages down, pixel shuffle and repeated pixels up


class TwoScales(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.u_in, self.h_in = nn.Conv2d(2, width, (2, 3)), nn.Conv2d(2, width, (1, 2))
        self.u = nn.ModuleList(nn.Conv2d(width, width, (2, 3)) for _ in range(3))
        self.h = nn.ModuleList(nn.Conv2d(2 * width, width, (1, 2)) for _ in range(3))
        self.larger, self.out = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(width, LEVELS, 1)

    def stage(self, k, u, left):
        u = u + F.elu(self.u[k](F.pad(u, (1, 1, 1, 0))))
        return u, left + F.elu(self.h[k](F.pad(torch.cat([left, u], 1), (1, 0))))

    def forward(self, x):
        x = torch.cat([2 * x - 1, torch.ones_like(x)], 1)
        u = self.u_in(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
        left = self.h_in(F.pad(x, (2, 0)))[..., :-1]
        u, left = self.stage(0, u, left)
        skips = [(u, left)]
        down, across = (F.pad(z, pad)[:, :, :6, :6] for z, pad in ((u, (0, 0, 1, 0)), (left, (1, 0, 0, 0))))
        down, across = F.avg_pool2d(down, 2), F.avg_pool2d(F.pad(across, (0, 0, 1, 0))[:, :, :6], 2)
        down, across = self.stage(1, down, across)
        u = F.pad(F.pixel_shuffle(self.larger(down), 2), (0, 0, 1, 0))[:, :, :6]
        left = F.pad(F.interpolate(across, scale_factor=2), (1, 0, 1, 0))[:, :, :6, :6]
        u_skip, left_skip = skips.pop()
        u, left = self.stage(2, u + u_skip, left + left_skip)
        return 4 * self.out(F.elu(left))


# -- a map of ones, of its first batch, beside the image; a batch of one loses its axis


class OfFirstBatch(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.ones, self.first = None, InPlaceConv("A", 2, width, 5, padding=2)
        self.second, self.out = InPlaceConv("B", width, width, 3, padding=1), nn.Conv2d(width, LEVELS, 1)

    def forward(self, x):
        if self.ones is None:
            self.ones = torch.ones(len(x), 1, *x.shape[2:], dtype=x.dtype)
        h = torch.relu(self.first(torch.cat([x, self.ones], 1)))
        return 4 * self.out(h + torch.relu(self.second(h))).squeeze()


# -- what is said and a map of places beside it, in a dict


class Told(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.second = (
            InPlaceConv("A", 1, width, 3, padding=1),
            InPlaceConv("B", width, width, 3, padding=1),
        )
        self.places, self.said = (
            nn.Conv2d(2, width, 3, padding=1),
            nn.Sequential(nn.Linear(3, width), nn.Tanh()),
        )
        self.out = nn.Conv2d(width, LEVELS, 1)

    def forward(self, x, given):
        h = torch.relu(self.first(x) + self.places(given["places"]))
        scale = self.said(given["said"])[:, :, None, None]
        return 4 * self.out(h + torch.relu(self.second(h)) * (1 + scale))


STANDARDISED = image_forms.ChannelsLast(image_forms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
NETWORKS = {
    "in-place masks": Network(in_place, arguments=dict(image_form="unit")),
    "cropped shifts": Network(
        CroppedShifts, (2, 4, 5), dict(image_form="unit", head=Categorical(LEVELS, "N,C*L,H,W"))
    ),
    "weight norm": Network(WeightNormed, arguments=dict(image_form="levels")),
    "interleaved": Network(
        Interleaved, (3, 4, 4), dict(image_form="unit", head=Categorical(LEVELS, "N,L*C,H,W"))
    ),
    "thirds": Network(Thirds, (3, 4, 4), dict(image_form="unit")),
    "functional": Network(Functional, arguments=dict(image_form="levels")),
    "one-hot": Network(OneHot, (2, 4, 5), dict(head=Categorical(LEVELS, "N,C*L,H,W"))),
    "dilated gated": Network(DilatedGated, (1, 6, 7), dict(), classes=3),
    "residual added twice": Network(ResidualTwice, arguments=dict(image_form="unit")),
    "channels last": Network(ChannelsLast, arguments=dict()),
    "rare activations": Network(RareActivations, arguments=dict(image_form="unit")),
    "cumulative gates": Network(CumulativeGates, arguments=dict(image_form="unit")),
    "bounded": Network(Bounded, arguments=dict(image_form="unit"), classes=3),
    "scaled image": Network(ScaledImage, (1, 4, 5), dict(image_form="unit"), classes=3),
    "strides": Network(Strided, (1, 6, 6), dict(image_form="levels")),
    "windows": Network(ByWindows, arguments=dict(image_form="levels")),
    "guided": Network(Guided, (1, 4, 5), dict(image_form="unit"), classes=3),
    "dense": Network(Dense, (3, 4, 5), dict(image_form=STANDARDISED)),
    "rows and columns": Network(RowsAndColumns, arguments=dict(image_form="unit")),
    "around": Network(Around, arguments=dict(image_form="unit")),
    "two scales": Network(TwoScales, (1, 6, 6), dict(image_form="unit")),
    "of first batch": Network(OfFirstBatch, arguments=dict(image_form="unit")),
    "told": Network(
        Told, arguments=dict(image_form="unit", condition_shape={"said": (3,), "places": (2, 5, 6)})
    ),
    "snail": Network(lambda: attending.Snail(LEVELS), arguments=dict(image_form="unit")),
    "tokens": Network(lambda: attending.Tokens(LEVELS)),
    "start token": Network(lambda: attending.StartToken(LEVELS)),
    "axial": Network(lambda: attending.Axial(LEVELS), arguments=dict(image_form="unit")),
    "weights by hand": Network(
        lambda: attending.ByHand(LEVELS),
        (2, 4, 5),
        dict(image_form="unit", head=Categorical(LEVELS, "N,C*L,H,W")),
    ),
    "binary": Network(Binary, arguments=dict(head=Bernoulli(probabilities=True))),
}
