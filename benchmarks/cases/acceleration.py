"""What ``accelerate`` gains: each network against plain PyTorch and ``torch.compile``, what a call takes, and bfloat16.

Contestants take turns: plain, torch.compile, and accelerate in its modes 'eager' and 'inductor', of which the faster
one counts. Results and gradients are compared before a speed-up is shown, in float64 (of 'eager') and in float32.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from measuring import (
    TOLERANCE,
    Cases,
    Found,
    Settings,
    Target,
    Work,
    busy_cores,
    check,
    compare_checked,
    factor,
    faster,
    in_fresh_process,
    interleaved,
    paired_ratios,
    ratio,
)
from public_networks import Cropped, OneHot, Stack, Tutorial, masked_in_place, ordered_colours
from torch import Tensor, nn
from torch.nn import functional as F

from cases import ops as op_cases
from cases.ops import OURS, PLAIN, On
from pixelcnn_fast import accelerate
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.workload import workload
from pixelcnn_fast.models import PixelCNN, reference
from pixelcnn_fast.rewriting.backend import Mode

TITLE = "Targets of acceleration"
# Of a result's largest value. In float32, an activation near zero may lie on its other side, which a gradient shows.
EXACT, WITH_CUTS = 1e-10, 5e-2
MODES: dict[str, Mode] = {"accelerated": "eager", "accelerated with inductor": "inductor"}
CONTESTANTS = ["plain", "torch.compile", *MODES]
LIVE = ", live"
Bounds = tuple[float, float] | None  # must, reach


@dataclass(frozen=True)
class Network:
    """training, inference: bounds against plain PyTorch and against ``torch.compile``."""

    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    training: tuple[Bounds, Bounds] = ((0.97, 1.2), None)
    inference: tuple[Bounds, Bounds] = ((0.97, 1.2), None)
    live: Bounds = None  # of training with live gradients
    repeats: int = 9


def networks(quick: bool) -> dict[str, Network]:
    hidden, n_residual, n, side, large = (16, 1, 2, 8, 8) if quick else (128, 15, 16, 28, 32)
    default = partial(reference.PixelCNN, 3, hidden, n_residual)
    small = partial(reference.PixelCNN, 1, 8 if quick else 32, 4)
    tutorial = partial(Tutorial, 8, (1, 2)) if quick else Tutorial
    gray, colour = (n, 1, side, side), (n, 3, large, large)
    often = (1.5, 1.75), (1.45, 1.75)
    return {
        "the tutorial's Gated PixelCNN": Network(
            tutorial, gray, ((1.4, 1.7), (1.2, 1.5)), ((1.35, 1.5), (1.1, 1.5))
        ),
        "default PixelCNN": Network(default, colour, ((1.55, 1.75), (1.4, 1.75)), often, repeats=5),
        "default PixelCNN, masked in place": Network(
            lambda: masked_in_place(default()), colour, ((1.2, 1.4), None), often, (1.5, 1.75), repeats=5
        ),
        "small PixelCNN": Network(
            small, (4 * n, 1, side, side), ((1.3, 1.5), (1.15, 1.5)), ((1.5, 1.8), (1.2, 1.8))
        ),
        "cropped convolutions": Network(Cropped, gray),
        "weight norm": Network(lambda: Stack(style="weight norm", norm=False), gray),
        "one-hot input": Network(OneHot, gray),
        "ordered colours": Network(ordered_colours, colour),
        "torch.where masks": Network(lambda: Stack(style="where"), gray),
    }


def cases(how: Settings) -> Cases:
    chosen = networks(how.quick)
    found: Cases = {name: partial(rows, name, network, how.device) for name, network in chosen.items()}
    if how.device == "cpu":
        found["first calls"] = first_calls
        found["calls of a tiny network"] = partial(tiny, how.repeats)
        found["calls beside busy processes"] = partial(beside_busy_processes, how.repeats)
        found["bf16"] = partial(bf16, how.quick, how.repeats)
    return found


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    if logits.shape[-1] == 256 and logits.dim() == 5 and logits.shape[1] == images.shape[1]:
        return F.cross_entropy(logits.reshape(-1, 256), images.long().flatten())
    return F.cross_entropy(logits, images.long() % logits.shape[1])


Function = Callable[[nn.Module, Tensor], Tensor]


def compiled_by(name: str, function: Function) -> Function:
    """The function, and what it calls, as a contestant runs it."""
    if name == "plain":
        return function
    if name == "torch.compile":
        return torch.compile(function)
    return accelerate(function, MODES[name.removesuffix(LIVE)], name.endswith(LIVE))


def rows(name: str, network: Network, device: str) -> Found:
    torch.manual_seed(0)
    model = network.build().to(device)
    images = torch.randint(0, 256, network.shape).float().to(device)
    for _ in range(2):
        model(images)  # statistics of batch norm that are not the initial ones
    live = [f"{mode}{LIVE}" for mode in MODES] if network.live is not None else []
    works = checked(name, trained, CONTESTANTS + live, model, images)
    seconds = interleaved(works, network.repeats)
    yield from judged(f"{name}: training step", seconds, "", network.training)
    if network.live is not None:
        yield from judged(f"{name}: training step, live gradients", seconds, LIVE, (network.live, None))
    works = checked(name, inferred, CONTESTANTS, model, images)
    seconds = interleaved(works, network.repeats)
    yield from judged(f"{name}: inference", seconds, "", network.inference)


def checked(
    subject: str, work_of: Callable[..., Work], names: Sequence[str], model: nn.Module, images: Tensor
) -> dict[str, Work]:
    """Those that work; raises CheckFailed if one gives other results than the first."""
    torch._dynamo.reset()
    exact = [name for name in names if name.removesuffix(LIVE) in ("plain", "accelerated")]
    doubled = copy.deepcopy(model).double(), images[:2].double()
    compared(f"{subject}, in float64", work_of, exact, *doubled, EXACT)
    return compared(subject, work_of, names, model, images, WITH_CUTS)


def compared(
    subject: str,
    work_of: Callable[..., Work],
    names: Sequence[str],
    model: nn.Module,
    images: Tensor,
    tolerance: float,
) -> dict[str, Work]:
    kept: dict[str, Work] = {}
    expected: Sequence[Tensor] = ()
    for name in names:
        own = copy.deepcopy(model)
        work = work_of(name, own, images)
        try:
            found = work()
        except Exception as error:  # as torch.compile can't train what is masked in place
            print(f"{subject}: {name} fails: {type(error).__name__}: {str(error)[-120:]}")
            continue
        expected = expected or found
        right = expected
        if name.endswith(LIVE):
            right = [x * live for x, live in zip(expected, live_taps(own), strict=True)]
        check(f"{subject}, {name}", right, found, tolerance)
        kept[name] = work
    return kept


def live_taps(model: nn.Module) -> list[Tensor]:
    """Of a model whose weights are masked in place, after a step with gradients of live taps: the loss, and for each
    parameter with a gradient where they may be other than zero."""
    return [torch.ones(()), *(p != 0 if p.dim() == 4 else torch.ones_like(p) for p in with_gradients(model))]


def with_gradients(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.grad is not None]


def judged(
    name: str, seconds: dict[str, list[float]], suffix: str, bounds: tuple[Bounds, Bounds]
) -> Iterator[Target]:
    """What the faster of accelerate's modes gains; none where either it or its rival has failed."""
    ours = [f"{k}{suffix}" for k in MODES]
    best = min((k for k in ours if k in seconds), key=lambda k: median(seconds[k]), default=None)
    shown = {k: report.duration(median(v)) for k, v in seconds.items()}
    print(f"{name}: {', '.join(f'{k} {text}' for k, text in shown.items())}", flush=True)
    for rival, bound in zip(("plain", "torch.compile"), bounds, strict=True):
        if bound is not None and rival in seconds and best is not None:
            value, values = ratio(seconds[rival], seconds[best])
            theirs, eager, inductor = (shown.get(k, "fails") for k in (rival, *ours))
            times = f"{theirs} → {eager} eager, {inductor} inductor"
            yield Target(f"{name}, vs {rival} ({times})", *bound, value, values, factor)


