"""Reports what a comparison found, as Markdown, as JSON and as a chart."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pixelcnn_fast import cores, environment, pictures
from pixelcnn_fast.bench import quiet
from pixelcnn_fast.bench.contestants import LABELS, NAIVE, Result
from pixelcnn_fast.files import write_text
from pixelcnn_fast.native import native

BASELINES = {NAIVE: "vs naive", "eager": "vs cached"}
HEADER = (
    "images at once",
    "sampler",
    "time per image",
    "spread",
    "images/s",
    *BASELINES.values(),
    "images drawn",
)


def machine() -> dict[str, Any]:
    """What figures depend on, without what identifies the machine; waits a little if it is busy."""
    module = native()
    taken = quiet.awaited()
    return {
        "processor": processor(),
        "cores": cores.usable(),
        "threads": torch.get_num_threads(),
        "isa": module.chosen_isa() if module else None,
        "compiler": module.build_info()["compiler"] if module else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pixelcnn_fast": environment.version("pixelcnn_fast"),
        "taken_cores": None if taken is None else round(taken, 2),
    }


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def duration(seconds: float) -> str:
    """Three digits with a suitable unit: 56.8 s, 1.20 s, 56.0 ms, 73.1 µs."""
    size, unit = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")
    value = seconds / size
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def factor(value: float) -> str:
    return f"{value:,.0f}×" if value >= 10 else f"{value:.2g}×"


def speed_ups(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """{baseline: {name: how many times its speed}}, by medians, without who drew wrong images."""
    medians = {result.name: result.median for result in results if not result.wrong}
    bases = (base for base in BASELINES if base in medians)
    return {base: {name: medians[base] / m for name, m in medians.items()} for base in bases}


def markdown(comparisons: Sequence[Sequence[Result]]) -> str:
    """One table of all comparisons, and the evidence where images differ."""
    rows: list[Sequence[str]] = [HEADER]
    evidence = []
    for results in comparisons:
        ups = speed_ups(results)
        for r in results:
            spread = f"{duration(min(r.seconds) / r.images)} – {duration(max(r.seconds) / r.images)}"
            spread = spread if len(r.seconds) > 1 else "one run"
            factors = (factor(ups[base][r.name]) if r.name in ups.get(base, {}) else "" for base in BASELINES)
            label, per_second = _label(r, " (extrapolated from {})"), f"{r.images / r.median:.3g}"
            time = duration(r.median / r.images)
            rows.append([str(r.images), label, time, spread, per_second, *factors, str(r.check)])
            if r.check is not None and (r.check.differing or r.wrong):
                evidence.append(f"{LABELS[r.name]}, {r.images} at once: {r.check.evidence}")
    return "\n\n".join([table(rows), *evidence])


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    header, *lines = (" | ".join(map(str.ljust, row, widths)) for row in rows)
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {header} |", f"|{rule}|", *(f"| {line} |" for line in lines)])


def files(stem: str) -> list[str]:
    """The names of what ``save`` writes."""
    return [f"{stem}.{suffix}" for suffix in ("md", "json", "png")]


def save(
    comparisons: Sequence[Sequence[Result]], folder: Path, stem: str, title: str, found: dict[str, Any]
) -> list[Path]:
    """Writes folder/stem.md, .json and .png -> their paths. found: ``machine()`` before the measuring."""
    paths = [folder / name for name in files(stem)]
    whole = {"title": title, "machine": found, "comparisons": [record(results) for results in comparisons]}
    write_text(f"# {title}\n\n{about(found)}\n\n{markdown(comparisons)}\n", paths[0])
    write_text(json.dumps(whole, indent=1) + "\n", paths[1])
    panels = dict(map(_panel, comparisons))
    pictures.chart(panels, paths[2], title, axis="seconds per image", warning=busy(found))
    return paths


def about(found: dict[str, Any]) -> str:
    """A line on the machine, with a warning if others were using it."""
    return (
        f"{found['processor']}, {found['threads']} of {found['cores']} cores, "
        f"{found['isa'] or 'no compiled module'}, torch {found['torch']}. "
        f"Medians; spread is fastest to slowest run. {busy(found)}"
    ).rstrip()


def busy(found: dict[str, Any]) -> str:
    """A warning if others were using the machine, else nothing."""
    taken = found["taken_cores"] or 0
    warning = f"The machine was busy before (other processes took {taken:.1f} cores): don't trust the times."
    return warning if taken > quiet.BUSY else ""


def _label(r: Result, extrapolated: str) -> str:
    return LABELS[r.name] + (extrapolated.format(f"{r.timed} of {r.pixels} pixels") if r.extrapolated else "")


def record(results: Sequence[Result]) -> dict[str, Any]:
    contestants = []
    for r in results:
        check = r.check and {**vars(r.check), "text": str(r.check), "evidence": r.check.evidence}
        found = {"name": r.name, "label": LABELS[r.name], "seconds": r.seconds, "median": r.median}
        found |= {"pixels": r.pixels, "timed_pixels": r.timed, "extrapolated": r.extrapolated, "check": check}
        contestants.append(found)
    return {"images": results[0].images, "speed_ups": speed_ups(results), "contestants": contestants}


def _panel(results: Sequence[Result]) -> tuple[str, list[pictures.Bar]]:
    base, ups = next(iter(speed_ups(results).items()), ("", dict[str, float]()))
    bars = []
    for r in results:
        note = duration(r.median / r.images)
        if r.wrong:
            note += "   WRONG images"
        elif r.name in ups and r.name != base:
            note += f"   {factor(ups[r.name])}"
        label = _label(r, "\nextrapolated from {}")
        bars.append(pictures.Bar(label, r.median / r.images, note, r.extrapolated))
    plural = "s" if results[0].images > 1 else ""
    return f"{results[0].images} image{plural} at once", bars
