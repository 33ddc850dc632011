"""Draws tiny images by each way through the kernels, and compares their logits with the model in float64.

python -m gpu.smoke CASE,...  these; the first wrong sub-pixel of each is named, in the order in which they are drawn
python -m gpu.smoke           all of them and some more, for sanitizers
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from forced_shapes import prefers
from torch import nn

from gpu.draws import Compared, compared
from pixelcnn_fast import Sampler
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.models import Model, PixelRNN
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda.kernels import Instance
from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, largest_cluster
from pixelcnn_fast.runtimes.job import Job

PRECISIONS: dict[str, Precision] = {"bf16": "bf16", "fp32": "same"}
Shape = tuple[int, int, int]


class Case(NamedTuple):
    """kernel: that draws it; images: in all; each: in a block or a cluster."""

    kernel: Instance
    model: Callable[[], Model]
    shape: Shape
    images: int
    each: int = 1

    @property
    def precision(self) -> Precision:
        return PRECISIONS[self.kernel.math]


PIXELCNN = partial(random_model, input_channels=3, hidden_channels=40, n_residual=1, kernel_size=5)
DIAGONAL = partial(random_model, family=PixelRNN, kind="diagonal_bilstm", hidden_channels=16, n_layers=2)
ODD = (3, 5, 7)
CASES = {
    "one-pixel": Case(Instance("bf16", 1), PIXELCNN, (3, 1, 1), 5),
    "bf16": Case(Instance("bf16", 1), PIXELCNN, ODD, 80),
    "float32": Case(Instance("fp32", 1), PIXELCNN, ODD, 80),
    "two-tiles": Case(Instance("bf16", 2), PIXELCNN, ODD, 12, 4),
    "cluster": Case(Instance("bf16", 1, 8), PIXELCNN, ODD, 2),
    "diagonal-bilstm": Case(Instance("bf16", 1), DIAGONAL, ODD, 5),
}
# Besides, for sanitizers: where copies begin behind barriers, and what float32 does otherwise.
MORE = {
    "six-tiles": Case(Instance("bf16", 6), PIXELCNN, ODD, 16, 16),
    "float32-two-tiles": Case(Instance("fp32", 2), PIXELCNN, ODD, 12, 4),
    "float32-cluster": Case(Instance("fp32", 1, 8), PIXELCNN, ODD, 2),
}


def runtime_of(model: nn.Module, shape: Shape, precision: Precision) -> CudaRuntime:
    found = Sampler(model.cuda(), shape, precision=precision).runtime("cuda")
    assert isinstance(found, CudaRuntime)
    return found


def drawn(case: Case) -> Compared:
    """Raises CheckFailed if another kernel draws it."""
    work = workload(case.model(), case.images, *case.shape[1:])
    runtime = runtime_of(case.model(), case.shape, case.precision)
    runtime.cost = prefers(case.kernel.cluster, case.each)
    facts = runtime.facts(case.images)
    if (by := Instance(runtime.math, facts["tiles"], facts["cluster"])) != case.kernel:
        raise CheckFailed(f"the kernel is {by}, not {case.kernel}")
    levels = torch.zeros(work.noise.shape, dtype=torch.int32)
    logits = torch.full((*levels.shape, 256), torch.nan)
    runtime.run(Job(values=levels, noise=work.noise, parameters=logits))
    return compared(work.model, levels, work.noise, logits, case.precision)


def result(case: Case) -> str:
    """Begins with 'right', 'wrong' or 'not available'."""
    if case.kernel.cluster > largest_cluster(torch.cuda.get_device_capability()):
        return "not available: the GPU has no clusters"
    try:
        found = drawn(case)
    except CheckFailed as error:  # which leaves the other cases
        return f"wrong: {error}"
    if found.first_wrong:
        return f"wrong: {found.first_wrong}"
    return f"right, by {case.kernel}: an error of {found.error:.2g}, where {found.limit:.2g} is allowed"


def main(names: str = "") -> None:
    # Or what lies beyond an array is PyTorch's, too, and nobody sees.
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    cases = {**CASES, **MORE}
    wrong = []
    for name in names.split(",") if names else cases:
        found = result(cases[name])
        print(json.dumps({name: found}), flush=True)
        wrong += [f"{name}: {found}"] * found.startswith("wrong")
    sys.exit("; ".join(wrong) or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
