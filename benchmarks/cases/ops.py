"""The ops beside what plain PyTorch has: what test_ops_bench.py, the tables of targets and gpu/layers.py measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.nn.masked_conv2d import MaskType

PLAIN, CROPPED, COMPILED, OURS = "plain", "cropped", "compiled by torch", "pixelcnn_fast"
Work = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class On:
    """Where, and on how much: batch images of random numbers, the same ones each time."""

    batch: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    layout: torch.memory_format = torch.contiguous_format

    def random(self, *size: int, seed: int = 0) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(size, generator=generator, device=self.device, dtype=self.dtype)


class Case(NamedTuple):
    """inputs: of each contestant's function, which gives the op's result."""

    inputs: list[Tensor]
    contestants: dict[str, Callable[..., Tensor]]

    def compiled(self) -> Case:
        """With what ``torch.compile`` makes of plain PyTorch, before ours."""
        before = {name: f for name, f in self.contestants.items() if name != OURS}
        more = {COMPILED: torch.compile(self.contestants[PLAIN]), OURS: self.contestants[OURS]}
        return Case(self.inputs, {**before, **more})

    def forward(self, name: str) -> Work:
        function = self.contestants[name]

        def run() -> list[Tensor]:
            with torch.no_grad():
                return [function(*self.inputs)]

        return run

    def both_ways(self, name: str) -> Work:
        """The result, and the gradient of each input for one of random numbers."""
        function = self.contestants[name]
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        with torch.no_grad():
            like = self.contestants[PLAIN](*inputs)
        grad = torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like)

        def run() -> list[Tensor]:
            y = function(*inputs)
            return [y.detach(), *torch.autograd.grad(y, inputs, grad)]

        return run


def convolution(on: On, channels: int, size: int, kind: MaskType, side: int) -> Case:
    """A masked convolution of a random map: as plain PyTorch, cropped by hand to its live rows, and ours."""
    x = on.random(on.batch, channels, side, side).contiguous(memory_format=on.layout)
    weight = on.random(channels, channels, size, size, seed=1) / (size * channels**0.5)
    mask = raster_mask(size, size, kind).to(weight).expand_as(weight).contiguous()
    bias, half = on.random(channels, seed=2), size // 2

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * mask, bias, padding=half)

    def cropped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, (weight * mask)[:, :, : half + 1], bias, padding=half)[:, :, :side]

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv2d(x, weight, bias, mask)

    return Case([x, weight, bias], {PLAIN: plain, CROPPED: cropped, OURS: fast})


def block(on: On, channels: int, size: int, kind: MaskType, side: int) -> Case:
    """A masked convolution with a shift, a residual and an activation, each of them a call unless they are fused."""
    inputs, contestants = convolution(on, channels, size, kind, side)
    mask = raster_mask(size, size, kind).to(inputs[1]).expand_as(inputs[1]).contiguous()

    def finished(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight, bias: F.relu(function(x, weight, bias) + x)

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.masked_conv_block(x, weight, None, mask, shift=bias, residual=x, activation="relu")

    return Case(inputs, {**{name: finished(f) for name, f in contestants.items()}, OURS: fast})


def gate(on: On, channels: int = 256, side: int = 32) -> Case:
    x = on.random(on.batch, channels, side, side)

    def plain(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    return Case([x], {PLAIN: plain, OURS: lambda x: ops.gated_activation(x)})


def both_elus(on: On, channels: int = 128, side: int = 32) -> Case:
    def plain(x: Tensor) -> Tensor:
        return F.elu(torch.cat([x, -x], 1))

    return Case(
        [on.random(on.batch, channels, side, side)], {PLAIN: plain, OURS: lambda x: ops.concat_elu(x)}
    )


def likelihood(on: On, channels: int = 3, side: int = 32) -> Case:
    """logits: [N, 256, C, H, W]. On a GPU, ours gets those of a sub-pixel side by side, as its layers write them."""
    logits = on.random(on.batch, 256, channels, side, side)
    levels = torch.randint(0, 256, (on.batch, channels, side, side), device=on.device)
    last = logits.movedim(1, -1)
    if on.device == "cuda":
        last = last.contiguous()

    def plain(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, levels, reduction="none").flatten(1).sum(1)

    def fast(logits: Tensor) -> Tensor:
        return ops.categorical_nll(last if on.device == "cuda" else logits.movedim(1, -1), levels)

    return Case([logits], {PLAIN: plain, OURS: fast})
