"""Measures the samplers on a GPU: python -m gpu.sampling ours | families | naive | compiled | one

Images are judged before anything is timed. Each figure is printed as soon as it is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gpu.draws import judged
from gpu.timing import kernel_seconds, stream_seconds, wall_seconds
from pixelcnn_fast import Sampler
from pixelcnn_fast.bench.workload import Workload, random_model, workload
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.models import GatedPixelCNN, Model, PixelRNN
from pixelcnn_fast.runtimes import Precision, RuntimeName
from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, Shape

DEVICE = "cuda"
RUNTIME: RuntimeName = "cuda"
BATCHES = (1, 16, 64, 1024)
JUDGED = 16  # images of a batch, at most: their logits in float64 take 6 MB each
OURS: dict[str, Precision] = {"pixelcnn_fast, bf16": "bf16", "pixelcnn_fast, float32": "same"}
NAIVE = "naive, bf16"
CACHED = "cached PyTorch, float32"
# The targets' names, as benchmarks/cuda_budget.py has them.
DEFAULT = {1: "one image", 16: "16 images", 1024: "1,024 images"}
FAMILIES: dict[str, tuple[type[Model], dict[str, Any], int]] = {
    "Gated PixelCNN, 64 channels, 7 blocks, 28x28, one image": (GatedPixelCNN, {"input_channels": 1}, 28),
    "Row LSTM, 128 units, 12 layers, one image": (PixelRNN, {"kind": "row_lstm"}, 32),
    "Diagonal BiLSTM, 128 units, 12 layers, one image": (PixelRNN, {"kind": "diagonal_bilstm"}, 32),
}


def show(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


@cache
def default_model() -> Model:
    return random_model().to(DEVICE)


def default_work(n: int) -> Workload:
    return workload(default_model(), n, 32, 32)


def drawing(sampler: Sampler, work: Workload, precision: Precision) -> Callable[[], Tensor]:
    """Draws the whole batch at once. Raises CheckFailed unless the images are those of the noise."""

    def draw() -> Tensor:
        return sampler.sample(work.images, noise=work.noise, batch_size=work.images, runtime=RUNTIME)

    some = slice(0, JUDGED)
    found = judged(work.model, draw()[some], work.noise[some], precision=precision)
    if not found.is_right:
        raise CheckFailed(f"{work.images} images are wrong: {found}")
    return draw


def as_target(draw: Callable[[], Tensor], seconds: float, n: int) -> str:
    """As the targets are written, milliseconds, or images a second for a large batch; and of the kernels alone."""

    def written(seconds: float) -> str:
        return f"{1e3 * seconds:.4g} ms" if n < 1000 else f"{n / seconds:,.0f} images/s"

    kernels = kernel_seconds(draw, "pixelcnn_fast")
    return written(seconds) + ("" if kernels is None else f", kernels alone {written(kernels)}")


def ours() -> None:
    if at_once := clusters_at_once():
        show(**{"clusters at once, by their blocks": at_once})
    targets: dict[str, str] = {}
    for name, precision in OURS.items():
        sampler, seconds = Sampler(default_model(), (3, 32, 32), precision=precision), {}
        for n in BATCHES:
            draw = drawing(sampler, default_work(n), precision)
            seconds[n] = wall_seconds(draw, 3)
            show(**{name: seconds})
            if precision == "bf16" and n in DEFAULT:
                targets[DEFAULT[n]] = as_target(draw, seconds[n], n)
                show(targets=targets)


def clusters_at_once() -> dict[int, int]:
    runtime = Sampler(default_model(), (3, 32, 32), precision="bf16").runtime(RUNTIME)
    if not isinstance(runtime, CudaRuntime):  # in a rehearsal
        return {}
    shapes = (Shape(1, facts["cluster"]) for facts, _ in runtime._clusters)
    return {shape.cluster: runtime.clusters_at_once(shape) for shape in shapes}


def families() -> None:
    """One image of each. What the runtime refuses is said, and is no failure."""
    found: dict[str, str] = {}
    for name, (family, config, side) in FAMILIES.items():
        work = workload(random_model(family=family, **config).to(DEVICE), 1, side, side)
        sampler = Sampler(work.model, work.shape, precision="bf16")
        if (refusal := why_not(sampler)) is not None:
            found[name] = refusal
        else:
            draw = drawing(sampler, work, "bf16")
            found[name] = as_target(draw, wall_seconds(draw, 3), 1)
        show(families=found)


def why_not(sampler: Sampler) -> str | None:
    """Why the runtime can't draw from the model, if it says so."""
    try:
        sampler.runtime(RUNTIME)
    except RuntimeError as error:
        if "not available" not in str(error):
            raise
        return str(error)
    return None


# -- what there is without the library: models.reference, a full forward for each of 1,024 pixels


def naive_forwards(batches: Sequence[int]) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """Batch size, and one forward of the plain network in bf16."""
    for n in batches:
        work = default_work(n)
        plain = work.plain_model().bfloat16()
        images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, device=DEVICE)

        def forward(plain: torch.nn.Module = plain, images: Tensor = images) -> Tensor:
            with torch.no_grad():
                return plain(images)

        yield n, forward


def naive() -> None:
    """Of 1,024 forwards some are timed; of the 32 rows that plain PyTorch with caches draws, 2."""
    seconds, captured, cached = {}, {}, {}
    for n, forward in naive_forwards(BATCHES):
        seconds[n] = 1024 * stream_seconds(forward, 5)
        captured[n] = 1024 * stream_seconds(in_graph(forward), 5)
        show(**{NAIVE: seconds, f"{NAIVE}, CUDA graph": captured})
    few = Sampler(default_model(), (3, 2, 32))
    for n in BATCHES[:-1]:
        cached[n] = 16 * wall_seconds(lambda n=n: few.sample(n, runtime="eager", batch_size=n), 1)  # type: ignore[misc]  # n=n
        show(**{CACHED: cached})


def in_graph(forward: Callable[[], Tensor]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay


def compiled() -> None:
    """Of two batch sizes, because each takes a compilation."""
    seconds = {}
    for n, forward in naive_forwards((1, 1024)):
        seconds[n] = 1024 * stream_seconds(torch.compile(forward, dynamic=False), 5)
        show(**{f"{NAIVE}, torch.compile": seconds})


def one() -> None:
    """Image of the default network, which ncu watches."""
    work = default_work(1)
    sampler = Sampler(work.model, work.shape, precision="bf16")
    sampler.sample(1, noise=work.noise, runtime=RUNTIME)


if __name__ == "__main__":
    {f.__name__: f for f in (ours, families, naive, compiled, one)}[sys.argv[1]]()
