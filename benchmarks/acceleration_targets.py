"""Measures what ``accelerate`` gains, each network in one run against plain PyTorch and ``torch.compile``.

    python benchmarks/acceleration_targets.py                  all rows: about 10 minutes on 2 cores
    python benchmarks/acceleration_targets.py --only tutorial  rows whose name has that in it
    python benchmarks/acceleration_targets.py --quick          tiny networks: tries the script; its figures mean nothing

Contestants take turns: plain, torch.compile, and accelerate in its modes 'eager' and 'inductor', of which the faster
one counts. Results and gradients are compared before a speed-up is shown, in float64 (of 'eager') and in float32.
Leave the machine alone meanwhile.
Writes FOLDER/<processor>-<isa>-acceleration.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from public_networks import Cropped, OneHot, Stack, Tutorial, masked_in_place, ordered_colours
from targets import Target, in_fresh_process, options, ratio, write
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import accelerate, ops
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.measure import compare as compare_samplers
from pixelcnn_fast.bench.measure import interleaved
from pixelcnn_fast.bench.workload import workload
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.models import PixelCNN, reference
from pixelcnn_fast.nn import raster_mask
from pixelcnn_fast.rewriting.backend import Mode

# Of a result's largest value. In float32, an activation near zero may lie on its other side, which a gradient shows.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 5e-2}
OURS: dict[str, Mode] = {"accelerated": "eager", "accelerated with inductor": "inductor"}
LIVE = ", live"
Bounds = tuple[float, float] | None  # must, reach


@dataclass(frozen=True)
class Network:
    """training, inference: bounds against plain PyTorch and against ``torch.compile``."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    training: tuple[Bounds, Bounds]
    inference: tuple[Bounds, Bounds]
    live: Bounds = None  # of training with live gradients
    repeats: int = 9


def networks(quick: bool) -> Iterator[Network]:
    default: Callable[[], nn.Module] = (
        (lambda: reference.PixelCNN(3, 16, 1)) if quick else (lambda: reference.PixelCNN(3, 128, 15))
    )
    small: Callable[[], nn.Module] = lambda: reference.PixelCNN(1, 8 if quick else 32, 4)  # noqa: E731
    tutorial: Callable[[], nn.Module] = (lambda: Tutorial(8, (1, 2))) if quick else Tutorial
    n, side = (2, 8) if quick else (16, 28)
    gray, colour = (n, 1, side, side), (n, 3, 8 if quick else 32, 8 if quick else 32)
    yield Network(
        "the tutorial's Gated PixelCNN", tutorial, gray, ((1.4, 1.7), (1.2, 1.5)), ((1.35, 1.5), (1.1, 1.5))
    )
    yield Network(
        "default PixelCNN", default, colour, ((1.55, 1.75), (1.4, 1.75)), ((1.5, 1.75), (1.45, 1.75)), repeats=5
    )
    yield Network(
        "default PixelCNN, masked in place",
        lambda: masked_in_place(default()),
        colour,
        ((1.2, 1.4), None),
        ((1.5, 1.75), (1.45, 1.75)),
        (1.5, 1.75),
        repeats=5,
    )
    yield Network(
        "small PixelCNN", small, (4 * n, 1, side, side), ((1.3, 1.5), (1.15, 1.5)), ((1.5, 1.8), (1.2, 1.8))
    )
    for name, build, shape in (
        ("cropped convolutions", Cropped, gray),
        ("weight norm", lambda: Stack(style="weight norm", norm=False), gray),
        ("one-hot input", OneHot, gray),
        ("ordered colours", ordered_colours, colour),
        ("torch.where masks", lambda: Stack(style="where"), gray),
    ):
        yield Network(name, build, shape, ((0.97, 1.2), None), ((0.97, 1.2), None))


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    logits = model(images)
    if logits.shape[-1] == 256 and logits.dim() == 5 and logits.shape[1] == images.shape[1]:
        return F.cross_entropy(logits.reshape(-1, 256), images.long().flatten())
    return F.cross_entropy(logits, images.long() % logits.shape[1])


Function = Callable[[nn.Module, Tensor], Tensor]
Work = Callable[[], Sequence[Tensor]]


def compiled_by(name: str, function: Function) -> Function:
    """The function, and what it calls, as a contestant runs it."""
    if name == "plain":
        return function
    if name == "torch.compile":
        return torch.compile(function)
    mode, live = OURS[name.removesuffix(LIVE)], name.endswith(LIVE)
    return accelerate(function, mode, live)


