"""Small networks for the CUDA kernels on the host: every phase, and what the planner takes in a way of its own."""

import itertools

import torch

from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, PixelRNN
from tests.system.networks import ABOVE, Masked, enlivened, pixelcnn, two_stacks

# (model, shape). Odd sizes, several tiles of channels and of images, every phase.
CASES = {
    "1x1 image": lambda: (pixelcnn(channels=1, hidden=5, kernel=5), (1, 1, 1)),
    "7x5": lambda: (pixelcnn(channels=1, hidden=33, blocks=1, kernel=7), (1, 7, 5)),
    "one column": lambda: (pixelcnn(channels=3, hidden=8), (3, 6, 1)),
    "one row": lambda: (pixelcnn(channels=3, hidden=8), (3, 1, 6)),
    "labels": lambda: (pixelcnn(channels=3, hidden=17, kernel=5, classes=4), (3, 3, 9)),
    "two stacks": lambda: (two_stacks(), (2, 4, 5)),
    "gated": lambda: (gated(input_channels=2, n_classes=4), (2, 4, 5)),
    "gated without labels": lambda: (gated(input_channels=2), (2, 4, 5)),
    "wide gates": lambda: (gated(128, input_channels=1), (1, 2, 4)),
    "gated thirds": lambda: (gated(channel_order="thirds"), (3, 4, 5)),
    "interleaved": lambda: (
        enlivened(PixelCNN(3, 9, 1, channel_order="interleaved", kernel_size=3)),
        (3, 4, 5),
    ),
    "row lstm": lambda: (row_lstm(learn_initial_state=True, n_classes=4), (3, 4, 5)),
    "row lstm without labels": lambda: (row_lstm(), (3, 3, 4)),
    "row lstm, thirds": lambda: (row_lstm(channel_order="thirds"), (3, 3, 4)),
    "many logits": lambda: (ManyLogits().eval(), (3, 3, 4)),
    "half a gate": lambda: (HalfGate().eval(), (1, 3, 5)),
    "layer norm": lambda: (LayerNormed().eval(), (1, 3, 5)),
    "nearly the same products": lambda: (NearlyTheSame().eval(), (1, 3, 4)),
    "nearly LSTMs": lambda: (NearlyLstms().eval(), (1, 3, 4)),
    "two forms of levels": lambda: (TwoForms().eval(), (3, 2, 3)),
    "few colours": lambda: (pixelcnn(channels=2, hidden=33, blocks=0, kernel=5), (2, 2, 3)),
    "diagonal bilstm": lambda: (diagonal_bilstm(n_classes=4), (3, 4, 5)),
    "diagonal bilstm, thirds": lambda: (diagonal_bilstm(channel_order="thirds"), (3, 3, 4)),
    "diagonal bilstm, one column": lambda: (diagonal_bilstm(), (3, 4, 1)),
    "small bilstm": lambda: (small_bilstm(), (1, 2, 2)),
    "small row lstm": lambda: (small_row_lstm(), (3, 2, 2)),
}


def row_lstm(**kwargs) -> PixelRNN:
    torch.manual_seed(1)
    return enlivened(PixelRNN("row_lstm", 3, hidden_channels=9, n_layers=2, kernel_size=3, **kwargs))


def diagonal_bilstm(**kwargs) -> PixelRNN:
    torch.manual_seed(1)
    return enlivened(PixelRNN("diagonal_bilstm", 3, hidden_channels=9, n_layers=2, kernel_size=3, **kwargs))


def small_bilstm() -> PixelRNN:
    """Its layers have several tiles of channels, as have those of the next one."""
    torch.manual_seed(1)
    return enlivened(PixelRNN("diagonal_bilstm", 1, hidden_channels=24, n_layers=1, kernel_size=3))


def small_row_lstm() -> PixelRNN:
    torch.manual_seed(1)
    return enlivened(
        PixelRNN("row_lstm", 3, 24, n_layers=1, kernel_size=3, n_classes=4, channel_order="thirds")
    )


def gated(hidden_channels: int = 8, **kwargs) -> GatedPixelCNN:
    torch.manual_seed(1)
    return enlivened(GatedPixelCNN(hidden_channels=hidden_channels, dilations=(1, 2), **kwargs))


class ManyLogits(torch.nn.Module):
    """More logits than a cluster has warps for, of a value that is also read to the right."""

    n_classes = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = Masked(3, 20, [*ABOVE, (0, -1)])
        self.last = Masked(20, 3 * 256, [(0, -1), (0, 0)])

    def forward(self, images):
        x = self.first(images.to(self.first.weight.dtype) / 99)
        return (9 * self.last(x)).unflatten(1, (3, 256)).permute(0, 1, 3, 4, 2)


class NearlyTheSame(torch.nn.Module):
    """Products next to each other of one value, by taps that differ in one thing only, or of different widths; and
    three by the same taps. Where there are no channels, a logarithm would be infinite."""

    n_classes = None
    PAIRS = (
        ([(0, -2), (0, -1)], [(0, -2)]),
        ([(0, -1)], [(0, -2)]),
        ([(-1, 0)], [(-2, 0)]),
        ([(-1, 0), (0, -1)], [(-2, 0), (0, -1)]),
        ([(-1, 0), (0, -1)], [(-1, 0), (0, -2)]),
    )

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        here = [(0, 0)]
        self.first = Masked(1, 12, [*ABOVE, (0, -1)])
        self.pairs = torch.nn.ModuleList(
            Masked(12, 12, taps, size=5) for taps in itertools.chain(*self.PAIRS)
        )
        with torch.no_grad():
            for weights in self.pairs.parameters():
                weights.mul_(9)
        self.three = torch.nn.ModuleList(Masked(12, 12, here) for _ in range(3))
        self.narrow, self.wide, self.last = Masked(12, 12, here), Masked(12, 40, here), Masked(52, 256, here)

    def forward(self, images):
        x = self.first(images.to(self.first.weight.dtype) / 99)
        for one, other in zip(self.pairs[::2], self.pairs[1::2], strict=True):
            x = one(x).tanh() - 0.5 * other(x)
        a, b, c = (layer(x) for layer in self.three)
        x = a.relu() + b.sigmoid() * c
        x = torch.cat([self.narrow(x).relu(), (self.wide(x).relu() + 1).log()], 1)
        return (90 * self.last(x)).unflatten(1, (1, 256)).permute(0, 1, 3, 4, 2)


