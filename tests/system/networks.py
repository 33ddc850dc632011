"""Networks the tests sample from: random but lively (no flat logits, batch norm that does something)."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.models import PixelCNN
from pixelcnn_fast.nn import MaskedConv2d

Model = TypeVar("Model", bound=nn.Module)


def enlivened(model: Model, seed: int = 0) -> Model:
    """Random batch-norm statistics, and logits that are far from uniform; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
        for name, parameter in model.named_parameters():
            if name.startswith("conv_out"):
                parameter.mul_(5)
    return model.eval()


def positive(model: Model) -> Model:
    """Positive weights, so that no path cancels another or dies in a ReLU: gradients show all that is seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(0.5).add_(0.01)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.zero_()
    return model


def pixelcnn(
    channels: int = 1,
    hidden: int = 8,
    blocks: int = 1,
    classes: int | None = None,
    kernel: int = 3,
    seed: int = 0,
) -> PixelCNN:
    torch.manual_seed(seed)
    return enlivened(PixelCNN(channels, hidden, blocks, classes, kernel), seed)


class Attending(nn.Module):
    """Attention over the pixels before, and over those of the row, after a first masked layer: images of C
    channels -> logits [N, C, H, W, 256]. A head's values have 48 channels, which threads share."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.first, self.out = MaskedConv2d(channels, 24, 3, "A"), nn.Linear(48 * heads, 24)
        self.keys, self.values = nn.Linear(24, 16 * heads), nn.Linear(24, 48 * heads)
        self.of_row, self.last = nn.Linear(24, 72), nn.Conv2d(24, 256 * channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(self.first(images.to(self.last.weight) / 255))
        n, _, height, width = x.shape
        flat = x.flatten(2).mT
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (*self.keys(flat).chunk(2, 2), self.values(flat))
        )
        found = F.scaled_dot_product_attention(4 * q, k, v, is_causal=True)
        flat = flat + self.out(found.transpose(1, 2).flatten(2))
        q, k, v = self.of_row(flat).view(n, height, width, -1).chunk(3, 3)
        flat = flat + F.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1, 2)
        return self.last(flat.mT.reshape(x.shape)).view(n, self.channels, 256, height, width).movedim(2, 4)


def attending(channels: int = 1, seed: int = 0) -> Attending:
    torch.manual_seed(seed)
    model = Attending(channels).eval()
    with torch.no_grad():
        model.last.weight.mul_(5)
    return model


def streamed(channels: int = 1) -> PixelCNN:
    """Its weights of the pixel phase take more than the processor's own caches hold."""
    return pixelcnn(channels, hidden=256, blocks=3, kernel=5)


class Filtered(nn.Module):
    """Two layers with so many weights above the present row that they are filtered: of 5 taps by pixels, whose sums
    wait for theirs, and of 7 by rows; with cells, that one is not, as its sum has a map of fewer pixels, too. Images
    of one channel -> logits [N, 1, H, W, 256]."""

    def __init__(self, channels: int = 256, has_cells: bool = False) -> None:
        super().__init__()
        if has_cells:
            self.cells, self.up = nn.Conv2d(channels, 8, 2, 2), nn.ConvTranspose2d(8, channels, 2, 2)
        self.first = MaskedConv2d(1, channels, 3, "A")
        self.by_pixels = MaskedConv2d(channels, channels, 5, "B")
        self.by_rows = nn.Conv2d(channels, channels, (2, 7))
        self.last = nn.Conv2d(channels, 256, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.to(self.last.weight) / 255).relu()
        above = self.by_rows(F.pad(x, (3, 3, 2, 0)))[..., :-1, :]
        if hasattr(self, "cells"):
            above = above + self.up(self.cells(F.pad(x, (0, 0, 2, 0))[..., :-2, :]))
        return self.last(F.elu(self.by_pixels(x) + above.relu())).movedim(1, -1)[:, None]


class Written(nn.Module):
    """``forward(net, x)``, written where it is used, of layers and tensors that the network holds by their names."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.forward_of = forward
        for name, part in parts.items():
            is_buffer = isinstance(part, Tensor) and not isinstance(part, nn.Parameter)
            self.register_buffer(name, part) if is_buffer else setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.forward_of(self, x)


class Masked(nn.Conv2d):
    """A convolution whose live taps are listed: (dy, dx) offsets."""

    mask: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        taps: Sequence[tuple[int, int]],
        size: int = 3,
        dilation: int = 1,
    ) -> None:
        super().__init__(channels_in, channels_out, size, padding=dilation * (size // 2), dilation=dilation)
        mask = torch.zeros(size, size)
        for dy, dx in taps:
            mask[size // 2 + dy, size // 2 + dx] = 1
        self.register_buffer("mask", mask.expand_as(self.weight).clone())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


ABOVE = [(-1, -1), (-1, 0), (-1, 1)]
LEFT = [(0, -1)]
HERE = [(0, 0)]


class TwoStacks(nn.Module):
    """Uses every phase: an embedding of the pixel itself (drawn), a vertical stack (row), a horizontal one (pixel);
    dilation, several activations, products, values read twice, a condition written with the batch size in a view."""

    def __init__(self, channels: int = 2, width: int = 9, n_classes: int | None = 4) -> None:
        super().__init__()
        self.channels, self.n_classes = channels, n_classes
        self.embed = nn.Conv2d(channels, width, 1)
        self.vertical_in = Masked(width, width, ABOVE)
        self.vertical = Masked(width, width, [*ABOVE, (0, -1), (0, 0), (0, 1)], dilation=2)
        self.horizontal_in = Masked(width, width, LEFT)
        self.link = nn.Conv2d(width, width, 1)
        self.horizontal = Masked(width, width, [*LEFT, *HERE], size=5)
        self.label = nn.Embedding(n_classes, width) if n_classes else None
        self.conv_out = nn.Conv2d(width, channels * 256, 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        n, c, height, width = images.shape
        x = images.to(self.embed.weight.dtype) / 127.5 - 1
        if x.max() > 1e6:  # a branch on the image's values simply runs
            raise RuntimeError("not an image")
        e = F.elu(self.embed(x))
        v = torch.tanh(self.vertical_in(e))
        v = v + F.leaky_relu(self.vertical(v), 0.2)
        h = self.link(v) + self.horizontal_in(e)
        h *= torch.sigmoid(h)
        if self.label is not None:
            h += 2 * self.label(labels).view(n, -1, 1, 1)
        h = F.silu(self.horizontal(h), inplace=True) * 0.7 + h
        out = 1 - self.conv_out(F.dropout(h, training=self.training))
        return out.reshape(n, c, 256, height, width).permute(0, 1, 3, 4, 2)


def two_stacks(width: int = 9, n_classes: int | None = 4) -> TwoStacks:
    torch.manual_seed(3)
    return enlivened(TwoStacks(width=width, n_classes=n_classes))


class ChannelByChannel(nn.Module):
    """The second channel sees the first, which is drawn before. The condition is added to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.of_first = MaskedConv2d(2, 8, 3, "A"), nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        first, second = self.before(x).chunk(2, 1)
        logits = torch.stack([first, second + self.of_first(x[:, :1])], 1).movedim(2, -1)
        return logits + condition[..., None]