def rows(network: Network, device: str) -> Iterator[Target]:
    torch.manual_seed(0)
    model = network.build().to(device)
    images = torch.randint(0, 256, network.shape).float().to(device)
    for _ in range(2):
        model(images)  # statistics of batch norm that are not the initial ones
    names = ["plain", "torch.compile", *OURS]
    live = [f"{name}{LIVE}" for name in OURS] if network.live is not None else []
    works = checked(network.name, trained, names + live, model, images)
    seconds = interleaved(works, network.repeats)
    name = f"{network.name}: training step"
    yield from judged(name, seconds, "", network.training)
    if network.live is not None:
        yield from judged(f"{name}, live gradients", seconds, LIVE, (network.live, None))
    works = checked(network.name, inferred, names, model, images)
    seconds = interleaved(works, network.repeats)
    yield from judged(f"{network.name}: inference", seconds, "", network.inference)


def checked(
    subject: str, work_of: Callable[..., Work], names: Sequence[str], model: nn.Module, images: Tensor
) -> dict[str, Work]:
    """Those that work; raises CheckFailed if one gives other results than the first."""
    torch._dynamo.reset()
    exact = [name for name in names if name.removesuffix(LIVE) in ("plain", "accelerated")]
    compared(f"{subject}, in float64", work_of, exact, copy.deepcopy(model).double(), images[:2].double())
    return compared(subject, work_of, names, model, images)


