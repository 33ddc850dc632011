"""Measures the layers' targets on this machine, each in one run against plain PyTorch, and says which are met.

    python benchmarks/layer_targets.py            batch 16, float32: about 5 minutes on 2 cores
    python benchmarks/layer_targets.py --quick    tiny layers: tries the script; its figures mean nothing

Contestants take turns, and their results are compared before a speed-up is shown. Leave the machine alone
meanwhile. Writes FOLDER/<processor>-<isa>-layers.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from targets import Target, in_fresh_process, options, peak_rise, percent, ratio, write
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import accelerate, ops
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.measure import interleaved
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.nn.masked_conv2d import MaskType

Work = Callable[[], Sequence[Tensor]]
TOLERANCE = 1e-3  # of a result's largest value: float32 sums in another order, through a whole network at most


@dataclass(frozen=True)
class Settings:
    batch: int
    shrink: int
    repeats: int


def faster(name: str, settings: Settings, plain: Work, fast: Work, must: float, reach: float) -> Target:
    """Checks that both give the same, then times them in turns."""
    for i, (a, b) in enumerate(zip(plain(), fast(), strict=True)):
        error, scale = float((a - b).abs().max()), float(a.abs().max())
        if not error <= TOLERANCE * scale:
            raise CheckFailed(f"{name}: result {i} differs by {error:.3g}, values up to {scale:.3g}")
    seconds = interleaved({"plain": plain, "fast": fast}, settings.repeats)
    value, values = ratio(seconds["plain"], seconds["fast"], 1.0)
    times = " → ".join(report.duration(median(seconds[k])) for k in ("plain", "fast"))
    return Target(f"{name} ({times})", must, reach, value, values, report.factor)


@dataclass(frozen=True)
class Convolution:
    """A masked convolution of a random map: as plain PyTorch, cropped by hand to its live rows, and ours."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    mask: Tensor

    @classmethod
    def random(
        cls, n: int, channels: int, kernel: int, mask_type: MaskType, side: int, layout: torch.memory_format
    ):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(n, channels, side, side, generator=generator).to(memory_format=layout)
        weight = torch.randn(channels, channels, kernel, kernel, generator=generator) / (kernel * channels**0.5)
        mask = raster_mask(kernel, kernel, mask_type).expand_as(weight).contiguous()
        return cls(x, weight, torch.randn(channels, generator=generator), mask)

    def plain(self) -> list[Tensor]:
        return [F.conv2d(self.x, self.weight * self.mask, self.bias, padding=self.mask.shape[2] // 2)]

    def cropped(self) -> list[Tensor]:
        pad = self.mask.shape[2] // 2
        live = (self.weight * self.mask)[:, :, : pad + 1]
        return [F.conv2d(self.x, live, self.bias, padding=pad)[:, :, : self.x.shape[2]]]

    def fast(self) -> list[Tensor]:
        return [ops.masked_conv2d(self.x, self.weight, self.bias, self.mask)]

    def trained(self, work: Work) -> Work:
        """Forward and backward."""
        for t in (self.x, self.weight, self.bias):
            t.requires_grad_()
        grad = torch.randn(self.plain()[0].shape, generator=torch.Generator().manual_seed(1))

        def step() -> list[Tensor]:
            y = work()[0]
            return [y.detach(), *torch.autograd.grad(y, (self.x, self.weight, self.bias), grad)]

        return step


def convolutions(s: Settings) -> Iterator[Target]:
    wide, narrow = 128 // s.shrink, 64 // s.shrink
    contiguous, last = torch.contiguous_format, torch.channels_last
    with torch.no_grad():
        for layout, text, dense, crop in (
            (contiguous, "contiguous", (1.4, 1.8), (1.05, 1.3)),
            (last, "channels-last", (1.25, 1.6), (1.05, 1.3)),
        ):
            c = Convolution.random(s.batch, wide, 3, "B", 32 // s.shrink, layout)
            name = f"masked conv {wide}→{wide} 3×3 B, {text}"
            yield faster(f"{name}, vs masked F.conv2d", s, c.plain, c.fast, *dense)
            yield faster(f"{name}, vs cropped by hand", s, c.cropped, c.fast, *crop)
        c = Convolution.random(s.batch, narrow, 7, "A", 28 // s.shrink, contiguous)
        yield faster(f"masked conv {narrow}→{narrow} 7×7 A, contiguous", s, c.plain, c.fast, 1.5, 2.0)
    c = Convolution.random(s.batch, wide, 3, "B", 32 // s.shrink, contiguous)
    name = f"masked conv {wide}→{wide} 3×3 B, forward + backward"
    yield faster(name, s, c.trained(c.plain), c.trained(c.fast), 1.4, 1.8)


def gate(s: Settings) -> Target:
    x = torch.randn(s.batch, 256 // s.shrink, 32, 32, requires_grad=True)
    grad = torch.randn(s.batch, 128 // s.shrink, 32, 32)

    def step(gate: Callable[[Tensor], Tensor]) -> Work:
        def both_ways() -> list[Tensor]:
            y = gate(x)
            return [y.detach(), *torch.autograd.grad(y, x, grad)]

        return both_ways

    def eager(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    return faster("gated activation, forward + backward", s, step(eager), step(ops.gated_activation), 2.0, 3.0)


def networks(s: Settings) -> Iterator[Target]:
    torch.manual_seed(0)
    plain = reference.PixelCNN(3, 128 // s.shrink, 15 // s.shrink)
    images = torch.randint(0, 256, (s.batch, 3, 32 // s.shrink, 32 // s.shrink), dtype=torch.uint8)
    for _ in range(2):
        plain(images)  # statistics of batch norm that are not the initial ones
    fast = copy.deepcopy(plain)
    accelerate(fast)

    def forward(model: nn.Module) -> Work:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [model.eval()(images)]

        return run

    yield faster("whole PixelCNN, eval forward", s, forward(plain), forward(fast), 1.5, 1.9)

    def step(model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> Work:
        optimizer = torch.optim.SGD(model.parameters(), 1e-4)

        def run() -> list[Tensor]:
            model.train()
            loss = loss_of(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return [loss.detach()]

        return run

    def cross_entropy(model: nn.Module) -> Tensor:
        logits = model(images)
        return F.cross_entropy(logits.flatten(0, -2), images.long().flatten())

    yield faster(
        "whole PixelCNN, training step",
        s,
        step(plain, cross_entropy),
        step(fast, lambda model: nll(model, images).mean() / math.prod(images.shape[1:])),
        1.4,
        1.7,
    )


def likelihood_memory(s: Settings) -> Iterator[Target]:
    risen = {name: in_fresh_process(likelihood_rise, s, name) for name in ("plain", "fast")}
    if None not in risen.values():
        share = risen["fast"] / risen["plain"]
        name = (
            f"categorical_nll, forward + backward: peak memory ({risen['plain']:.0f} → {risen['fast']:.0f} MB)"
        )
        yield Target(name, 0.5, 0.35, share, [share], percent, at_most=True)


def likelihood_rise(s: Settings, name: str) -> float | None:
    """MB of peak memory beyond logits and levels, for F.cross_entropy or for ours."""
    maps = torch.randn(s.batch, 3, 256, 32, 32).requires_grad_()
    logits, levels = maps.permute(0, 1, 3, 4, 2), torch.randint(0, 256, (s.batch, 3, 32, 32))
    losses = {
        "plain": lambda: F.cross_entropy(logits.flatten(0, -2), levels.flatten()),
        "fast": lambda: ops.categorical_nll(logits, levels).mean() / levels[0].numel(),
    }
    torch.ones(1, 1, requires_grad=True).sum().backward()  # starts autograd's own threads and buffers
    return peak_rise(lambda: losses[name]().backward())


def overhead(s: Settings) -> Target:
    x, weight, bias = torch.randn(1, 8, 4, 4), torch.randn(8, 8, 3, 3), torch.randn(8)
    mask, calls = raster_mask(3, 3, "B").expand_as(weight).contiguous(), 3000 // s.shrink

    def times(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                call()

        return run

    with torch.no_grad():
        seconds = interleaved(
            {
                "plain": times(lambda: F.conv2d(x, weight, bias, padding=1)),
                "fast": times(lambda: ops.masked_conv2d(x, weight, bias, mask)),
            },
            s.repeats,
        )
    more = [(b - a) / calls for a, b in zip(seconds["plain"], seconds["fast"], strict=True)]
    return Target(
        "a call on 1×8×4×4, more than F.conv2d", 15e-6, 5e-6, median(more), more, report.duration, at_most=True
    )


def main() -> int:
    parser = options(__doc__, repeats=15)
    args = parser.parse_args()
    folder = output_folder(args.out)
    torch.set_num_threads(args.threads)
    s = Settings(2, 8, 2) if args.quick else Settings(16, 1, args.repeats)
    found = report.machine()
    targets = [*convolutions(s), gate(s), *networks(s), *likelihood_memory(s), overhead(s)]
    write(folder, "layers", "Targets of the layers", found, args.quick, targets, "", {})
    return int(any(target.verdict() == "no" for target in targets))


if __name__ == "__main__":
    sys.exit(main())
