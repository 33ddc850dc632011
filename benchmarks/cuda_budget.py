"""The budget of the CUDA sampler: what it must reach on a GPU, and what its machine code says it will take.

It compiles the sampler's kernels as they are now and simulates them (sass_simulator): all warps of a block together,
whole column steps with everything in them. "must" is what a row has to keep, "reach" what it should come to,
"predicted" what the simulation says at the rates of sass_simulator/rates.py; no GPU is involved, and none is needed.

  python benchmarks/cuda_budget.py             the table, for an H100; about five minutes
  python benchmarks/cuda_budget.py --profile   and where each row's cycles go, by source line
  python benchmarks/cuda_budget.py --clusters  what an image takes if 1, 2, 4 or 8 blocks share it; ten minutes
  python benchmarks/cuda_budget.py --batches   what batches take, and how their images share the GPU; ten minutes
  python benchmarks/cuda_budget.py --json      a list with an object per row: name, unit, must, reach, predicted, met
  python benchmarks/cuda_budget.py --record    records what a column step takes today: a test fails once it takes 10 %
                                               more. After a change that makes steps faster, or is worth its cycles.
                                               It also records the table, in all about eight minutes
  python benchmarks/cuda_budget.py --recorded  the table that was recorded, as an object for `make gpu-check`

What it is doing goes to stderr. A row without a prediction says there why. Needs NVRTC, which PyTorch for
CUDA brings, and nvdisasm, which Triton brings: `pip install -e .[test]`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from column_steps import (
    DIAGONAL,
    GATED,
    PIXELCNN,
    PRIOR,
    ROW_LSTM,
    SMALL,
    ColumnSteps,
    Counts,
    Network,
    Refused,
    Step,
    needed_compiler,
    say,
)
from forced_shapes import prefers
from sass_simulator import RATES, Run

from pixelcnn_fast.runtimes.cuda.kernels import digest
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS

RECORD = Path(__file__).with_name("cuda_step_cycles.json")
BATCHES = (1, 16, 64, 132, 1024)
SLOWER = 1.1  # times the recorded cycles: more is a failure
RECORDED_ARCH = "90"
# Name in the record -> network, images of the batch, how many blocks at most share their images.
RECORDED = {
    "PixelCNN, 1 image a block": (PIXELCNN, 1, 1),
    "PixelCNN, 1 image a cluster": (PIXELCNN, 1, max(CLUSTERS)),
    "PixelCNN, 8 images a block": (PIXELCNN, 1024, max(CLUSTERS)),
    "Gated PixelCNN, 1 image a cluster": (GATED, 1, max(CLUSTERS)),
    "Gated PixelCNN, 2 images a cluster": (GATED, 16, max(CLUSTERS)),
    "Row LSTM, 1 image a cluster": (ROW_LSTM, 1, max(CLUSTERS)),
    "Diagonal BiLSTM, 1 image a cluster": (DIAGONAL, 1, max(CLUSTERS)),
}


@dataclass(frozen=True)
class Prediction:
    value: float  # in the row's unit
    run: Run | None = None  # the simulation that it comes from, for --profile


# From the compiled kernels and the GPU's rates. Raises Refused where there is nothing to simulate.
Predict = Callable[[ColumnSteps], Prediction]


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    must: float
    reach: float | None
    predict: Predict
    more_is_better: bool = False

    def met(self, value: float) -> bool:
        return value >= self.must if self.more_is_better else value <= self.must

    def predicted(self, steps: ColumnSteps) -> Prediction | None:
        try:
            return self.predict(steps)
        except Refused as why:
            say(f"{self.name}: no prediction, {why}")
            return None

    def result(self, prediction: Prediction | None) -> dict[str, Any]:
        value = None if prediction is None else prediction.value
        return {
            "name": self.name,
            "unit": self.unit,
            "must": self.must,
            "reach": self.reach,
            "predicted": value,
            "met": None if value is None else self.met(value),
        }


def step_cycles(network: Network, images: int) -> Predict:
    """Of a column step, while all rows are in flight, without clusters."""

    def predict(steps: ColumnSteps) -> Prediction:
        step = steps.with_clusters_of(1).step(network, images)
        return Prediction(step.cycles, step.run)

    return predict


def milliseconds(network: Network, images: int) -> Predict:
    """Of a whole batch, as ``Step.milliseconds`` has it."""

    def predict(steps: ColumnSteps) -> Prediction:
        return Prediction(steps.milliseconds(network, images), steps.step(network, images).run)

    return predict


def images_per_second(network: Network, images: int) -> Predict:
    def predict(steps: ColumnSteps) -> Prediction:
        return Prediction(1e3 * images / steps.milliseconds(network, images), steps.step(network, images).run)

    return predict


def forbidden(steps: ColumnSteps) -> Prediction:
    """Executed in a column step of any network here, and in the default one's with 1 image a block and with 8."""
    found = [steps.with_clusters_of(1).step(PIXELCNN, 1), steps.step(PIXELCNN, 1024)]
    for network in (PIXELCNN, GATED, ROW_LSTM, DIAGONAL):
        found += steps.of_sweeps(network, 1)
    return Prediction(sum(step.forbidden for step in found))


