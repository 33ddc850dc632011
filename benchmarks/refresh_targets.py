"""Measures how long refreshing a sampler takes, against building it, and says which targets are met.

    python benchmarks/refresh_targets.py          three models: a minute on 2 cores
    python benchmarks/refresh_targets.py --quick  a tiny model: tries the script; its figures mean nothing

In every round the weights change, as in training; then a sampler is built from them and another one is refreshed, and
both must draw the same images from the same noise. The first refresh of a sampler prepares the later ones, and is shown
by itself. Leave the machine alone meanwhile. Writes
FOLDER/<processor>-<isa>-refresh.json and .md; status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from family_targets import GATED
from targets import Target, options, ratio, write

from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import output_folder
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.models import GatedPixelCNN, Model
from pixelcnn_fast.sampler import Sampler

SHARE = 10  # percent of the time that building takes: the most that refreshing may take


class Case(NamedTuple):
    """must, reach: of refreshing, in seconds, if there are targets."""

    name: str
    model: Callable[[], Model]
    side: int
    must: float = 0
    reach: float = 0


CASES = [
    Case("default PixelCNN, 3x32x32", random_model, 32, 0.040, 0.015),
    Case(
        "Gated PixelCNN, 64 x 7 blocks, 28x28",
        lambda: random_model(family=GatedPixelCNN, **GATED),
        28,
    ),
    Case("packaged digits, 28x28", lambda: checkpoint.load("mnist"), 28),
]
TINY = [Case("tiny", lambda: random_model(input_channels=1, hidden_channels=6, n_residual=1), 5, 0.040, 0.015)]


def main() -> int:
    args = options(__doc__, repeats=9).parse_args()
    folder = output_folder(args.out)
    torch.set_num_threads(args.threads)
    found = report.machine()
    targets = [target for case in (TINY if args.quick else CASES) for target in measured(case, args)]
    write(folder, "refresh", "Targets of refreshing a sampler", found, args.quick, targets, "", {})
    return int(any(target.verdict() == "no" for target in targets))


def measured(case: Case, args: argparse.Namespace) -> list[Target]:
    model = case.model()
    shape = (model.input_channels, case.side, case.side)
    sampler = Sampler(model, shape)
    sampler.refresh()
    work = workload(model, 1, case.side, case.side)
    building: list[float] = []
    refreshing: list[float] = []
    first: list[float] = []
    for round in range(args.repeats + 1):  # the first is a warm-up
        change(model, round)
        new, seconds = timed(lambda: Sampler(model, shape))
        building.append(seconds)
        refreshing.append(timed(sampler.refresh)[1])
        images = (each.sample(1, work.labels, noise=work.noise) for each in (sampler, new))
        if not torch.equal(*images):
            raise CheckFailed(f"{case.name}: a refreshed sampler draws other images than a new one")
        first.append(timed(new.refresh)[1])
    building, refreshing, first = building[1:], refreshing[1:], first[1:]
    share, shares = ratio(refreshing, building, 100)
    first_share, first_shares = ratio(first, building, 100)

    def of_building(what: str, must: float, reach: float, share: float, shares: list[float]) -> Target:
        name = f"{case.name}: {what}, of building"
        return Target(name, must, reach, share, shares, "{:.1f} %".format, at_most=True)

    found = [
        of_building("refreshing", SHARE, SHARE / 4, share, shares),
        of_building("the first time, which prepares the others", 100, SHARE, first_share, first_shares),
    ]
    if case.must:
        name = f"{case.name}: refreshing"
        middle = median(refreshing)
        found.insert(0, Target(name, case.must, case.reach, middle, refreshing, report.duration, at_most=True))
    return found


def change(model: Model, seed: int) -> None:
    """As a step of training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-3 * torch.randn(p.shape, generator=generator))


def timed(function: Callable[[], Sampler]) -> tuple[Sampler, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
