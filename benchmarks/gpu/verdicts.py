"""What the end of a stage's process means, where its status does not say it."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from gpu.stage import OK, Ended, by_status, printed_figures

# What NVIDIA's tools say of a machine that does not let them work.
REFUSALS = ("Device not supported", "ERR_NVGPUCTRPERM", "LibraryNotLoaded", "Failed to initialize the profiler")


def of_tests(ended: Ended) -> str:
    """pytest's, from junit.xml: some must have passed, and none failed. Skipped tests alone are a failure."""
    report = ended.folder / "junit.xml"
    if not report.is_file():
        return f"failed: status {ended.status} before any test"
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [reason for case in cases if (reason := case.find("skipped")) is not None]
    passed = len(cases) - len(bad) - len(skipped)
    if bad:
        return (
            f"failed: {len(bad)} of {len(cases)} tests: {', '.join(case.get('name', '') for case in bad[:5])}"
        )
    if passed == 0:
        why = f", the first because: {skipped[0].get('message')}" if skipped else ""
        return f"failed: no test has passed, {len(skipped)} were skipped{why}"
    if ended.status != 0:
        return f"failed: {passed} tests passed, but the status is {ended.status}"
    return f"{OK}: {passed} passed, {len(skipped)} skipped"


def of_sanitizer(ended: Ended) -> str:
    """compute-sanitizer's, from report.txt: the program must have ended well, and the report must say so, too."""
    report = _read(ended.folder / "report.txt")
    if (refusal := _refusal(report + ended.errors)) is not None:
        return f"not available: {refusal}"
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?).*", report)
    if ended.status != 0 and summary is not None and int(summary[1]) == 0:  # the program's own error
        return by_status(ended)
    if ended.status != 0 or summary is None or int(summary[1]) > 0:
        found = [line.lstrip("= ") for line in report.splitlines()[1:] if line.strip("= ")]
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
    """A missed target is no failure here, and the script may be missing."""
    if "can't open file" in ended.errors:
        return "not available: there is no benchmarks/cuda_budget.py"
    return OK if printed_figures(ended.output)[1] else f"failed: status {ended.status} and no rows"


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
    return {"table": reports[0].read_text().splitlines()} if reports else {}


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _refusal(text: str) -> str | None:
    return next(
        (line.strip("= ")[:200] for line in text.splitlines() if any(r in line for r in REFUSALS)), None
    )
