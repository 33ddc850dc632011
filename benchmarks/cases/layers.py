"""The layers against plain PyTorch, batch 16, float32."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measuring import Cases, Found, Settings, Target, Work, faster, interleaved, memory_share, peak_rise
from torch import Tensor, nn
from torch.nn import functional as F

from cases import ops as op_cases
from cases.ops import CROPPED, OURS, PLAIN, Case, On
from pixelcnn_fast import accelerate, ops
from pixelcnn_fast.bench import report
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import raster_mask

TITLE = "Targets of the layers"


def cases(how: Settings) -> Cases:
    batch, shrink, repeats = (2, 8, 2) if how.quick else (16, 1, how.repeats)
    return {
        "convolutions": partial(convolutions, batch, shrink, repeats),
        "gate": partial(gate, batch, shrink, repeats),
        "networks": partial(networks, batch, shrink, repeats),
        "memory": partial(likelihood_memory, batch),
        "mixture": partial(mixture, batch, shrink, repeats),
        "a call": partial(overhead, 3000 // shrink, repeats),
    }


def against(case: Case, rival: str, ways: Callable[[Case, str], Work] = Case.forward) -> dict[str, Work]:
    return {rival: ways(case, rival), "ours": ways(case, OURS)}


def convolutions(batch: int, shrink: int, repeats: int) -> Found:
    wide, narrow, side = 128 // shrink, 64 // shrink, 32 // shrink
    name = f"masked conv {wide}→{wide} 3×3 B"
    contiguous, last = On(batch), On(batch, layout=torch.channels_last)
    for on, text, dense, crop in (
        (contiguous, "contiguous", (1.4, 1.8), (1.05, 1.3)),
        (last, "channels-last", (1.25, 1.6), (1.05, 1.3)),
    ):
        case = op_cases.convolution(on, wide, 3, "B", side)
        yield faster(f"{name}, {text}, vs masked F.conv2d", against(case, PLAIN), *dense, repeats)
        yield faster(f"{name}, {text}, vs cropped by hand", against(case, CROPPED), *crop, repeats)
    case = op_cases.convolution(contiguous, narrow, 7, "A", 28 // shrink)
    text = f"masked conv {narrow}→{narrow} 7×7 A, contiguous"
    yield faster(text, against(case, PLAIN), 1.5, 2.0, repeats)
    case = op_cases.convolution(contiguous, wide, 3, "B", side)
    yield faster(f"{name}, forward + backward", against(case, PLAIN, Case.both_ways), 1.4, 1.8, repeats)


def gate(batch: int, shrink: int, repeats: int) -> Found:
    case = op_cases.gate(On(batch), 256 // shrink)
    name = "gated activation, forward + backward"
    yield faster(name, against(case, PLAIN, Case.both_ways), 2.0, 3.0, repeats)


def networks(batch: int, shrink: int, repeats: int) -> Found:
    torch.manual_seed(0)
    plain = reference.PixelCNN(3, 128 // shrink, 15 // shrink)
    images = torch.randint(0, 256, (batch, 3, 32 // shrink, 32 // shrink), dtype=torch.uint8)
    for _ in range(2):
        plain(images)  # statistics of batch norm that are not the initial ones
    fast = copy.deepcopy(plain)
    accelerate(fast)

    def forward(model: nn.Module) -> Work:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [model.eval()(images)]

        return run

    works = {"plain": forward(plain), "ours": forward(fast)}
    yield faster("whole PixelCNN, eval forward", works, 1.5, 1.9, repeats)

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
        return F.cross_entropy(model(images).flatten(0, -2), images.long().flatten())

    def likelihood(model: nn.Module) -> Tensor:
        return nll(model, images).mean() / math.prod(images.shape[1:])

    works = {"plain": step(plain, cross_entropy), "ours": step(fast, likelihood)}
    yield faster("whole PixelCNN, training step", works, 1.4, 1.7, repeats)


def likelihood_memory(batch: int) -> Found:
    return memory_share("categorical_nll, forward + backward", likelihood_rise, (batch,), 0.5, 0.35)


def likelihood_rise(batch: int, which: str) -> float | None:
    """MB of peak memory beyond logits and levels, for F.cross_entropy or for ours."""
    maps = torch.randn(batch, 3, 256, 32, 32).requires_grad_()
    logits, levels = maps.permute(0, 1, 3, 4, 2), torch.randint(0, 256, (batch, 3, 32, 32))
    losses = {
        "plain": lambda: F.cross_entropy(logits.flatten(0, -2), levels.flatten()),
        "ours": lambda: ops.categorical_nll(logits, levels).mean() / levels[0].numel(),
    }
    torch.ones(1, 1, requires_grad=True).sum().backward()  # starts autograd's own threads and buffers
    return peak_rise(lambda: losses[which]().backward())


def mixture(batch: int, shrink: int, repeats: int) -> Found:
    name = "logistic_mixture_nll, forward + backward"
    for n in (batch, max(1, batch // 4)):
        case = op_cases.mixture(On(n), side=32 // shrink)
        yield faster(f"{name}, batch {n}", against(case, PLAIN, Case.both_ways), 3.0, 5.0, repeats)
        yield from memory_share(f"{name}, batch {n}", mixture_rise, (n,), 0.3, 0.15)


def mixture_rise(batch: int, which: str) -> float | None:
    """MB of peak memory beyond parameters and values, for the published formula or for ours."""
    name = PLAIN if which == "plain" else OURS
    op_cases.mixture(On(1), side=1).both_ways(name)()  # what PyTorch loads and starts at its first call
    return peak_rise(op_cases.mixture(On(batch)).both_ways(name))


def overhead(calls: int, repeats: int) -> Found:
    x, weight, bias = torch.randn(1, 8, 4, 4), torch.randn(8, 8, 3, 3), torch.randn(8)
    mask = raster_mask(3, 3, "B").expand_as(weight).contiguous()

    def times(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                call()

        return run

    plain = times(lambda: F.conv2d(x, weight, bias, padding=1))
    fast = times(lambda: ops.masked_conv2d(x, weight, bias, mask))
    with torch.no_grad():
        seconds = interleaved({"plain": plain, "fast": fast}, repeats)
    more = [(b - a) / calls for a, b in zip(seconds["plain"], seconds["fast"], strict=True)]
    name = "a call on 1×8×4×4, more than F.conv2d"
    yield Target(name, 15e-6, 5e-6, median(more), more, report.duration, at_most=True)