def trained(name: str, model: nn.Module, images: Tensor) -> Work:
    """A training step; the loss is within what is compiled."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)
    loss_by = compiled_by(name, loss_of)

    def run() -> list[Tensor]:
        model.train()
        loss = loss_by(model, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finish(images)
        return [loss.detach(), *(p.grad for p in with_gradients(model) if p.grad is not None)]

    return run


def inferred(name: str, model: nn.Module, images: Tensor) -> Work:
    forward = compiled_by(name, lambda model, images: model(images))

    def run() -> list[Tensor]:
        model.eval()
        with torch.no_grad():
            found = [forward(model, images)]
        finish(images)
        return found

    return run


def finish(x: Tensor) -> None:
    """Waits for what was started on a GPU."""
    if x.is_cuda:
        torch.cuda.synchronize()


# -- what a call takes


def first_calls() -> Found:
    """Seconds of a model's first call beyond those of later ones, each in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        for text, mode, must, reach in (
            ("eager", "eager", 3.0, 1.5),
            ("inductor, cold", "inductor", 40.0, 20.0),
            ("inductor, cached", "inductor", 10.0, 5.0),
        ):
            seconds = in_fresh_process(first_call, mode, cache)
            name = f"first call of the default model, {text}"
            yield Target(name, must, reach, seconds, [seconds], report.duration, at_most=True)


