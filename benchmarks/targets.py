"""What the targets' scripts share: a target, its verdict, peak memory, and the files that are written."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pixelcnn_fast.bench import report
from pixelcnn_fast.bench.arguments import Parser, count, folder_name
from pixelcnn_fast.bench.contestants import NAIVE, Result
from pixelcnn_fast.bench.measure import compare, interleaved
from pixelcnn_fast.bench.streams import watched
from pixelcnn_fast.bench.workload import Model, workload
from pixelcnn_fast.compiler import recorded
from pixelcnn_fast.files import write_text
from pixelcnn_fast.sampler import Sampler
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

RESULTS = Path(__file__).parent / "results"
MB = 1e6


@dataclass(frozen=True)
class Target:
    """must and reach: what ``value`` has to be at least, or at most; samples: its values round by round."""

    name: str
    must: float
    reach: float
    value: float
    samples: list[float]
    show: Callable[[float], str]
    at_most: bool = False
    strict: bool = False  # the value must not even equal ``must``

    def verdict(self) -> str:
        sign = -1 if self.at_most else 1
        value, must, reach = (sign * x for x in (self.value, self.must, self.reach))
        if value < must or (self.strict and value == must):
            return "no"
        return "yes, reached" if value >= reach else "yes"

    def row(self) -> list[str]:
        bound = ("< " if self.strict else "<= ") if self.at_most else ">= "
        spread = f"{self.show(min(self.samples))} – {self.show(max(self.samples))}"
        shown = [self.show(x) for x in (self.must, self.reach, self.value)]
        return [
            self.name,
            bound + shown[0],
            shown[1],
            shown[2],
            spread if len(self.samples) > 1 else "",
            self.verdict(),
        ]


def ratio(a: list[float], b: list[float], scale: float) -> tuple[float, list[float]]:
    """scale * a / b: of the medians, and of each round."""
    return scale * median(a) / median(b), [scale * x / y for x, y in zip(a, b, strict=True)]


def speed(
    model: Model,
    side: int,
    batch: int,
    wanted: Sequence[tuple[str, str, float, float]],
    repeats: int,
    naive_pixels: int,
    subject: str = "",
) -> tuple[list[Target], list[Result]]:
    """wanted: (slow, fast, must, reach), for side x side images -> (targets, the comparison)."""
    names = list(dict.fromkeys([slow for slow, *_ in wanted] + [fast for _, fast, *_ in wanted]))
    work = workload(model, batch, side, side)
    results = compare(work, names, repeats, naive_pixels, progress=watched())
    by_name = {result.name: result for result in results}
    targets = []
    for slow, fast, must, reach in wanted:
        a, b = by_name[slow], by_name[fast]
        how = f" (naive from {a.timed} of {a.pixels} pixels)" if a.extrapolated else ""
        baseline = "naive" if slow == NAIVE else "cached PyTorch"
        weights = "bf16 weights" if fast.endswith("bf16") else "float32"
        name = f"{subject}fast vs {baseline}, {batch} at once, {weights}{how}"
        targets.append(
            Target(name, must, reach, a.median / b.median, report.paired_ratios(a, b), report.factor)
        )
    return targets, results


def building(model: Model, side: int, must: float, reach: float, repeats: int, subject: str = "") -> Target:
    shape = (model.input_channels, side, side)
    seconds = interleaved({"build": lambda: Sampler(model, shape)}, repeats)["build"]
    name = f"{subject}building a Sampler"
    return Target(name, must, reach, median(seconds), seconds, report.duration, at_most=True)


def capturing(model: Model, side: int, must: float, reach: float, repeats: int) -> Target:
    """From the module to the captured program, as building a Sampler does it first."""
    wrapped = WrappedModel(model, (model.input_channels, side, side))
    seconds = interleaved({"capture": lambda: recorded(wrapped)}, repeats)["capture"]
    return Target("capturing the model", must, reach, median(seconds), seconds, report.duration, at_most=True)


def options(description: str | None, repeats: int) -> Parser:
    """The command line that the targets' scripts have in common."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--repeats", type=count, default=repeats, help="rounds of each measurement")
    add("--threads", type=count, default=2, help="threads of PyTorch and of the compiled code")
    add(
        "--out",
        type=folder_name,
        default=RESULTS,
        metavar="FOLDER",
        help="where the files go (default: benchmarks/results)",
    )
    add("--quick", action="store_true", help="measure something tiny, to try the script")
    return parser


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *args).result()


def peak_rise(work: Callable[[], object]) -> float | None:
    """MB by which this process's peak resident set rises during ``work``; Linux only, None elsewhere."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else work could reuse memory that was freed before, unseen
    reset.write_text("5")  # resets the peak
    before = _kilobytes(status, "VmRSS")
    work()
    return (_kilobytes(status, "VmHWM") - before) * 1024 / MB


def _kilobytes(status: Path, field: str) -> int:
    (found,) = re.findall(rf"{field}:\s+(\d+) kB", status.read_text())
    return int(found)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def megabytes(value: float) -> str:
    return f"{value:.1f} MB"


def write(
    folder: Path,
    subject: str,
    title: str,
    found: dict[str, Any],
    quick: bool,
    targets: Sequence[Target],
    more: str,
    record: dict[str, Any],
) -> None:
    """Writes folder/<processor>-<isa>-<subject>.json and .md, and prints the latter."""
    table = report.table([["target", "must", "reach", "measured", "spread", "ok"], *(t.row() for t in targets)])
    slug = re.sub(r"[^a-z0-9]+", "-", f"{found['processor']} {found['isa']}".lower()).strip("-")
    path = folder / f"{slug}-{subject}{'-quick' if quick else ''}.json"
    rows = [{**{k: v for k, v in asdict(t).items() if k != "show"}, "verdict": t.verdict()} for t in targets]
    whole = {"machine": found, "quick": quick, "targets": rows, **record}
    write_text(json.dumps(whole, indent=1) + "\n", path)
    text = "\n\n".join(filter(None, [report.about(found), table, more])) + "\n"
    write_text(f"# {title}\n\n{text}", path.with_suffix(".md"))
    print(text, path, path.with_suffix(".md"), sep="\n")
