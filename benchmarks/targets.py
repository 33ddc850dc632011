"""Measures one of the tables of targets on this machine, in one run, and says which are met.

    python benchmarks/targets.py sampling               the default PixelCNN, 3x32x32: about 10 minutes on 2 cores
    python benchmarks/targets.py family                 a Gated PixelCNN, and ordered colours: a minute or two
    python benchmarks/targets.py pixelcnnpp             PixelCNN++, drawn, built and trained: half an hour
    python benchmarks/targets.py attention              PixelSNAILs and a transformer: an hour
    python benchmarks/targets.py recurrence             PixelRNN, trained and sampled: half an hour
    python benchmarks/targets.py layers                 the layers, batch 16, float32: about 5 minutes
    python benchmarks/targets.py acceleration           what ``accelerate`` gains: about 10 minutes
    python benchmarks/targets.py refresh                refreshing a sampler: a minute
    python benchmarks/targets.py busy                   samplers on cores that other processes keep busy: some minutes
    python benchmarks/targets.py floor                  the CPU sampler against the version before: half an hour
    python benchmarks/targets.py door                   what a newcomer waits for, from a clean clone on: an hour
    python benchmarks/targets.py layers --only memory   those cases of a table whose name has that in it
    python benchmarks/targets.py layers --quick         tiny ones: tries the table; its figures mean nothing

Contestants take turns, and their results are compared before a speed-up is shown; the module of a table, in
benchmarks/cases, says what is measured and how. Leave the machine alone meanwhile. Writes
FOLDER/<processor>-<isa>-<table>.json and .md; status 1 if a target is missed or a case fails, which leaves the others.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
import time
import traceback
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from checkouts import GENERATIVE, PORT, PRIORS, PUBLIC
from measuring import Cases, Settings, Target

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import Parser, count, output_folder, path, shortened
from pixelcnn_fast.bench.contestants import Result
from pixelcnn_fast.files import write_text

RESULTS = Path(__file__).parent / "results"
# Table, a module of benchmarks/cases -> how often each measurement is repeated.
TABLES = {
    "sampling": 5,
    "family": 5,
    "pixelcnnpp": 5,
    "attention": 3,
    "recurrence": 5,
    "layers": 15,
    "acceleration": 9,
    "refresh": 9,
    "busy": 9,
    "floor": 9,
    "door": 9,
}
CHECKOUTS = (
    ("pixelcnnpp", "--port", PORT),
    ("pixelcnnpp", "--public", PUBLIC),
    ("attention", "--priors", PRIORS),
    ("attention", "--generative", GENERATIVE),
)
HEADER = ["target", "must", "reach", "measured", "spread", "ok"]


@dataclass
class Measured:
    """remarks: paragraphs; left_out: names of cases for which there was no time; failed: those that failed, and why."""

    targets: list[Target] = field(default_factory=list)
    comparisons: list[list[Result]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def run(self, cases: Cases, within: float) -> None:
        """Begins no case later than so many seconds from now."""
        end = time.monotonic() + within
        for name, measure in cases.items():
            if time.monotonic() >= end:
                self.left_out.append(name)
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                for found in measure():
                    if isinstance(found, Target):
                        self.targets.append(found)
                    elif isinstance(found, str):
                        self.remarks.append(found)
                    else:
                        self.comparisons.append(found)
            except Exception as error:
                traceback.print_exc()
                self.failed.append(f"{name}: {type(error).__name__}: {str(error)[-120:]}")

    def below_the_table(self) -> str:
        texts = [report.markdown(self.comparisons)] if self.comparisons else []
        texts += self.remarks
        if self.left_out:
            texts.append(f"Left out, for want of time: {'; '.join(self.left_out)}.")
        if self.failed:
            texts.append(f"Failed: {'; '.join(self.failed)}.")
        return "\n\n".join(texts)


def write(path: Path, title: str, machine: dict[str, Any], quick: bool, measured: Measured) -> None:
    """Writes path, a JSON file, and beside it the table in Markdown; prints the latter."""
    targets = measured.targets
    rows = [{**{k: v for k, v in asdict(t).items() if k != "show"}, "verdict": t.verdict()} for t in targets]
    whole = {"machine": machine, "quick": quick, "targets": rows, "failed": measured.failed}
    if measured.remarks:
        whole["remarks"] = measured.remarks
    if measured.comparisons:
        whole["comparisons"] = [report.record(results) for results in measured.comparisons]
    write_text(json.dumps(whole, indent=1) + "\n", path)
    table = report.table([HEADER, *(target.row() for target in targets)]) if targets else ""
    text = "\n\n".join(filter(None, [report.about(machine), table, measured.below_the_table()])) + "\n"
    write_text(f"# {title}\n\n{text}", path.with_suffix(".md"))
    print(text, path, path.with_suffix(".md"), sep="\n")


def slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def folder_name(text: str) -> Path:
    """One that is there, or can be made."""
    if any(each.exists() and not each.is_dir() for each in (path(text), *path(text).parents)):
        raise ArgumentTypeError(f"{shortened(text)} is a file, or in one: name a folder")
    return path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("table", choices=TABLES)
    add("--only", default="", metavar="TEXT", help="cases whose name has TEXT in it")
    add("--repeats", type=count, help=f"rounds of each measurement (default: {min(TABLES.values())} to 15)")
    add("--threads", type=count, default=2, help="threads of PyTorch and of the compiled code")
    add("--out", type=folder_name, default=RESULTS, metavar="FOLDER", help="(default: benchmarks/results)")
    add("--quick", action="store_true", help="measure something tiny, to try the table")
    add(
        "--baseline",
        type=Path,
        metavar="FOLDER",
        help="busy, floor, door: a built checkout, to be compared with",
    )
    for of, option, repository in CHECKOUTS:
        add(option, type=Path, metavar="FOLDER", help=f"{of}: a checkout of {repository}")
    add("--device", default="cpu", help="acceleration: 'cpu', or 'cuda' for the networks alone")
    add("--within", type=float, default=math.inf, metavar="SECONDS", help="begin no case later than that")
    args = parser.parse_args(arguments)
    folder = output_folder(args.out)
    torch.set_num_threads(args.threads)
    machine = report.machine()
    if args.device == "cuda":
        machine["processor"] = torch.cuda.get_device_name()
    name = slug(f"{machine['processor']} {machine['isa']} {args.table} {args.only} {'quick' * args.quick}")
    path = folder / f"{name}.json"
    repeats = args.repeats or TABLES[args.table]
    log, checkouts = path.with_suffix(".log"), (args.port, args.public, args.priors, args.generative)
    how = Settings(repeats, args.threads, args.quick, args.device, args.baseline, log, *checkouts)
    table = importlib.import_module(f"cases.{args.table}")
    cases: Cases = table.cases(how)
    chosen = {n: c for n, c in cases.items() if args.only == n or (args.only in n and args.only not in cases)}
    if not chosen:
        parser.error(f"--only {args.only}: choose from {', '.join(cases)}")
    measured = Measured()
    try:
        measured.run(chosen, args.within)
    finally:  # what ends this early leaves the rows so far
        write(path, table.TITLE, machine, args.quick, measured)
    missed = args.device == "cpu" and any(t.verdict() == "no" for t in measured.targets)  # they are a CPU's
    return int(missed or bool(measured.failed))


if __name__ == "__main__":
    sys.exit(main())
