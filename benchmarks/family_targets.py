"""Measures the targets of the other families on this machine, each in one run, and says which are met.

    python benchmarks/family_targets.py            a Gated PixelCNN, and ordered colours: a minute or two on 2 cores
    python benchmarks/family_targets.py --quick    tiny models: tries the script; its figures mean nothing

Contestants take turns on the same noise, and every image is checked before a speed-up is shown. Leave the
machine alone meanwhile. Writes FOLDER/<processor>-<isa>-family.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from targets import building, options, speed, write

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.contestants import NAIVE
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.models import GatedPixelCNN

GATED: dict[str, Any] = dict(input_channels=1, hidden_channels=64, dilations=(1, 2, 1, 4, 1, 2, 1))
TINY_GATED: dict[str, Any] = dict(input_channels=1, hidden_channels=8, dilations=(1, 2))
TINY: dict[str, Any] = dict(hidden_channels=9, n_residual=1)


def main() -> int:
    args = options(__doc__, repeats=5).parse_args()
    folder = output_folder(args.out)
    torch.set_num_threads(args.threads)
    gated = random_model(family=GatedPixelCNN, **(TINY_GATED if args.quick else GATED))
    ordered = random_model(channel_order="thirds", **(TINY if args.quick else {}))
    wide, tall = (6, 6) if args.quick else (28, 32)

    found = report.machine()
    subject = f"Gated PixelCNN, 1x{wide}x{wide}: "
    targets, compared = speed(
        gated,
        wide,
        1,
        [(NAIVE, "cpu", 1000, 3000), ("eager", "cpu", 15, 30)],
        args.repeats,
        10 if args.quick else 100,
        subject,
    )
    targets.append(building(gated, wide, 2.0, 0.5, args.repeats, subject))
    subject = f"PixelCNN with ordered colours, 3x{tall}x{tall}: "
    more, compared_ordered = speed(
        ordered, tall, 1, [(NAIVE, "cpu", 1500, 3000)], args.repeats, 10 if args.quick else 40, subject
    )
    targets += [*more, building(ordered, tall, 2.0, 0.5, args.repeats, subject)]

    both = [compared, compared_ordered]
    record = {"comparisons": [report.record(results) for results in both]}
    write(
        folder, "family", "Targets of other families", found, args.quick, targets, report.markdown(both), record
    )
    return int(any(target.verdict() == "no" for target in targets))


if __name__ == "__main__":
    sys.exit(main())
