"""The budget of the CUDA sampler: what it must reach on a GPU, and what its machine code says it will take.

python benchmarks/cuda_budget.py [--arch 90a] [--profile] [--json]

Compiles the kernels and simulates them (sass_simulator), whole steps with everything in them. Needs nvcc and nvdisasm
but no GPU. --profile: for each row, where its cycles go by source line. --json: a list with an object per row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sass_simulator import RATES, Rates, Run, compiled

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Prediction:
    value: float  # in the row's unit
    run: Run | None = None  # the simulation that it comes from, for --profile


# From the compiled kernels and the GPU's rates.
Predict = Callable[[Path, Rates], Prediction]


@dataclass(frozen=True)
class Row:
    name: str
    unit: str
    must: float
    reach: float | None
    predict: Predict | None = None  # None: nothing to simulate yet
    more_is_better: bool = False

    def met(self, value: float) -> bool:
        return value >= self.must if self.more_is_better else value <= self.must

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


# H100, bfloat16; images are 3 x 32 x 32 of the default PixelCNN unless a row says otherwise.
ROWS = (
    Row("column step, one image on one block", "cycles", 100_000, None),
    Row("one image", "ms", 9, 2.5),
    Row("16 images", "ms", 10, 4),
    Row("1,024 images", "images/s", 25_000, 45_000, more_is_better=True),
    Row("Gated PixelCNN, 64 channels, 7 blocks, 28x28, one image", "ms", 4, 1.5),
    Row("Row LSTM, 128 units, 12 layers, one image", "ms", 20, 6),
    Row("Diagonal BiLSTM, 128 units, 12 layers, one image", "ms", 80, 20),
    Row("generic loads, local memory, integer divisions in the step loops", "instructions", 0, 0),
)


def kernels(arch: str, folder: Path, math: str = "bf16") -> Path:
    """The sampler's kernels for an architecture -> a cubin in the folder."""
    steps = ROOT / "pixelcnn_fast" / "program" / "steps.py"
    subprocess.run([sys.executable, ROOT / "csrc" / "steps_header.py", steps, folder / "steps.h"], check=True)
    options = f"-I{ROOT / 'csrc'}", f"-I{folder}", f"-DPCF_MATH={math}"
    return compiled(ROOT / "csrc" / "cuda" / "kernels.cu", arch, folder / f"kernels_{arch}.cubin", *options)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    lines = ["| H100, bf16 | unit | must | reach | predicted | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {None: "–", True: "yes", False: "**no**"}[row["met"]]
        numbers = " | ".join(number(row[key]) for key in ("must", "reach", "predicted"))
        lines.append(f"| {row['name']} | {row['unit']} | {numbers} | {met} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--arch", default="90a", choices=sorted(RATES))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cubin = kernels(chosen.arch, Path(folder)) if any(row.predict for row in ROWS) else Path()
        predictions = [row.predict and row.predict(cubin, RATES[chosen.arch]) for row in ROWS]
    results = [row.result(prediction) for row, prediction in zip(ROWS, predictions, strict=True)]
    print(json.dumps(results, indent=1) if chosen.json else table(results))
    if chosen.profile:
        for row, prediction in zip(ROWS, predictions, strict=True):
            if prediction and prediction.run:
                print(
                    f"\n{row.name}\n{prediction.run.profile()}", file=sys.stderr if chosen.json else sys.stdout
                )


if __name__ == "__main__":
    main()