# H100, bfloat16; images are 3 x 32 x 32 of the default PixelCNN unless a row says otherwise.
ROWS = (
    Row("column step, one image on one block", "cycles", 100_000, None, step_cycles(PIXELCNN, 1)),
    Row("one image", "ms", 9, 2.5, milliseconds(PIXELCNN, 1)),
    Row("16 images", "ms", 10, 4, milliseconds(PIXELCNN, 16)),
    Row("1,024 images", "images/s", 25_000, 45_000, images_per_second(PIXELCNN, 1024), more_is_better=True),
    Row("Gated PixelCNN, 64 channels, 7 blocks, 28x28, one image", "ms", 4, 1.5, milliseconds(GATED, 1)),
    Row("Row LSTM, 128 units, 12 layers, one image", "ms", 20, 6, milliseconds(ROW_LSTM, 1)),
    Row("Diagonal BiLSTM, 128 units, 12 layers, one image", "ms", 80, 20, milliseconds(DIAGONAL, 1)),
    Row("generic loads, local memory, integer divisions in the step loops", "instructions", 0, 0, forbidden),
)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[dict[str, Any]], gpu: str) -> str:
    """Markdown."""
    lines = [f"| {gpu}, bf16 | unit | must | reach | predicted | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {None: "–", True: "yes", False: "**no**"}[row["met"]]
        numbers = " | ".join(number(row[key]) for key in ("must", "reach", "predicted"))
        lines.append(f"| {row['name']} | {row['unit']} | {numbers} | {met} |")
    return "\n".join(lines)


def by_cluster(steps: ColumnSteps) -> str:
    """Markdown: milliseconds of one image, and which size runtimes/cuda/cost.py chooses."""
    sizes = [1, *(blocks for blocks in CLUSTERS if blocks <= steps.largest_cluster)]
    lines = [f"| one image, ms | {' | '.join(map(str, sizes))} | chosen |", "|---" * (len(sizes) + 2) + "|"]
    for network in (PIXELCNN, GATED, ROW_LSTM, DIAGONAL, SMALL):
        found = []
        for blocks in sizes:
            forced = steps.with_clusters_of(blocks)
            forced.runtime(network).cost = prefers(blocks)
            found.append(number(forced.milliseconds(network, 1)))
        chosen = steps.runtime(network).shape(1).cluster
        lines.append(f"| {network.name} | {' | '.join(found)} | {chosen} |")
    return "\n".join(lines)


def by_batch(steps: ColumnSteps) -> str:
    """Markdown: milliseconds of a batch, and the shape that the runtime chooses for it."""
    lines = [
        f"| {' | '.join(['ms', *(f'{images:,} images' for images in BATCHES)])} |",
        "|---" * (len(BATCHES) + 1) + "|",
    ]
    for network in (PIXELCNN, GATED, PRIOR, ROW_LSTM, DIAGONAL):
        found = []
        for images in BATCHES:
            each, blocks = steps.runtime(network).shape(images)
            found.append(f"{number(steps.milliseconds(network, images))} ({each} in {blocks})")
        lines.append(f"| {network.name} | {' | '.join(found)} |")
    return "\n".join(lines)


def recorded() -> dict[str, Any]:
    """ "compiler": what compiled what was recorded; "cycles": of a column step, or of one of each sweep, by the
    names in RECORDED; "rows": of the table, and "kernels": the digest of the sources that they are of; "runs": what
    each run took, as ``ColumnSteps.known``."""
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def known() -> dict[str, Counts]:
    """What was recorded of runs."""
    return {digest: Counts(*counts) for digest, counts in recorded().get("runs", {}).items()}


def recorded_steps(steps: ColumnSteps, name: str) -> list[Step]:
    """Of each of its sweeps, one."""
    network, images, blocks = RECORDED[name]
    return steps.with_clusters_of(blocks).of_sweeps(network, images)


def record(folder: Path) -> None:
    steps = ColumnSteps(RECORDED_ARCH, folder)
    before = recorded()["cycles"] if RECORD.exists() else {}
    found = {name: round(sum(step.cycles for step in recorded_steps(steps, name))) for name in RECORDED}
    for name, now in found.items():
        print(f"{name}: {number(before.get(name))} -> {number(now)} cycles a column step")
    rows = [row.result(row.predicted(steps)) for row in ROWS]
    content = {
        "compiler": str(needed_compiler()),
        "cycles": found,
        "kernels": digest(),
        "rows": rows,
        "runs": steps.known,
    }
    RECORD.write_text(json.dumps(content, indent=1) + "\n")


def print_recorded() -> None:
    found = recorded()
    if not (rows := found.get("rows")):
        return say("not recorded: python benchmarks/cuda_budget.py --record")
    if found["kernels"] != digest():
        say("recorded before the kernels changed: python benchmarks/cuda_budget.py --record")
    print(json.dumps({"budget": {row.pop("name"): row for row in rows}}))


def own_arch() -> str:
    """This machine's GPU's, if its rates are known."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if (arch := f"{major}{minor}") in RATES:
            return arch
    return RECORDED_ARCH


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    gpus = ", ".join(f"{arch}: {rates.gpu}" for arch, rates in RATES.items())
    add(
        "--arch",
        default=own_arch(),
        choices=sorted(RATES),
        help=f"{gpus} (default: this machine's, or else 90)",
    )
    add("--profile", action="store_true", help="where each row's cycles go, by source line")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print a list with an object per row instead of the table")
    add("--clusters", action="store_true", help="what an image takes by the number of blocks that share it")
    add("--batches", action="store_true", help="what batches take, with so many images in so many blocks")
    add("--record", action="store_true", help=f"write {RECORD.name} anew, for sm_{RECORDED_ARCH}, and end")
    add("--recorded", action="store_true", help="print what was recorded, by the names of the rows")
    chosen = parser.parse_args(arguments)
    if chosen.profile and (chosen.clusters or chosen.batches or chosen.record or chosen.recorded):
        parser.error("--profile is of the rows: not with --clusters, --batches, --record or --recorded")
    if chosen.recorded:
        return print_recorded()
    with tempfile.TemporaryDirectory() as folder:
        if chosen.record:
            return record(Path(folder))
        steps = ColumnSteps(chosen.arch, Path(folder))
        if chosen.clusters:
            return print(by_cluster(steps))
        if chosen.batches:
            return print(by_batch(steps))
        predictions: list[Prediction | None] = []
        try:
            for row in ROWS:
                predictions.append(row.predicted(steps))
        finally:  # an interrupted run shows what it has
            done = list(zip(ROWS, predictions, strict=False))
            results = [row.result(prediction) for row, prediction in done]
            print(
                json.dumps(results, indent=1) if chosen.json else table(results, steps.rates.gpu), flush=True
            )
    if chosen.profile:
        for row, prediction in done:
            if prediction and prediction.run:
                to = sys.stderr if chosen.json else sys.stdout
                print(f"\n{row.name}\n{prediction.run.profile()}", file=to)


if __name__ == "__main__":
    main()
