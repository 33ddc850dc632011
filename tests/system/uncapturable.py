"""Causal networks that have no program: each takes uint8 images and returns logits [N, C, H, W, LEVELS]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 7
HIDDEN = 6


class Attention(nn.Module):
    """Causal attention over pixels or, if ``ordered``, over sub-pixels, each of which then sees those before it."""

    def __init__(self, shape: tuple[int, int, int], ordered: bool, n_classes: int | None = None) -> None:
        super().__init__()
        self.levels, self.n_classes, self.ordered = LEVELS, n_classes, ordered
        c, height, width = shape
        self.given, self.tokens = (1, height * width * c) if ordered else (c, height * width)
        self.embed = nn.Linear(self.given, HIDDEN)
        self.position = nn.Parameter(torch.randn(self.tokens, HIDDEN))
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.label = None if n_classes is None else nn.Embedding(n_classes, HIDDEN)
        self.out = nn.Linear(HIDDEN, self.given * LEVELS)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        n, c, height, width = images.shape
        x = images.to(self.position.dtype).permute(0, 2, 3, 1).reshape(n, self.tokens, self.given)
        x = F.pad(self.embed(x / LEVELS)[:, :-1], (0, 0, 1, 0)) + self.position
        if self.label is not None:
            x = x + self.label(labels)[:, None]
        query, key, value = self.qkv(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return 3 * self.out(torch.tanh(x)).view(n, height, width, c, LEVELS).permute(0, 3, 1, 2, 4)


class Pooling(nn.Module):
    """Max-pooling over the pixels to the left and over rows above."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = LEVELS
        self.embed, self.out = nn.Conv2d(channels, HIDDEN, 1), nn.Conv2d(2 * HIDDEN, channels * LEVELS, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.to(self.out.weight.dtype))
        left = F.max_pool2d(F.pad(x, (3, 0))[..., :-1], (1, 3), stride=1)
        above = F.max_pool2d(F.pad(x, (1, 1, 2, 0))[:, :, :-1], (2, 3), stride=1)
        return self.out(torch.cat([left, above], 1)).unflatten(1, (-1, LEVELS)).permute(0, 1, 3, 4, 2)


class RunningNorm(nn.Module):
    """Divides by the norm of all earlier pixels, and loops over them in Python."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = LEVELS
        self.embed, self.cell = nn.Linear(channels, HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, channels * LEVELS)

    def forward(self, images: Tensor) -> Tensor:
        n, c, height, width = images.shape
        state = torch.ones(n, HIDDEN, dtype=self.out.weight.dtype, device=images.device)
        squares, outputs = torch.ones_like(state[:, :1]), []
        for pixel in images.to(state.dtype).flatten(2).unbind(2):
            outputs.append(3 * self.out(state / squares.sqrt()))
            state = torch.tanh(self.cell(torch.cat([self.embed(pixel), state], 1)))
            squares = squares + state.square().sum(1, keepdim=True)
        return torch.stack(outputs, 1).view(n, height, width, c, LEVELS).permute(0, 3, 1, 2, 4)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "attention": (lambda: Attention((1, 4, 5), ordered=True), (1, 4, 5)),
    "attention over pixels": (lambda: Attention((3, 3, 4), ordered=False), (3, 3, 4)),
    "attention over sub-pixels": (lambda: Attention((3, 3, 4), ordered=True), (3, 3, 4)),
    "pooling": (lambda: Pooling(2), (2, 5, 4)),
    "running norm": (lambda: RunningNorm(1), (1, 3, 4)),
}
ORDERED = {"attention over sub-pixels"}


def network(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model with random weights, and the (C, H, W) of its images."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return make().double(), shape
