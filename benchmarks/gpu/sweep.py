"""Measures column steps by the shape of a launch, beside what runtimes/cuda/cost.py predicts, and fits that anew.

A shape is so many images in a cluster of so many blocks (1: no cluster). Each is measured alone and with as many as run
at once. A row is printed as soon as it is there, and last the constants that fit them best, to be written into cost.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import log
from typing import Any, NamedTuple

import numpy as np
import torch
from forced_shapes import prefers

from gpu.draws import judged
from gpu.sampling import FAMILIES, default_model
from gpu.smoke import runtime_of
from gpu.timing import cycles_a_second, stream_seconds
from pixelcnn_fast.bench.workload import Workload, random_model, workload
from pixelcnn_fast.models import Model
from pixelcnn_fast.runtimes.cuda.cost import CONSTANTS, Constants, cycles
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, CudaRuntime, Shape
from pixelcnn_fast.runtimes.job import Job

DEVICE = "cuda"
SHAPES = [*(Shape(images) for images in (1, 2, 4, 8, 16)), *(Shape(1, blocks) for blocks in CLUSTERS)]
SHAPES += [Shape(2, 2), Shape(4, 4), Shape(2, 8), Shape(4, 8)]
COLUMN_STEP = "column step, one image on one block"  # as benchmarks/cuda_budget.py has it
JUDGED = 2  # images of each batch
STEPS, PULL = 50, 1e-3  # of the fit


class Row(NamedTuple):
    """cycles: of a column step, with what comes before the first shared out; the others: as of ``cost.cycles``."""

    facts: dict[str, Any]
    images: int
    blocks: int
    multiprocessors: int
    cycles: float

    def predicted(self, by: Constants = CONSTANTS) -> float:
        whole = cycles(self.facts, "bf16", self.images, self.blocks, self.multiprocessors, by)
        return whole / steps(self.facts)


def steps(facts: dict[str, Any]) -> int:
    """Column steps of an image."""
    return int(facts["turns"]) * sum(sweep["steps"] for sweep in facts["sweeps"])


def refit(rows: Sequence[Row], before: Constants = CONSTANTS) -> Constants:
    """Least squares of log(predicted / measured), by the logarithms of the constants: so all stay positive. A constant
    that no row depends on stays as it was."""
    start = np.log(before)

    def misses(x: np.ndarray) -> np.ndarray:
        by = Constants(*np.exp(x))
        return np.array([log(row.predicted(by) / row.cycles) for row in rows])

    x = start
    for _ in range(STEPS):
        here, nudges = misses(x), 1e-5 * np.eye(len(x))
        slopes = np.stack([(misses(x + nudge) - here) / 1e-5 for nudge in nudges], axis=1)
        pull = PULL * np.eye(len(x))
        wanted = np.concatenate([-here, PULL * (start - x)])
        x = x + np.linalg.lstsq(np.concatenate([slopes, pull]), wanted, rcond=None)[0].clip(-0.3, 0.3)
    return Constants(*np.exp(x).tolist())


def networks() -> Iterator[tuple[str, Model, int]]:
    """Name, model and an image's side."""
    yield "PixelCNN", default_model(), 32
    (family, config, side), *_ = FAMILIES.values()
    yield "Gated PixelCNN", random_model(family=family, **config).to(DEVICE), side


def measured(runtime: CudaRuntime, work: Workload, shape: Shape, clock: float) -> Row | str | None:
    """None if the runtime gives the batch no such shape, a text if images are wrong. clock: cycles a second."""
    runtime.cost = prefers(shape.cluster, shape.images)
    if runtime.shape(work.images) != shape:
        return None
    batch = runtime.prepared(Job(values=torch.zeros(work.noise.shape, dtype=torch.int32), noise=work.noise))
    seconds = stream_seconds(lambda: runtime.enqueue(batch), 3)
    some = slice(0, JUDGED)
    found = judged(work.model, batch.levels[some].to(torch.uint8), work.noise[some], precision="bf16")
    if not found.is_right:
        return f"wrong images: {found}"
    facts = runtime.sampler(Shape(1, shape.cluster)).facts
    blocks = work.images // shape.images * shape.cluster
    return Row(facts, shape.images, blocks, runtime._limits.multiprocessors, seconds * clock / steps(facts))


def at_once(runtime: CudaRuntime, shape: Shape) -> int:
    """Clusters, or blocks if there are none."""
    return runtime._limits.multiprocessors if shape.cluster == 1 else runtime.clusters_at_once(shape)


def swept(clock: float) -> dict[str, Row | str]:
    """By what was measured; a text, if images are wrong. Prints each as soon as it is there."""
    found: dict[str, Row | str] = {}
    for name, model, side in networks():
        runtime = runtime_of(model, (model.input_channels, side, side), "bf16")
        for shape in SHAPES:
            for alone in (True, False):
                clusters = 1 if alone else at_once(runtime, shape)
                row = measured(runtime, workload(model, clusters * shape.images, side, side), shape, clock)
                if row is None:
                    break
                found[f"{name}, {shape.images} in {shape.cluster}, {clusters} at once"] = row
                print(json.dumps({"sweep": table(found, CONSTANTS)}), flush=True)
    return found


def table(found: Mapping[str, Row | str], by: Constants) -> dict[str, dict[str, object]]:
    """Cycles: measured, predicted, and as they would be predicted by other constants."""

    def cells(row: Row) -> dict[str, object]:
        cycles = dict(measured=row.cycles, predicted=row.predicted(), refitted=row.predicted(by))
        return {name: round(value) for name, value in cycles.items()}

    return {name: cells(row) if isinstance(row, Row) else {"failed": row} for name, row in found.items()}


def spread(rows: Sequence[Row], by: Constants = CONSTANTS) -> str:
    ratios = [row.cycles / row.predicted(by) for row in rows]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def main() -> int:
    found = swept(cycles_a_second())
    rows = [row for row in found.values() if isinstance(row, Row)]
    if alone := [row for row in rows if row.images == row.blocks == 1]:
        print(json.dumps({"targets": {COLUMN_STEP: f"{alone[0].cycles:,.0f} cycles"}}))
    if rows:
        by = refit(rows)
        old, new = CONSTANTS._asdict(), by._asdict()
        constants: dict[str, object] = {k: {"now": old[k], "refitted": round(new[k], 1)} for k in old}
        constants["measured / predicted"] = {"now": spread(rows), "refitted": spread(rows, by)}
        print(json.dumps({"sweep": table(found, by), "constants": constants}))
    return int(len(rows) < max(len(found), 1))


if __name__ == "__main__":
    sys.exit(main())
