"""Builds, tests and measures on a machine with a GPU, in under ten minutes: `make gpu-check`.

    python benchmarks/gpu_check.py [--out FOLDER]     FOLDER: benchmarks/results by default

Needs torch, NVRTC, g++, pybind11, ninja, cmake and pytest; no network, no virtual environment, nothing installed. Each
stage is a process with its own time limit, and may use what others leave of theirs; if one fails or hangs, the others
still give their figures. FOLDER/<device>.json and .md are written whenever a stage ends. A table comes last, and all
that is printed then is under 12,000 characters. What the processes print is in build/gpu-check. Status 1 if a stage has
failed; tools that are missing are said, and are no failure. Without a GPU it builds and prints the predictions.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from gpu import report
from gpu.check import SMOKE, Check
from gpu.stage import Outcome, Stage, environment, slug
from gpu.verdicts import counters, markdown, of_budget, of_profiler, of_rates, of_sanitizer, of_tests

ROOT = Path(__file__).resolve().parents[1]
# Most of the tests' time is the host's: captures, compilations.
WORKERS = " -n 4" if find_spec("xdist") else ""
TESTS = "{python} -m pytest -q --tb=short -p no:cacheprovider -p gpu.journal --journal {folder}/tests.jsonl"
# Parts of the names of tests that may lose the GPU for those after them: they have processes of their own.
RISKY = {"clusters": "cluster", "tiles": "tiles", "graphs": "graph"}
SECTIONS = (
    "LaunchStats Occupancy SpeedOfLight SchedulerStats WarpStateStats InstructionStats "
    "MemoryWorkloadAnalysis MemoryWorkloadAnalysis_Tables"
)
PROFILED = (
    "ncu --kernel-name regex:pixelcnn_fast --launch-count 1 --clock-control none "
    f"{' '.join(f'--section {section}' for section in SECTIONS.split())} "
    "--csv --page raw --log-file {folder}/report.csv {python} -m gpu.sampling one"
)
ACCELERATION = "{python} benchmarks/targets.py acceleration --device cuda --out {folder} --within {early}"


# What torch asks of the driver is not what is checked.
SANITIZED = (
    "compute-sanitizer --tool {tool} --kernel-name kns=pixelcnn_fast --error-exitcode 99 --print-limit 10 "
    "--report-api-errors no --log-file {{folder}}/report.txt {{python}} -m gpu.smoke {{failed}}"
)
CASES = ("one-pixel", "bf16", "float32", "two-tiles", "cluster", "diagonal-bilstm")  # of the smoke test


def of_sampler(name: str, chosen: str, limit: float) -> Stage:
    """Tests of it, by parts of their names or by options."""
    command = f"{TESTS} tests/csrc/test_gpu.py tests/csrc/test_gpu_devices.py -k {chosen}"
    return Stage(name, command, limit, of_tests, needs="build")


def sanitized(tool: str) -> Stage:
    return Stage(tool, SANITIZED.format(tool=tool), 20, of_sanitizer, needs="build")


# The first stage says whether there is a GPU. What others build on comes first, and what says most.
STAGES: tuple[Stage | list[Stage], ...] = (
    Stage("machine", "{python} -m gpu.machine", 15, on_gpu=False),
    Stage("build", "{python} -m gpu.build", 55, on_gpu=False),
    Stage("budget", "{python} benchmarks/cuda_budget.py --recorded", 10, of_budget, on_gpu=False),
    Stage("first kernels", "{python} -m gpu.kernels few", 20, needs="build"),
    Stage("other kernels", "{python} -m gpu.kernels all", 5, needs="build", beside=True),
    [Stage(f"{SMOKE}{case}", f"{{python}} -m gpu.smoke {case}", 25, needs="build") for case in CASES],
    Stage("rates", "{python} -m gpu.rates", 25, of_rates),
    Stage("sweep", "{python} -m gpu.sweep", 40, needs="build"),
    Stage("counters", PROFILED, 15, of_profiler, counters, needs="build"),
    of_sampler("tests of the sampler", f"'not ({' or '.join(RISKY.values())})'{WORKERS}", 50),
    *(of_sampler(f"tests of {name}", part, 22) for name, part in RISKY.items()),
    Stage("tests of the ops", f"{TESTS}{WORKERS} tests/ops/test_triton_ops.py", 39, of_tests),
    Stage("sampling", "{python} -m gpu.sampling ours", 20, needs="build"),
    Stage("sampling, other families", "{python} -m gpu.sampling families", 15, needs="build"),
    *(sanitized(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
    Stage("sampling, naive", "{python} -m gpu.sampling naive", 15),
    Stage("layers", "{python} -m gpu.layers", 25),
    Stage("sampling, naive, compiled", "{python} -m gpu.sampling compiled", 15),
    Stage("acceleration", ACCELERATION, 25, found=markdown),
)
# Stages of a list run at once, the others alone.
GROUPS = tuple(each if isinstance(each, list) else [each] for each in STAGES)


def keeping(folder: Path) -> Callable[[list[Outcome]], None]:
    """Writes all outcomes so far to folder/<device>.json and .md, whole or not at all."""

    def keep(outcomes: list[Outcome]) -> None:
        path = folder / f"{slug(outcomes[0].figures.get('gpu', 'no gpu'))}.json"
        replace(path, json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
        replace(path.with_suffix(".md"), "\n".join(report.table(outcomes)) + "\n")

    return keep


def replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    folder: Path = parser.parse_args().out.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {folder}: {error.strerror}")
    for number in (signal.SIGINT, signal.SIGTERM):  # they end the running stage, too
        signal.signal(number, signal.default_int_handler)
    seen, logs = environment(ROOT, sys.executable), ROOT / "build" / "gpu-check"
    outcomes = Check(GROUPS, seen, logs, keeping(folder)).run()
    print(report.text(outcomes))
    return int(any(outcome.has_failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
