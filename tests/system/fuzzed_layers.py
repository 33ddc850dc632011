"""Layers of random networks: each a causal operation in one of the ways in which people write it."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.nn import DiagonalLSTM, RowLSTM

CLASSES = 3
ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    F.elu,
    F.gelu,
    F.silu,
    F.softplus,
    nn.LeakyReLU(0.3),
    nn.ELU(0.5),
    lambda x: F.relu(x, inplace=True),
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x: x.clone(),
    F.selu,
    F.mish,
    F.hardswish,
    F.logsigmoid,
    F.softsign,
    nn.CELU(0.7),
    lambda x: torch.exp(-x.abs()),
    lambda x: F.hardtanh(x, -0.3, 0.2, inplace=True),
    lambda x: x.clamp(max=0.1),
    lambda x: torch.exp(F.relu6(2 * x)) / 9,
    lambda x: torch.log(F.hardsigmoid(3 * x) + 0.1),
]


class Conditioning(NamedTuple):
    labels: Tensor
    condition: Tensor  # [N, 2, H, W]


@torch.jit.script
def scripted_shift(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :, :1]), x[:, :, :-1]], 2)


class Conv(nn.Conv2d):
    """Masked in one of several ways. groups_in, groups_out: the groups of the channels, which order the colours."""

    mask: Tensor

    def __init__(self, r: random.Random, groups_in: Tensor, groups_out: Tensor, kind: str, ordered: bool):
        height, width, dilation = r.choice([1, 3, 5]), r.choice([1, 3]), r.choice([1, 1, 2])
        if kind == "1x1":
            height = width = 1
        if kind == "A" and not ordered and height == width == 1:
            width = 3  # something to see
        padding = (dilation * (height // 2), dilation * (width // 2))
        super().__init__(len(groups_in), len(groups_out), (height, width), padding=padding, dilation=dilation)
        mask = torch.ones(height * width)
        mask[height * width // 2 :] = 0
        mask = mask.view(height, width).expand_as(self.weight).clone()
        if kind == "rows above":
            mask[:, :, : height // 2] = 1
            mask[:, :, height // 2] = 0
        elif kind == "A":
            centre = groups_in[None, :] < groups_out[:, None] if ordered else torch.zeros(1, 1)
            mask[:, :, height // 2, width // 2] = centre.to(mask)
        else:
            centre = groups_in[None, :] <= groups_out[:, None] if ordered else torch.ones(1, 1)
            mask[:, :, height // 2, width // 2] = centre.to(mask)
        self.register_buffer("mask", mask)
        self.style = r.choice(["multiply", "in place", "where"])

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "in place":
            self.weight.data *= self.mask
            return super().forward(x)
        weight = self.weight * self.mask
        if self.style == "where":
            weight = torch.where(self.mask > 0, self.weight, torch.zeros(()).to(self.weight))
        return F.conv2d(x, weight, self.bias, padding=self.padding, dilation=self.dilation)


class Layer(nn.Module):
    """One random operation that keeps width and groups, of those that ``kinds`` names."""

    def __init__(self, r: random.Random, groups: Tensor, ordered: bool, kinds: list[str]) -> None:
        super().__init__()
        twice = torch.cat([groups, groups])
        self.kind, width = r.choice(kinds), len(groups)
        self.activation = r.choice(ACTIVATIONS)
        self.numbers = [r.uniform(-1, 1) for _ in range(2)]
        self.conv = Conv(r, groups, groups, "B", ordered)
        self.point = Conv(r, groups, groups, "1x1", ordered)
        self.widen = Conv(r, groups, twice, r.choice(["B", "1x1"]), ordered)
        self.narrow = Conv(r, twice, groups, r.choice(["B", "1x1"]), ordered)
        self.above = Conv(r, groups, groups, "rows above", ordered)
        self.free = nn.Conv2d(width, width, (r.choice([1, 2]), 3))
        self.norm = nn.BatchNorm2d(width)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.layer_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.embedding = nn.Embedding(CLASSES, 2 * width)
        self.constant = nn.Parameter(torch.rand(width, 1, 1))
        self.of_condition = nn.Conv2d(2, width, 1)
        self.prelu = nn.PReLU(width)
        self.kept: dict[int, Tensor] = {}
        settings: Any = dict(learn_initial_state=r.random() < 0.5)
        if ordered:
            settings["channel_groups"] = (groups, groups)
        self.row_lstm = RowLSTM(width, width, r.choice([1, 3, 5]), **settings)
        self.left = DiagonalLSTM(width, width, **settings)
        self.right = DiagonalLSTM(width, width, reverse=True, **settings)
        for name, parameter in self.named_parameters():
            if name.endswith(("h0", "c0")):
                nn.init.normal_(parameter)

    def forward(self, h: Tensor, given: Conditioning) -> Tensor:
        return getattr(self, self.kind)(h, given)

    def convolved(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.activation(self.conv(h))

    def pointwise(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.point(self.activation(h + 0.1))

    def residual(self, h: Tensor, given: Conditioning) -> Tensor:
        return h + self.point(self.activation(self.conv(h)))

    def residual_twice(self, h: Tensor, given: Conditioning) -> Tensor:
        f = self.conv(self.activation(1 * h))
        return (f + h) * 0.5 + h

    def gated(self, h: Tensor, given: Conditioning) -> Tensor:
        a, b = self.widen(h).chunk(2, 1)
        return torch.tanh(a) * b.sigmoid()

    def gated_by_label(self, h: Tensor, given: Conditioning) -> Tensor:
        x = self.widen(h) + self.embedding(given.labels)[:, :, None, None]
        return h + x[:, : h.shape[1]].tanh() * torch.sigmoid(x[:, h.shape[1] :])

    def scaled_by_label(self, h: Tensor, given: Conditioning) -> Tensor:
        scale, shift = self.embedding(given.labels).view(-1, 2 * h.shape[1], 1, 1).split(h.shape[1], 1)
        return h * scale + shift

    def normed(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.norm(self.conv(h)) if self.numbers[0] > 0 else self.norm(h)

    def concat_elu(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.narrow(F.elu(torch.cat([h, -h], 1)))

    def gated_resnet(self, h: Tensor, given: Conditioning) -> Tensor:
        x = self.narrow(F.elu(torch.cat([h, -h], 1)))
        a, b = self.widen(x).chunk(2, 1)
        return h + a * torch.sigmoid(b)

    def dense(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.narrow(torch.cat((self.activation(self.conv(h)), h), dim=1))

    def arithmetic(self, h: Tensor, given: Conditioning) -> Tensor:
        return (self.numbers[0] - h * self.constant) / 2 + self.numbers[1]

    def product(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.conv(h) * torch.sigmoid(self.above(h)) + h

    def shifted_down(self, h: Tensor, given: Conditioning) -> Tensor:
        return h + F.pad(h, (0, 0, 1, 0))[:, :, :-1]

    def beside_itself(self, h: Tensor, given: Conditioning) -> Tensor:
        both = torch.cat([h, F.pad(h, (0, 0, 1, 0))[:, :, :-1]], 1)
        return self.narrow(self.activation(both * self.constant.repeat(2, 1, 1))) + h

    def shifted_right(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.point(F.pad(h, (1, 0))[..., : h.shape[3]]) + h

    def moved_down(self, h: Tensor, given: Conditioning) -> Tensor:
        rows = self.free.kernel_size[0]  # with two it looks at the row below, too
        ahead = self.activation(self.norm(self.free(F.pad(h, (1, 1, 0, rows - 1)))))
        return F.pad(ahead, (0, 0, rows, 0))[:, :, :-rows] - h

    def moved_right(self, h: Tensor, given: Conditioning) -> Tensor:
        ahead = self.conv(h) + F.conv2d(F.pad(h, (0, 1)), self.free.weight[:, :, :1, :2])
        return self.point(F.pad(ahead, (1, 0))[..., :-1]) + h

    def rolled(self, h: Tensor, given: Conditioning) -> Tensor:
        rolled = torch.roll(h, 1, 2)
        rolled[:, :, 0] = 0
        return self.above(h) + rolled

    def vertical(self, h: Tensor, given: Conditioning) -> Tensor:
        return h + self.activation(self.point(self.above(h)))

    def glu(self, h: Tensor, given: Conditioning) -> Tensor:
        return F.glu(self.widen(h), dim=1) + self.prelu(h)

    def stacked(self, h: Tensor, given: Conditioning) -> Tensor:
        return torch.stack([h, self.conv(h), self.point(h)]).mean(0)

    def larger(self, h: Tensor, given: Conditioning) -> Tensor:
        return torch.maximum(h, self.conv(h)) - torch.minimum(self.above(h), h)

    def bounded(self, h: Tensor, given: Conditioning) -> Tensor:
        low, high = self.embedding(given.labels)[:, :, None, None].chunk(2, 1)
        return self.conv(h).clamp(low - 0.5, torch.maximum(high, self.constant)) + torch.minimum(
            h, self.constant
        )

    def chosen(self, h: Tensor, given: Conditioning) -> Tensor:
        mask = self.constant > 0.5
        return torch.where(mask, self.conv(h), h).masked_fill(~mask, self.numbers[0])

    def dropped(self, h: Tensor, given: Conditioning) -> Tensor:
        return F.dropout(h, 0.5, self.training)

    def conditioned(self, h: Tensor, given: Conditioning) -> Tensor:
        x = self.of_condition(given.condition)
        return (
            h * torch.sigmoid(x)
            if self.numbers[0] > 0
            else h.permute(2, 3, 0, 1).add(x.mean((2, 3))).permute(2, 3, 0, 1)
        )

    def overwritten(self, h: Tensor, given: Conditioning) -> Tensor:
        h = h.clone()
        h[:, : h.shape[1] // 2].fill_(self.numbers[0])
        h[:, :, 0][...] = self.numbers[1]
        h[:, :, :, -1].mul_(2)
        return self.conv(h)

    def overlapping(self, h: Tensor, given: Conditioning) -> Tensor:
        larger = F.pad(h, (0, 0, 1, 0))
        here, above = larger[:, :, 1:], larger[:, :, :-1]
        here += self.conv(h)
        return h + self.activation(above)

    def written_through_views(self, h: Tensor, given: Conditioning) -> Tensor:
        h = h.clone(memory_format=torch.contiguous_format)
        rows = h.permute(0, 2, 3, 1)[:, :, 1:]
        rows += self.constant.flatten()
        h.view(h.shape[0], h.shape[1], -1).clamp_(-0.5)
        copy = h.clone()
        copy.data = self.point(h)
        return copy + h

    def scripted(self, h: Tensor, given: Conditioning) -> Tensor:
        return h + scripted_shift(self.activation(h))

    def padded_with_a_number(self, h: Tensor, given: Conditioning) -> Tensor:
        across = self.conv.kernel_size[1] // 2 * self.conv.dilation[1]
        down = self.conv.kernel_size[0] // 2 * self.conv.dilation[0]
        x = F.pad(h, (across, across, down, down), value=self.numbers[0])
        weight = self.conv.weight * self.conv.mask
        return F.conv2d(x, weight, self.conv.bias, dilation=self.conv.dilation)

    def cropped_and_padded(self, h: Tensor, given: Conditioning) -> Tensor:
        larger = F.conv2d(F.pad(h, (1, 1, 2, 0)), self.free.weight[:, :, -1:] * self.point.mask)
        larger = self.activation(larger)[:, :, :-2] * self.constant
        return h + F.pad(larger, (1, 0))[..., :-1]

    def over_padded(self, h: Tensor, given: Conditioning) -> Tensor:
        extra = 1 + int(8 * abs(self.numbers[0]))  # perhaps more than the image has
        down, across = self.conv.kernel_size[0] // 2, self.conv.kernel_size[1] // 2
        padding = (self.conv.dilation[0] * down + extra, self.conv.dilation[1] * across + extra)
        weight = self.conv.weight * self.conv.mask
        larger = F.conv2d(h, weight, self.conv.bias, padding=padding, dilation=self.conv.dilation)
        return self.activation(larger)[:, :, extra:-extra, extra:-extra]

    def row_by_row(self, h: Tensor, given: Conditioning) -> Tensor:
        return h + self.row_lstm(self.activation(h))

    def by_diagonals(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.left(h) + self.point(h)

    def from_both_sides(self, h: Tensor, given: Conditioning) -> Tensor:
        right = self.right(self.conv(h))  # perhaps with more layers before it is shifted down
        right = self.activation(self.point(right)) if self.numbers[0] > 0 else right
        right = self.left(right) if self.numbers[1] > 0.5 else right
        return self.left(h) + F.pad(right, (0, 0, 1, -1)) + self.above(h)

    def from_both_sides_above(self, h: Tensor, given: Conditioning) -> Tensor:
        # known before the row's pixels, and so is what goes along it
        above = F.pad(self.conv(h), (0, 0, 1, -1))
        across = F.conv2d(F.pad(self.left(above), (1, 1)), self.free.weight[:, :, :1])
        return h + self.right(across if self.numbers[0] > 0 else above)

    def row_by_row_ahead(self, h: Tensor, given: Conditioning) -> Tensor:
        ahead = self.row_lstm(F.conv2d(F.pad(h, (1, 1)), self.free.weight[:, :, :1]))
        return h + F.pad(ahead, (0, 0, 1, -1))

    # those that mix all channels of a pixel

    def layer_normed(self, h: Tensor, given: Conditioning) -> Tensor:
        return self.layer_norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def channels_last(self, h: Tensor, given: Conditioning) -> Tensor:
        x = h.movedim(1, -1)
        return h + (self.linear(x) if self.numbers[0] > 0 else x @ self.linear.weight).movedim(-1, 1)

    def rms_normed(self, h: Tensor, given: Conditioning) -> Tensor:
        x = h.permute(0, 2, 3, 1)
        return F.rms_norm(x, x.shape[3:], self.constant.flatten(), 0.1).permute(0, 3, 1, 2)

    def flattened(self, h: Tensor, given: Conditioning) -> Tensor:
        n, c, height, width = h.shape
        x = h.permute(0, 2, 3, 1)
        x = x.reshape(-1, c) if self.numbers[0] > 0 else x.reshape(n, -1, c)
        return self.linear(torch.tanh(x)).view(n, height, width, c).permute(0, 3, 1, 2)

    def multiplied_out(self, h: Tensor, given: Conditioning) -> Tensor:
        return torch.einsum("nchw,oc->nohw", h, self.linear.weight)

    def along_rows(self, h: Tensor, given: Conditioning) -> Tensor:
        n, c, height, width = h.shape
        rows = F.pad(h.transpose(1, 2).reshape(n * height, c, width), (2, 0))
        rows = F.conv1d(rows, self.free.weight[:, :, 0], self.free.bias)
        return h + rows.view(n, height, c, width).transpose(1, 2)

    def along_columns(self, h: Tensor, given: Conditioning) -> Tensor:
        n, c, height, width = h.shape
        columns = F.pad(h.permute(0, 3, 1, 2).reshape(n * width, c, height), (2, 0))
        columns = F.conv1d(columns, self.free.weight[:, :, 0])
        return self.activation(columns).view(n, width, c, height).permute(0, 2, 3, 1) - h

    def normed_in_groups(self, h: Tensor, given: Conditioning) -> Tensor:
        n, c, height, width = h.shape
        groups = 2 if c % 4 == 0 else 1  # two channels of a group would come out as signs
        x = h.permute(0, 2, 3, 1).reshape(-1, c)
        x = F.group_norm(x, groups, self.constant.flatten(), eps=0.1)
        return x.view(n, height, width, c).permute(0, 3, 1, 2)

    def compared(self, h: Tensor, given: Conditioning) -> Tensor:
        largest, smallest = h.max(1, keepdim=True), h.min(1, keepdim=True)
        x = h - largest.values if self.numbers[0] > 0 else h.softmax(1) - smallest.values
        return self.conv(x - torch.logsumexp(h, 1, keepdim=True))

    def all_around(self, h: Tensor, given: Conditioning) -> Tensor:
        above = F.conv2d(F.pad(h, (1, 1, 0, 0), mode="circular"), self.free.weight[:, :, :1])
        return h + F.pad(self.activation(above), (0, 0, 1, -1))

    def after_a_start_row(self, h: Tensor, given: Conditioning) -> Tensor:
        n, c, _, width = h.shape
        row = self.constant.expand(n, c, 1, width)
        row = row if self.numbers[0] > 0 else torch.ones_like(row)
        above = torch.cat([row, h[:, :, :-1]], 2)
        return h + self.free(F.pad(above, (1, 1, self.free.kernel_size[0] - 1, 0)))

    def memoised(self, h: Tensor, given: Conditioning) -> Tensor:
        n = len(h)
        if n not in self.kept:
            self.kept[n] = torch.ones(n, 1, *h.shape[2:])
        return self.conv(torch.cat([h[:, 1:], self.kept[n].to(h)], 1))

    def swapped(self, h: Tensor, given: Conditioning) -> Tensor:
        return torch.cat(h.tensor_split(2, dim=1)[::-1], 1) + h.flip(1)


KINDS = (
    "row_by_row by_diagonals from_both_sides from_both_sides_above convolved pointwise residual residual_twice "
    "gated gated_by_label scaled_by_label normed concat_elu dense arithmetic product shifted_down "
    "beside_itself shifted_right rolled moved_down vertical dropped glu stacked larger bounded chosen "
    "conditioned overwritten overlapping written_through_views scripted padded_with_a_number "
    "cropped_and_padded over_padded"
).split()
MIXING_KINDS = (
    "row_by_row_ahead layer_normed rms_normed channels_last swapped moved_right flattened multiplied_out"
).split()
STYLES = (  # in a layer more than a network would have without them
    "gated_resnet along_rows along_columns normed_in_groups compared all_around after_a_start_row memoised"
).split()


class Cells(nn.Module):
    """Layers on a coarser grid, and back; down again in between, perhaps."""

    def __init__(self, r: random.Random, width: int, depth: int = 2) -> None:
        super().__init__()
        self.kind = "cells"
        self.stride = stride = (r.randint(1, 3), r.randint(1, 3))
        self.size = size = (r.randint(1, 3), r.randint(1, 3))
        self.how = r.choice(["transposed", "transposed", "nearest", "shuffled"])
        self.down = nn.Conv2d(width, width, size, stride)
        self.pooled = r.random() < 0.2 and size == stride
        self.inner = nn.Conv2d(width, width, (r.randint(1, 2), r.randint(1, 3)))
        self.deeper = Cells(r, width, depth - 1) if depth > 1 and r.random() < 0.4 else None
        self.norm = nn.GroupNorm(1, width) if r.random() < 0.3 and width > 1 else None
        self.activation = r.choice(ACTIVATIONS)
        larger = (stride[0] + r.randint(0, 1), stride[1] + r.randint(0, 1))
        self.up = nn.ConvTranspose2d(width, width, larger, stride)
        if self.how == "shuffled":
            self.stride = stride = (2, 2)
            self.down, self.pooled = nn.Conv2d(width, width, size, stride), False
            self.widen = nn.Conv2d(width, 4 * width, 1)
        self.late = r.random() < 0.3 and stride[0] > 1

    def forward(self, h: Tensor, given: Conditioning) -> Tensor:
        x = F.pad(h, (self.size[1] - 1, 0, self.size[0] - 1, 0))  # so that a cell ends with its first pixel
        if self.late:  # or one further down and to the right, and is moved down by a cell
            x = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        x = F.avg_pool2d(x, self.size) if self.pooled else self.down(x)
        if self.late:
            x = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        kernel = self.inner.kernel_size
        x = self.activation(x) + self.inner(F.pad(x, (kernel[1] - 1, 0, kernel[0] - 1, 0)))
        if self.norm is not None:
            rows = x.permute(0, 2, 3, 1)
            x = self.norm(rows.reshape(-1, rows.shape[3])).view(rows.shape).permute(0, 3, 1, 2)
        if self.deeper is not None:
            x = self.deeper(x, given)
        if self.how == "nearest":
            x = x.repeat_interleave(self.stride[0], 2).repeat_interleave(self.stride[1], 3)
        else:
            x = F.pixel_shuffle(self.widen(x), 2) if self.how == "shuffled" else self.up(x)
        return h + x[:, :, : h.shape[2], : h.shape[3]]


class Twice(nn.Module):
    """One batch under two conditions, and windows whose masks differ from pixel to pixel."""

    masks: Tensor

    def __init__(self, r: random.Random, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = "twice"
        self.label, self.point = nn.Embedding(CLASSES, width), nn.Conv2d(width, width, 1)
        self.weight = nn.Parameter(torch.randn(width, 9 * width) / 9)
        self.repeats, self.one_by_one = r.random() < 0.5, r.random() < 0.5
        y, x = torch.meshgrid(*(torch.arange(size) for size in shape[1:]), indexing="ij")
        i, j = torch.meshgrid(torch.arange(-1, 2), torch.arange(-1, 2), indexing="ij")
        earlier = (i < 0) | ((i == 0) & (j <= 0))
        masks = earlier.reshape(9, 1) & (torch.rand(9, y.numel()) < 0.8)
        self.register_buffer("masks", masks.double())

    def forward(self, h: Tensor, given: Conditioning) -> Tensor:
        labels = torch.cat([given.labels, torch.zeros_like(given.labels)])
        both = h.repeat(2, 1, 1, 1) if self.repeats else torch.cat([h, h])
        one, other = torch.tanh(self.point(both) + self.label(labels)[..., None, None]).chunk(2)
        n, c, height, width = h.shape
        windows = F.unfold(one - 0.5 * other, 3, padding=1)
        if self.one_by_one:
            windows = (windows.view(n * c, 9, -1) * self.masks).view(windows.shape)
        else:
            windows = (windows.view(n, c, 9, -1) * self.masks).flatten(1, 2)
        return h - h.max(1, keepdim=True).values + (self.weight @ windows).view(h.shape)


class Attends(nn.Module):
    """Attention over all pixels before, a window of them, or those of the row or the column; without or with the
    pixel itself, and its mask written in one of several ways."""

    def __init__(self, r: random.Random, width: int) -> None:
        super().__init__()
        self.kind, self.heads, self.scale = "attends", r.randint(1, 3), r.uniform(0.3, 3)
        of_key, of_value = self.heads * r.randint(1, 4), self.heads * r.randint(1, 5)
        self.query, self.key, self.value = (nn.Linear(width, each) for each in (of_key, of_key, of_value))
        self.out = nn.Linear(of_value, width)
        self.over = r.choice(["all", "all", "window", "rows", "columns"])
        self.how = r.choice(["filled", "weakly", "added", "by hand", "turned", "product"])
        self.strict = r.random() < 0.5
        self.relative = nn.Parameter(torch.randn(self.heads, 72)) if r.random() < 0.3 else None

    def forward(self, h: Tensor, given: Conditioning) -> Tensor:
        n, _, height, width = h.shape
        x = h.permute(0, 2, 3, 1)
        parts = (f(x).unflatten(3, (self.heads, -1)) for f in (self.query, self.key, self.value))
        if self.over == "rows":
            q, k, v = (part.transpose(2, 3) for part in parts)
        elif self.over == "columns":
            q, k, v = (part.permute(0, 2, 3, 1, 4) for part in parts)
        else:
            q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in parts)
        count = q.shape[-2]
        mask = torch.ones(count, count, dtype=torch.bool).tril(-1 if self.strict else 0)
        if self.over == "window":
            y, across = torch.arange(count) // width, torch.arange(count) % width
            mask &= (y[:, None] - y <= 1) & ((across[:, None] - across).abs() <= 1)
        found = self.weighed(q * self.scale, k, v, mask)
        if self.over == "columns":
            found = found.permute(0, 3, 1, 2, 4)
        else:
            found = found.transpose(-3, -2)
        return h + self.out(found.reshape(n, height, width, -1)).permute(0, 3, 1, 2)

    def weighed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        least, some = torch.finfo(q.dtype).min, mask.any(1, keepdim=True)
        if self.how == "turned":
            found = (k @ q.mT).masked_fill(~mask.T, least).softmax(-2) * some.T
            return (v.mT @ found).mT
        if self.how == "product":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        scores = q @ k.mT
        if self.relative is not None:
            apart = torch.arange(len(mask))[:, None] - torch.arange(len(mask)) + 36
            scores = scores + self.relative[:, apart]
        if self.how == "filled":
            return scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0) @ v
        if self.how == "added" and bool(some.all()):  # else there would be NaN among the gradients
            return (scores + torch.zeros_like(scores).masked_fill(~mask, -torch.inf)).softmax(-1) @ v
        if self.how in ("weakly", "added"):
            return torch.where(mask, scores, -1e4).softmax(-1).mul(some) @ v
        scores = scores.masked_fill(~mask, least)
        powers = (scores - scores.amax(-1, keepdim=True)).exp() * mask
        return powers / (powers.sum(-1, keepdim=True) + 1e-3) @ v
