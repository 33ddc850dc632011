"""Measures the targets of PixelRNN's training and sampling on this machine, and says which are met.

    python benchmarks/recurrence_targets.py            Row LSTM and Diagonal BiLSTM: half an hour on 2 cores, of
                                                       which torch.compile takes several minutes
    python benchmarks/recurrence_targets.py --only sampling
    python benchmarks/recurrence_targets.py --quick    tiny models: tries the script; its figures mean nothing

Contestants take turns, on the same noise where they sample, and every result is checked before a speed-up is
shown. Training is compared with loops in PyTorch (recurrence_loops.py), and with torch.compile of them. Leave the
machine alone meanwhile. Writes FOLDER/<processor>-<isa>-recurrence.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from typing import Any

import recurrence_training as training
import torch
from targets import Target, building, options, speed, write

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.contestants import NAIVE, Result
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import Model, PixelRNN
from pixelcnn_fast.models.pixel_rnn import Kind

TINY: dict[str, Any] = dict(hidden_channels=4, n_layers=1)
SMALL: dict[str, Any] = dict(input_channels=1, hidden_channels=16, n_layers=7, levels=2)
# kind -> (images at once, must and reach for the factor against naive)
SPEEDS: dict[Kind, list[tuple[int, float, float]]] = {
    "row_lstm": [(1, 900, 1800), (16, 1200, 1700)],
    "diagonal_bilstm": [(1, 900, 2000), (16, 2500, 3800)],
}
NAIVE_PIXELS = {1: 40, 16: 12}  # pixels that the naive sampler draws


def main() -> int:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--only", choices=("training", "sampling"), help="which targets (default: all)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile of the loops out")
    args = parser.parse_args()
    folder = output_folder(args.out)
    torch.set_num_threads(args.threads)
    found = report.machine()
    targets: list[Target] = []
    compared: list[list[Result]] = []
    if args.only != "sampling":
        settings = training.Training(repeats=args.repeats, compiled=not args.no_compile)
        if args.quick:
            settings = training.Training(2, 6, 8, 2, args.repeats, settings.compiled)
        with tempfile.TemporaryDirectory(prefix="pixelcnn_fast_inductor_") as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # so that compile times are those of a first run
            targets += training.targets(settings)
    if args.only != "training":
        sampling(args, targets, compared)
    record = {"comparisons": [report.record(results) for results in compared]}
    subject = "recurrence" if args.only is None else f"recurrence-{args.only}"
    more = report.markdown(compared) if compared else ""
    write(folder, subject, "Targets of PixelRNN", found, args.quick, targets, more, record)
    return int(any(target.verdict() == "no" for target in targets))


def sampling(args: argparse.Namespace, targets: list[Target], compared: list[list[Result]]) -> None:
    def measure(model: Model, side: int, batch: int, must: float, reach: float, subject: str) -> None:
        pixels = min(NAIVE_PIXELS[batch], side * side)
        found, results = speed(model, side, batch, [(NAIVE, "cpu", must, reach)], args.repeats, pixels, subject)
        targets.extend(found)
        compared.append(results)

    side, small_side = (6, 5) if args.quick else (32, 28)
    for kind, wanted in SPEEDS.items():
        model = random_model(family=PixelRNN, kind=kind, **(TINY if args.quick else {}))
        subject = f"{training.NAMES[kind]}, 3x{side}x{side}: "
        for batch, must, reach in wanted:
            measure(model, side, batch, must, reach, subject)
        targets.append(building(model, side, 4.0, 1.5, args.repeats, subject))
    small = random_model(
        family=PixelRNN, kind="diagonal_bilstm", **({**TINY, "levels": 2} if args.quick else SMALL)
    )
    subject = f"Diagonal BiLSTM, {small.input_channels}x{small_side}x{small_side}: "
    measure(small, small_side, 1, 2000, 4000, subject)
    targets.append(building(small, small_side, 1.0, 0.4, args.repeats, subject))


if __name__ == "__main__":
    sys.exit(main())
