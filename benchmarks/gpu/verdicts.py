"""What the end of a stage's process means, where its status does not say it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.report import TABLE
from gpu.stage import OK, Ended, by_status, printed_figures

# What NVIDIA's tools say of a machine that does not let them work, and if there was no error until they were cut off.
REFUSALS = (
    "Device not supported",
    "ERR_NVGPUCTRPERM",
    "LibraryNotLoaded",
    "Failed to initialize the profiler",
)
CUT_OFF = (
    "ERROR SUMMARY: 0",
    "RACECHECK SUMMARY: 0",
    "Error: process didn't terminate",
    "Target application",
)
HANGS = 20.0  # seconds that a test may take until it counts as hung


def of_tests(ended: Ended) -> str:
    """pytest's, from what ``gpu.journal`` has written so far: some must have passed, and none failed. Skipped tests
    alone are a failure, and so is one that hung."""
    lines = [line for line in map(_line, _read(ended.folder / "tests.jsonl").splitlines()) if line]
    tests = {line["name"]: line for line in lines if "name" in line}
    if not tests:
        return f"failed: {_ending(ended)} before any test"
    named: dict[str, list[str]] = {"begun": [], "failed": [], "skipped": [], "passed": []}
    for name, line in tests.items():
        named.setdefault(line["outcome"], []).append(name)
    passed, skipped = len(named["passed"]), len(named["skipped"])
    left = max(line.get("tests", 0) for line in lines) - len(tests) + len(named["begun"])
    not_run = f", {left} not run" if left > 0 else ""
    if bad := named["failed"]:
        first = f"{bad[0].split('::')[-1]}: {tests[bad[0]]['why']}"
        return f"failed: {len(bad)} of {len(tests)} tests{not_run}, the first: {first}"
    hung = [
        name for name in named["begun"] if ended.status is not None or ended.at - tests[name]["at"] > HANGS
    ]
    if hung:
        return f"failed: {_ending(ended)} in {hung[0].split('::')[-1]}; {passed} passed{not_run}"
    if passed == 0:
        reason = f", the first because: {tests[named['skipped'][0]]['why']}" if skipped else ""
        return f"failed: no test has passed, {skipped} were skipped{reason}"
    if ended.status is None:
        return f"{OK} so far: {passed} passed, {skipped} skipped{not_run} in {ended.seconds:.0f} s"
    if ended.status != 0:
        return f"failed: {passed} tests passed, but the status is {ended.status}"
    return f"{OK}: {passed} passed, {skipped} skipped"


def _line(text: str) -> dict[str, Any]:
    """Nothing of one that was not written to its end."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _ending(ended: Ended) -> str:
    return f"not finished in {ended.seconds:.0f} s" if ended.status is None else f"status {ended.status}"


def of_sanitizer(ended: Ended) -> str:
    """compute-sanitizer's, from report.txt: the program must have ended well, and the report must say so, too."""
    report = _read(ended.folder / "report.txt")
    if (refusal := _refusal(report + ended.errors)) is not None:
        return f"not available: {refusal}"
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?).*", report)
    found = [line.lstrip("= ") for line in report.splitlines()[1:] if line.strip("= ")]
    if ended.status is None and all(line.startswith(CUT_OFF) for line in found):
        done = len(printed_figures(ended.output))
        return f"{OK} so far: {done} cases in {ended.seconds:.0f} s" if done else by_status(ended)
    if ended.status != 0 and summary is not None and int(summary[1]) == 0:  # the program's own error
        return by_status(ended)
    if ended.status != 0 or summary is None or int(summary[1]) > 0:
        return f"failed: {(found or [f'status {ended.status}'])[0][:200]}"
    return f"{OK}: {summary[0]}"


def of_profiler(ended: Ended) -> str:
    """ncu's: report.csv must hold counters of a launch."""
    report, found = _read(ended.folder / "report.csv"), counters(ended.folder)
    if (refusal := _refusal(report + ended.errors + ended.output)) is not None:
        return f"not available: {refusal}"
    if ended.status != 0 or not found:
        return f"failed: status {ended.status}, {len(found)} counters"
    return f"{OK}: {len(found)} counters"


def of_budget(ended: Ended) -> str:
    """A missed target is no failure here. What was recorded may be missing, or of other kernels."""
    if ended.status != 0:
        return by_status(ended)
    said = ended.errors.strip().split("\n")[-1]
    return f"{OK}: {said}".rstrip(": ") if printed_figures(ended.output) else f"not available: {said}"


def of_rates(ended: Ended) -> str:
    """nvcc is needed for nothing else."""
    missing = ended.errors.strip().endswith("nvcc is missing")
    return "not available: nvcc is not installed" if missing else by_status(ended)


def counters(folder: Path) -> dict[str, str]:
    """Counter -> value and unit, of the first launch in what ``ncu --csv --page raw`` has written to report.csv."""
    lines = _read(folder / "report.csv").splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows: list[Sequence[str]] = list(csv.reader(lines[begin:]))
    if len(rows) < 3:
        return {}
    names, units, values = rows[:3]
    return {n: f"{v} {u}".strip() for n, u, v in zip(names, units, values, strict=False) if v}


def markdown(folder: Path) -> dict[str, list[str]]:
    """The lines of the first report in a folder."""
    reports = sorted(folder.glob("*.md"))
    return {TABLE: reports[0].read_text().splitlines()} if reports else {}


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _refusal(text: str) -> str | None:
    return next(
        (line.strip("= ")[:200] for line in text.splitlines() if any(r in line for r in REFUSALS)), None
    )
