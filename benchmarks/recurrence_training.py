"""The targets of PixelRNN's training: layers, whole steps and their memory, against loops in PyTorch."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from recurrence_loops import Loop, bits_per_dimension, diagonals, layer, rows
from targets import Target, in_fresh_process, peak_rise, percent, ratio
from torch import Tensor, nn

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.measure import interleaved
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import PixelRNN
from pixelcnn_fast.models.pixel_rnn import Kind
from pixelcnn_fast.nn import DiagonalBiLSTM, RowLSTM

Work = Callable[[], Sequence[Tensor]]
Loss = Callable[[PixelRNN, Tensor], Tensor]
# How far results may differ, of their norm: sums of float32 in another order. Where a ReLU's input is all but 0,
# rounding decides whether it is cut, so whole networks are compared in float64 as well, where that is not seen.
TOLERANCE, EXACT, WITH_CUTS = 1e-5, 1e-10, 2e-2
NAMES: dict[Kind, str] = {"row_lstm": "Row LSTM", "diagonal_bilstm": "Diagonal BiLSTM"}
LAYERS: dict[Kind, type[nn.Module]] = {"row_lstm": RowLSTM, "diagonal_bilstm": DiagonalBiLSTM}
OF_A_LAYER = {"row_lstm": (2.0, 2.8), "diagonal_bilstm": (2.2, 3.0)}  # must and reach for
OF_A_STEP = {"row_lstm": (1.8, 2.7), "diagonal_bilstm": (2.2, 3.5)}


@dataclass(frozen=True)
class Training:
    """What is measured. compiled: whether ``torch.compile`` of the loops takes part, which takes minutes to compile."""

    batch: int = 16
    side: int = 32
    hidden: int = 128
    n_layers: int = 12
    repeats: int = 5
    compiled: bool = True

    def model(self, kind: Kind) -> PixelRNN:
        torch.manual_seed(0)
        return PixelRNN(kind, hidden_channels=self.hidden, n_layers=self.n_layers)

    def images(self) -> Tensor:
        size = (self.batch, 3, self.side, self.side)
        return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def targets(s: Training) -> Iterator[Target]:
    for kind in NAMES:
        loops: list[tuple[str, tuple[Loop, Loop]]] = [("loop", (rows, diagonals))]
        if s.compiled:
            loops.append(("compiled loop", (torch.compile(rows), torch.compile(diagonals))))
        yield of_a_layer(s, kind, loops)
        yield of_a_step(s, kind, loops)
        yield from memory(s, kind)


def of_a_layer(s: Training, kind: Kind, loops: list[tuple[str, tuple[Loop, Loop]]]) -> Target:
    torch.manual_seed(0)
    module = LAYERS[kind](2 * s.hidden, s.hidden)
    maps = torch.randn(s.batch, 2 * s.hidden, s.side, s.side)
    grad = torch.randn(s.batch, s.hidden, s.side, s.side)

    def work(forward: Callable[[Tensor], Tensor], layout: torch.memory_format) -> Work:
        x = maps.to(memory_format=layout).requires_grad_()
        of_h = grad.to(memory_format=layout)
        leaves = [x, *module.parameters()]

        def run() -> list[Tensor]:
            h = forward(x)
            return [h, *torch.autograd.grad(h, leaves, of_h)]

        return run

    def by(pair: tuple[Loop, Loop]) -> Work:
        return work(lambda x: layer(module, x, *pair), torch.contiguous_format)

    contestants = {which: by(pair) for which, pair in loops}
    contestants["ours"] = work(module, torch.channels_last)  # what PixelRNN hands to its layers
    name = f"{NAMES[kind]} layer {2 * s.hidden} → {s.hidden}, {s.side}×{s.side}, forward + backward"
    return faster(name, s, contestants, *OF_A_LAYER[kind], TOLERANCE)


def of_a_step(s: Training, kind: Kind, loops: list[tuple[str, tuple[Loop, Loop]]]) -> Target:
    model, images = s.model(kind), s.images()

    def work(loss: Loss, model: PixelRNN = model, images: Tensor = images) -> Work:
        def run() -> list[Tensor]:
            found = loss(model, images)
            return [found, *torch.autograd.grad(found, list(model.parameters()))]

        return run

    name = f"PixelRNN of {s.n_layers} {NAMES[kind]}s, {s.side}×{s.side}, a training step"
    exact = (copy.deepcopy(model).double(), images[:2])
    agree(name, [work(loss, *exact)() for loss in (bits_per_dimension, our_bits_per_dimension)], EXACT)

    def by(pair: tuple[Loop, Loop]) -> Work:
        return work(lambda model, images: bits_per_dimension(model, images, *pair))

    contestants = {which: by(pair) for which, pair in loops}
    contestants["ours"] = work(our_bits_per_dimension)
    return faster(name, s, contestants, *OF_A_STEP[kind], WITH_CUTS)


def our_bits_per_dimension(model: PixelRNN, images: Tensor) -> Tensor:
    return nll(model, images).mean() / (images[0].numel() * math.log(2))


def agree(name: str, results: Sequence[Sequence[Tensor]], tolerance: float) -> None:
    """Raises CheckFailed if the results of some contestant are not those of the first."""
    for found in results[1:]:
        for i, (a, b) in enumerate(zip(results[0], found, strict=True)):
            error = float((a - b).detach().norm() / a.detach().norm())
            if not error <= tolerance:
                raise CheckFailed(f"{name}: result {i} differs by {error:.3g} of its norm, allowed {tolerance}")


def faster(
    name: str, s: Training, contestants: dict[str, Work], must: float, reach: float, tolerance: float
) -> Target:
    """Checks that all give the same, then times them in turns; the factor is against the fastest of the others."""
    results: list[Sequence[Tensor]] = []
    first: dict[str, float] = {}
    for which, work in contestants.items():
        start = time.perf_counter()
        results.append(work())
        first[which] = time.perf_counter() - start
    agree(name, results, tolerance)
    del results
    seconds = interleaved(contestants, s.repeats)
    compiling = ""
    if (compiled := "compiled loop") in contestants:
        compiling = f"; compiling took {max(0.0, first[compiled] - median(seconds[compiled])):.0f} s"
    best = min((which for which in contestants if which != "ours"), key=lambda which: median(seconds[which]))
    value, values = ratio(seconds[best], seconds["ours"], 1.0)
    times = ", ".join(f"{which} {report.duration(median(of))}" for which, of in seconds.items())
    return Target(f"{name} ({times}{compiling})", must, reach, value, values, report.factor)


def memory(s: Training, kind: Kind) -> Iterator[Target]:
    risen = {which: in_fresh_process(memory_of_a_step, s, kind, which) for which in ("loop", "ours")}
    if None not in risen.values():
        share = risen["ours"] / risen["loop"]
        name = f"the same step: peak memory ({risen['loop']:.0f} → {risen['ours']:.0f} MB)"
        yield Target(name, 0.6, 0.4, share, [share], percent, at_most=True)


def memory_of_a_step(s: Training, kind: Kind, which: str) -> float | None:
    """MB by which memory rises during a training step, beyond the model, its gradients and the images."""
    model, images = s.model(kind), s.images()
    loss = {"loop": bits_per_dimension, "ours": our_bits_per_dimension}[which]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss(model, images[:1, :, :4, :4]).backward()  # starts threads, loads libraries
    return peak_rise(lambda: loss(model, images).backward())


if __name__ == "__main__":
    sys.exit("run benchmarks/recurrence_targets.py --only training")