def first_call(mode: Mode, cache: str) -> float:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(2)
    model = reference.PixelCNN(3, 128, 15).eval()
    images = torch.randint(
        0, 256, (1, 3, 32, 32), dtype=torch.uint8
    )  # one graph: nothing asks for its values
    seconds = []
    with torch.no_grad():
        expected = model(images)
        accelerate(model, mode)
        for _ in range(4):
            start = time.perf_counter()
            found = model(images)
            seconds.append(time.perf_counter() - start)
    check(f"the default model, {mode}", [expected], [found], WITH_CUTS)
    return seconds[0] - median(seconds[1:])


def tiny(repeats: int) -> Found:
    model, images = reference.PixelCNN(1, 4, 1, None, 3), torch.randint(0, 256, (1, 1, 4, 4)).float()
    works = checked("a tiny network", inferred, CONTESTANTS, model, images)

    def many_times(work: Work) -> Callable[[], None]:
        def run() -> None:
            for _ in range(100):
                work()

        return run

    seconds = interleaved({name: many_times(work) for name, work in works.items()}, 5 * repeats)
    yield from judged("a tiny network, 100 calls", seconds, "", (None, (1.0, 1.0)))


def beside_busy_processes(repeats: int) -> Found:
    """Two ops, forward and backward, while other processes keep the cores busy."""
    with busy_cores():
        for name, case in {
            "gated_activation": op_cases.gate(On(16), 128, 28),
            "categorical_nll": op_cases.likelihood(On(16), 1, 28),
        }.items():
            works = {"plain": case.both_ways(PLAIN), "ours": case.both_ways(OURS)}
            yield faster(f"{name} beside busy processes", works, 1.0, 1.0, 15 * repeats)


# -- bfloat16, where the processor multiplies it


def bf16(quick: bool, repeats: int) -> Found:
    """The sampler, whose images ``compare_checked`` judges, and masked_conv2d."""
    torch.manual_seed(0)
    model = PixelCNN(3, 16, 1) if quick else PixelCNN()
    side = 8 if quick else 32
    for n in (1, 16):
        slow, fast = compare_checked(workload(model.eval(), n, side, side), ["cpu", "cpu-bf16"], repeats)
        name = f"sampling with precision='bf16', {n} at once, vs float32"
        yield Target(name, 1.5, 1.9, slow.median / fast.median, paired_ratios(slow, fast), factor)
    case = op_cases.convolution(On(16), 128, 3, "B", 32)
    low = case._replace(inputs=[x.bfloat16() for x in case.inputs])
    works = {"float32": case.forward(OURS), "bf16": low.forward(OURS)}
    name = "masked_conv2d 128→128 3×3 B in bf16, vs float32"
    yield faster(name, works, 1.5, 2.4, 5 * repeats, 20 * TOLERANCE)
