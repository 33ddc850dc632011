"""PixelRNN's sampling, and its training against loops in PyTorch and what ``torch.compile`` makes of them."""

from __future__ import annotations

import atexit
import copy
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from measuring import (
    Cases,
    Found,
    Settings,
    Work,
    building,
    check,
    faster,
    memory_share,
    peak_rise,
    speed,
)
from torch import Tensor, nn

from cases.recurrence_loops import Loop, bits_per_dimension, diagonals, layer, rows
from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import Model, PixelRNN
from pixelcnn_fast.models.pixel_rnn import Kind
from pixelcnn_fast.nn import DiagonalBiLSTM, RowLSTM

TITLE = "Targets of PixelRNN"
# How far results may differ. Where a ReLU's input is all but 0, rounding decides whether it is cut, so whole networks
# are compared in float64 as well, where that is not seen.
EXACT, OF_LAYER, WITH_CUTS = 1e-10, 1e-4, 2e-2
TINY: dict[str, Any] = dict(hidden_channels=4, n_layers=1)
SMALL: dict[str, Any] = dict(input_channels=1, hidden_channels=16, n_layers=7, levels=2)
SMALL_TINY: dict[str, Any] = {**TINY, "input_channels": 1, "levels": 2}
NAIVE_PIXELS = {1: 40, 16: 12}  # pixels that the naive sampler draws


@dataclass(frozen=True)
class Family:
    """Bounds are must and reach; sampling: images at once, and the bounds of the factor against naive."""

    kind: Kind
    layer: type[nn.Module]
    of_layer: tuple[float, float]
    of_step: tuple[float, float]
    sampling: tuple[tuple[int, float, float], ...]


FAMILIES = {
    "Row LSTM": Family("row_lstm", RowLSTM, (2.0, 2.8), (1.8, 2.7), ((1, 900, 1800), (16, 1200, 1700))),
    "Diagonal BiLSTM": Family(
        "diagonal_bilstm", DiagonalBiLSTM, (2.2, 3.0), (2.2, 3.5), ((1, 900, 2000), (16, 2500, 3800))
    ),
}


@dataclass(frozen=True)
class Size:
    """Of what is trained."""

    batch: int = 16
    side: int = 32
    hidden: int = 128
    n_layers: int = 12

    def model(self, kind: Kind) -> PixelRNN:
        torch.manual_seed(0)
        return PixelRNN(kind, hidden_channels=self.hidden, n_layers=self.n_layers)

    def images(self) -> Tensor:
        size = (self.batch, 3, self.side, self.side)
        return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def cases(how: Settings) -> Cases:
    size = Size(2, 6, 8, 2) if how.quick else Size()
    trained: Cases = {f"training: {name}": partial(training, name, size, how.repeats) for name in FAMILIES}
    sampled: Cases = {f"sampling: {name}": partial(sampling, name, how) for name in FAMILIES}
    return {**trained, **sampled, "sampling: small Diagonal BiLSTM": partial(sampling_small, how)}


@cache
def loops() -> dict[str, tuple[Loop, Loop]]:
    """A contestant's loops over rows and over diagonals; compile times are those of a first run."""
    folder = tempfile.mkdtemp(prefix="pixelcnn_fast_inductor_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    compiled = torch.compile(rows), torch.compile(diagonals)
    return {"loop": (rows, diagonals), "compiled loop": compiled}


def training(name: str, size: Size, repeats: int) -> Found:
    family = FAMILIES[name]
    of_layer = f"{name} layer {2 * size.hidden} → {size.hidden}, {size.side}×{size.side}, forward + backward"
    yield faster(of_layer, layers(family, size), *family.of_layer, repeats, OF_LAYER)
    model, images = size.model(family.kind), size.images()
    of_step = f"PixelRNN of {size.n_layers} {name}s, {size.side}×{size.side}, a training step"
    exact = copy.deepcopy(model).double(), images[:2]
    expected, found = (step(loss, *exact)() for loss in (bits_per_dimension, our_bits_per_dimension))
    check(of_step, expected, found, EXACT)
    steps = {which: step(partial(bits_per_dimension, by=by), model, images) for which, by in loops().items()}
    steps["ours"] = step(our_bits_per_dimension, model, images)
    yield faster(of_step, steps, *family.of_step, repeats, WITH_CUTS)
    yield from memory_share("the same step", memory_of_a_step, (size, family.kind), 0.6, 0.4)


def layers(family: Family, size: Size) -> dict[str, Work]:
    torch.manual_seed(0)
    module = family.layer(2 * size.hidden, size.hidden)
    maps = torch.randn(size.batch, 2 * size.hidden, size.side, size.side)
    grad = torch.randn(size.batch, size.hidden, size.side, size.side)

    def work(forward: Callable[[Tensor], Tensor], layout: torch.memory_format) -> Work:
        x = maps.to(memory_format=layout).requires_grad_()
        of_h = grad.to(memory_format=layout)
        leaves = [x, *module.parameters()]

        def run() -> list[Tensor]:
            h = forward(x)
            return [h, *torch.autograd.grad(h, leaves, of_h)]

        return run

    found = {
        which: work(partial(layer, module, by=by), torch.contiguous_format) for which, by in loops().items()
    }
    return {**found, "ours": work(module, torch.channels_last)}  # what PixelRNN hands to its layers


def step(loss: Callable[..., Tensor], model: PixelRNN, images: Tensor) -> Work:
    def run() -> list[Tensor]:
        found = loss(model, images)
        return [found, *torch.autograd.grad(found, list(model.parameters()))]

    return run


def our_bits_per_dimension(model: PixelRNN, images: Tensor) -> Tensor:
    return nll(model, images).mean() / (images[0].numel() * math.log(2))


def memory_of_a_step(size: Size, kind: Kind, which: str) -> float | None:
    """MB by which memory rises during a training step, beyond the model, its gradients and the images."""
    model, images = size.model(kind), size.images()
    loss = {"plain": bits_per_dimension, "ours": our_bits_per_dimension}[which]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss(model, images[:1, :, :4, :4]).backward()  # starts threads, loads libraries
    return peak_rise(lambda: loss(model, images).backward())


def sampling(name: str, how: Settings) -> Found:
    family, side = FAMILIES[name], 6 if how.quick else 32
    model = random_model(family=PixelRNN, kind=family.kind, **(TINY if how.quick else {}))
    yield from sampled(name, model, side, family.sampling, (4.0, 1.5), how.repeats)


def sampling_small(how: Settings) -> Found:
    config, side = (SMALL_TINY, 5) if how.quick else (SMALL, 28)
    model = random_model(family=PixelRNN, kind="diagonal_bilstm", **config)
    yield from sampled("Diagonal BiLSTM", model, side, [(1, 2000.0, 4000.0)], (1.0, 0.4), how.repeats)


def sampled(
    name: str,
    model: Model,
    side: int,
    wanted: Sequence[tuple[int, float, float]],
    to_build: tuple[float, float],
    repeats: int,
) -> Found:
    subject = f"{name}, {model.input_channels}x{side}x{side}: "
    for batch, must, reach in wanted:
        against = [(NAIVE, "cpu", must, reach)]
        yield from speed(workload(model, batch, side, side), against, repeats, NAIVE_PIXELS[batch], subject)
    yield building(workload(model, 1, side, side), *to_build, repeats, subject)