class TwoForms(torch.nn.Module):
    """Of colours that are drawn at once, one layer reads the first two, embedded, and another the third, scaled and
    then by a second step. Scales without a shift, of few channels and of many."""

    n_classes = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.embedded = torch.nn.Embedding(256, 5)
        self.two, self.third = Masked(10, 20, [*ABOVE, (0, -1)]), Masked(1, 20, [(0, -1)])
        self.wide, self.last = Masked(20, 40, [(0, 0)]), Masked(40, 3 * 256, [(0, 0)])

    def forward(self, images):
        two = self.two(self.embedded(images[:, :2].long()).movedim(-1, 2).flatten(1, 2))
        third = self.third((images[:, 2:].to(two) * 0.03 - 1).tanh())
        x = 0.7 * (two + third).tanh()
        x = 3 * self.wide(x).tanh()
        return (9 * self.last(x)).unflatten(1, (3, 256)).movedim(2, -1)


class NearlyLstms(torch.nn.Module):
    """LSTMs one after the other, the last ones of which differ from one in a single thing: what they multiply in the
    end, or which gate something else reads, too."""

    n_classes = None
    KINDS = ("none", "other factor", "tanh", "input", "output")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        here = [(0, 0)]
        self.first = Masked(1, 12, [*ABOVE, (0, -1)])
        self.between = torch.nn.ModuleList(Masked(12, 12, here) for _ in range(4))
        self.gates = torch.nn.ModuleList(Masked(12, 12, here) for _ in range(4 * len(self.KINDS)))
        self.mixed = torch.nn.ModuleList(Masked(36, 12, here) for _ in self.KINDS)
        self.last = Masked(12, 256, here)

    def forward(self, images):
        first = self.first(images.to(self.first.weight.dtype) / 99)
        x, before = first, torch.nn.functional.pad(first, (0, 0, 1, -1))
        for layer in self.between:
            x = layer(x).relu()
        for k, kind in enumerate(self.KINDS):
            tanh, i, f, o = (gate(x) for gate in self.gates[4 * k : 4 * k + 4])
            tanh, i, f, o = tanh.tanh(), i.sigmoid(), f.sigmoid(), o.sigmoid()
            i = i * tanh
            cell = f * before + i
            h = cell.tanh() * (x if kind == "other factor" else o)
            also = {"tanh": tanh, "input": i, "output": o, "other factor": o}.get(kind, x)
            x = self.mixed[k](torch.cat([h, cell, also], 1)).tanh()
        return (30 * self.last(x)).unflatten(1, (1, 256)).permute(0, 1, 3, 4, 2)


class HalfGate(torch.nn.Module):
    """Two products of the same values, a tanh of one times a sigmoid of neither, and a third less half of what it is
    of."""

    n_classes = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = Masked(1, 12, [*ABOVE, (0, -1)])
        self.one = Masked(12, 12, [(0, -1), (0, 0)])
        self.other = Masked(12, 12, [(0, -1), (0, 0)])
        self.third = Masked(12, 12, [(0, 0)])
        self.last = Masked(48, 256, [(0, 0)])

    def forward(self, images):
        x = self.first(images.to(self.first.weight.dtype) / 99)
        one, other = self.one(x), self.other(x)
        all_of_them = torch.cat([one.tanh() * x.sigmoid(), one, other, self.third(one) - 0.5 * one], 1)
        return (3 * self.last(all_of_them)).unflatten(1, (1, 256)).permute(0, 1, 3, 4, 2)


class LayerNormed(torch.nn.Module):
    """A layer norm reads what all warps have made, one of them twice: an odd number of channels, whose mean counts."""

    n_classes = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.last = Masked(1, 137, [*ABOVE, (0, -1)]), Masked(137, 256, [(0, 0)])
        self.norm = torch.nn.LayerNorm(137)
        assert self.first.bias is not None
        with torch.no_grad():
            self.first.bias.add_(3)

    def forward(self, images):
        x = self.norm(self.first(images.to(self.first.weight.dtype) / 99).movedim(1, -1)).movedim(-1, 1)
        return (9 * self.last(x)).unflatten(1, (1, 256)).permute(0, 1, 3, 4, 2)


class FarSighted(torch.nn.Module):
    """The first layer reads two columns to the left: zeros at the left edge, before anything has been computed. And so
    many of the rows above that a batch of its weights goes before the first barrier."""

    n_classes = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        above = [(dy, dx) for dy in (-2, -1) for dx in range(-4, 5)]
        self.first = Masked(1, 20, [*above, (0, -2)], size=9)
        self.last = Masked(20, 256, [(0, -1), (0, 0)])

    def forward(self, images):
        x = torch.nn.functional.elu(self.first(images.to(self.first.weight.dtype) / 99))
        return (20 * self.last(x)).unflatten(1, (1, 256)).permute(0, 1, 3, 4, 2)