def compared(
    subject: str, work_of: Callable[..., Work], names: Sequence[str], model: nn.Module, images: Tensor
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
        compare(f"{subject}, {name}", expected, found, live_taps(own) if name.endswith(LIVE) else None)
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
    ours = [f"{k}{suffix}" for k in OURS]
    best = min((k for k in ours if k in seconds), key=lambda k: median(seconds[k]), default=None)
    shown = ", ".join(f"{k} {report.duration(median(v))}" for k, v in seconds.items())
    print(f"{name}: {shown}", flush=True)
    for rival, bound in zip(("plain", "torch.compile"), bounds, strict=True):
        if bound is not None and rival in seconds and best is not None:
            value, values = ratio(seconds[rival], seconds[best], 1.0)
            theirs, eager, inductor = (
                report.duration(median(seconds[k])) if k in seconds else "fails" for k in (rival, *ours)
            )
            times = f"{theirs} → {eager} eager, {inductor} inductor"
            yield Target(f"{name}, vs {rival} ({times})", *bound, value, values, report.factor)


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


def compare(
    name: str, expected: Sequence[Tensor], found: Sequence[Tensor], live: Sequence[Tensor] | None = None
) -> None:
    """Raises CheckFailed where results differ. live: where gradients are plain PyTorch's; elsewhere they are zero."""
    # Besides: there are gradients of zero, but for rounding.
    largest = max(float(x.abs().max()) for x in expected if x.dim())
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        right = a if live is None else a * live[i]
        error, tolerance = float((b - right).abs().max()), TOLERANCES[a.dtype]
        allowed = tolerance * (float(a.abs().max()) + 0.01 * largest)
        if not error <= allowed:
            raise CheckFailed(f"{name}: result {i} differs by {error:.3g}, allowed {allowed:.3g}")


# -- what a call takes


def first_calls() -> Iterator[Target]:
    """Seconds of a model's first call beyond those of later ones, each in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        for name, mode, must, reach in (
            ("eager", "eager", 3.0, 1.5),
            ("inductor, cold", "inductor", 40.0, 20.0),
            ("inductor, cached", "inductor", 10.0, 5.0),
        ):
            seconds = in_fresh_process(first_call, mode, cache)
            yield Target(
                f"first call of the default model, {name}",
                must,
                reach,
                seconds,
                [seconds],
                report.duration,
                True,
            )


def first_call(mode: Mode, cache: str) -> float:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(2)
    model = reference.PixelCNN(3, 128, 15).eval()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)  # one graph: nothing asks for its values
    seconds = []
    with torch.no_grad():
        expected = model(images)
        accelerate(model, mode)
        for _ in range(4):
            start = time.perf_counter()
            found = model(images)
            seconds.append(time.perf_counter() - start)
    compare(f"the default model, {mode}", [expected], [found])
    return seconds[0] - median(seconds[1:])


def tiny(repeats: int) -> Iterator[Target]:
    model, images = reference.PixelCNN(1, 4, 1, None, 3), torch.randint(0, 256, (1, 1, 4, 4)).float()
    works = checked("a tiny network", inferred, ("plain", "torch.compile", *OURS), model, images)

    def many_times(work: Work) -> Callable[[], None]:
        def run() -> None:
            for _ in range(100):
                work()

        return run

    seconds = interleaved({name: many_times(work) for name, work in works.items()}, 5 * repeats)
    yield from judged("a tiny network, 100 calls", seconds, "", (None, (1.0, 1.0)))


def beside_busy_threads(repeats: int) -> Iterator[Target]:
    """categorical_nll and gated_activation, forward and backward, while two other processes keep the cores busy."""
    x = torch.randn(16, 128, 28, 28, requires_grad=True)
    logits = torch.randn(16, 256, 1, 28, 28, requires_grad=True)
    levels = torch.randint(0, 256, (16, 1, 28, 28))
    works: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], Tensor]] = {
        "gated_activation": (
            lambda: torch.tanh(x[:, :64]) * torch.sigmoid(x[:, 64:]),
            lambda: ops.gated_activation(x),
            x,
        ),
        "categorical_nll": (
            lambda: F.cross_entropy(logits, levels, reduction="sum"),
            lambda: ops.categorical_nll(logits.movedim(1, -1), levels),
            logits,
        ),
    }
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for name, (plain, fast, leaf) in works.items():

            def step(forward: Callable[[], Tensor], leaf: Tensor = leaf) -> Callable[[], Tensor]:
                return lambda: torch.autograd.grad(forward().sum(), leaf)[0]

            if not torch.allclose(step(plain)(), step(fast)(), atol=1e-5):
                raise CheckFailed(f"{name}: its gradient differs")
            seconds = interleaved({"plain": step(plain), "fast": step(fast)}, 15 * repeats)
            value, values = ratio(seconds["plain"], seconds["fast"], 1.0)
            times = " → ".join(report.duration(median(seconds[k])) for k in ("plain", "fast"))
            yield Target(f"{name} beside two busy processes ({times})", 1.0, 1.0, value, values, report.factor)
    finally:
        for process in busy:
            process.kill()


# -- bfloat16, where the processor multiplies it


def bf16(quick: bool, repeats: int) -> Iterator[Target]:
    """The sampler, whose images ``compare`` judges, and masked_conv2d."""
    torch.manual_seed(0)
    model = PixelCNN(3, 16, 1) if quick else PixelCNN()
    side = 8 if quick else 32
    for n in (1, 16):
        slow, fast = compare_samplers(workload(model.eval(), n, side, side), ["cpu", "cpu-bf16"], repeats)
        name = f"sampling with precision='bf16', {n} at once, vs float32"
        yield Target(name, 1.5, 1.9, slow.median / fast.median, report.paired_ratios(slow, fast), report.factor)
    x, weight = torch.randn(16, 128, 32, 32), torch.randn(128, 128, 3, 3) / 34
    mask = raster_mask(3, 3, "B")
    exact = ops.masked_conv2d(x.double(), weight.double(), None, mask)
    low = x.bfloat16(), weight.bfloat16(), None, mask
    error, scale = float((ops.masked_conv2d(*low) - exact).abs().max()), float(exact.abs().max())
    if not error <= 0.02 * scale:
        raise CheckFailed(f"masked_conv2d in bf16 differs by {error:.3g}, values up to {scale:.3g}")
    seconds = interleaved(
        {"plain": lambda: ops.masked_conv2d(x, weight, None, mask), "fast": lambda: ops.masked_conv2d(*low)},
        5 * repeats,
    )
    value, values = ratio(seconds["plain"], seconds["fast"], 1.0)
    yield Target("masked_conv2d 128→128 3×3 B in bf16, vs float32", 1.5, 2.4, value, values, report.factor)


def main() -> int:
    parser = options(__doc__, repeats=9)
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="rows of networks whose name has TEXT in it; 'calls' and 'bf16': the last rows",
    )
    parser.add_argument(
        "--device", default="cpu", help="'cpu' or 'cuda', for which the rows of networks are measured"
    )
    parser.add_argument(
        "--within",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="begin with no network later than that; those that are left out are listed",
    )
    args = parser.parse_args()
    folder, begin = output_folder(args.out), time.monotonic()
    torch.set_num_threads(args.threads)
    found = report.machine()
    if args.device == "cuda":
        found["processor"] = torch.cuda.get_device_name()
    targets: list[Target] = []
    chosen = [network for network in networks(args.quick) if args.only in network.name]
    left_out: list[str] = []
    failed: list[str] = []
    try:  # what ends this early leaves the rows so far
        for network in chosen:
            if time.monotonic() - begin >= args.within:
                left_out.append(network.name)
                continue
            try:
                targets += rows(network, args.device)
            except Exception as error:  # leaves the others' rows
                traceback.print_exc()
                failed.append(f"{network.name}: {type(error).__name__}: {str(error)[-120:]}")
        if args.only in "calls" and args.device == "cpu":
            targets += [*first_calls(), *tiny(args.repeats), *beside_busy_threads(args.repeats)]
        if args.only in "bf16" and args.device == "cpu":
            targets += bf16(args.quick, args.repeats)
    finally:
        more = f"Left out, for want of time: {'; '.join(left_out)}. " if left_out else ""
        more += f"Failed: {'; '.join(failed)}." if failed else ""
        write(folder, "acceleration", "Targets of acceleration", found, args.quick, targets, more, {})
    missed = args.device == "cpu" and any(target.verdict() == "no" for target in targets)  # they are a CPU's
    return int(missed or bool(failed))


if __name__ == "__main__":
    sys.exit(main())
