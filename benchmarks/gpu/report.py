"""The table that is printed last, short enough for a terminal that keeps the end of the output only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from gpu.stage import Outcome

MOST_CHARACTERS = 11_500
MOST_OF_FAILURES = 2500  # what failed stages have printed, beside their verdicts
CONTESTANTS = ("pixelcnn_fast", "naive", "cached")
# Of ncu's counters, those that say most; all are in the JSON.
TELLING = (
    "gpu__time_duration.sum",
    "sm__cycles_elapsed.max",
    "smsp__inst_executed.sum",
    "lts__t_sector_hit_rate.pct",
    "launch__registers_per_thread",
)
STALL = "smsp__average_warps_issue_stalled_"


def text(outcomes: Sequence[Outcome]) -> str:
    """For a terminal: what has failed and how it ended, then the table, or as much of it as there is room for."""
    failed = [outcome for outcome in outcomes if outcome.has_failed]
    failures = [failure(outcome, MOST_OF_FAILURES // len(failed)) for outcome in failed]
    whole = "\n".join([*failures, "", *table(outcomes)])
    return whole if len(whole) <= MOST_CHARACTERS else f"{whole[:MOST_CHARACTERS]}\n… the rest is in the .md"


def failure(outcome: Outcome, most: int) -> str:
    """The verdict, and the end of what the stage printed, in about so many characters."""
    tail = "\n".join(f"    {line[:160]}" for line in outcome.tail)
    return f"{outcome.stage}: {outcome.verdict[:160]}\n{tail[-most:]}"


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    by_name = {outcome.stage: outcome for outcome in outcomes}
    figures = {name: outcome.figures for name, outcome in by_name.items()}
    yield "# " + ", ".join(f"{name} {value}" for name, value in figures.get("machine", {}).items())
    yield from rows(["stage", "verdict", "seconds"], ([o.stage, o.verdict[:160], o.seconds] for o in outcomes))
    smoke = figures.get("smoke", {})
    if cases := {**smoke.get("smoke", {}), **smoke.get("watched", {})}:
        yield from rows(["case", "result"], cases.items())
    rates = dict(figures.get("rates", {}))
    assumed = rates.pop("assumed", {})
    if rates:
        yield from rows(["rate", "assumed", "measured"], ([k, assumed.get(k), v] for k, v in rates.items()))
    yield from targets(by_name)
    yield from sweep(figures.get("sweep", {}))
    yield from sampling(figures)
    if layers := figures.get("layers"):
        yield from rows(
            ["milliseconds", ""],
            (
                [layer, ", ".join(f"{k} {shown(v)}" for k, v in times.items())]
                for layer, times in layers.items()
            ),
        )
    yield from profile(figures.get("counters", {}))
    yield from figures.get("acceleration", {}).get("table", ())


def targets(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """The budget's rows beside what was measured, by name. Either may be missing."""
    budget = outcomes["budget"].rows if "budget" in outcomes else []
    measured = {
        name: value
        for outcome in outcomes.values()
        for group in ("targets", "families")
        for name, value in outcome.figures.get(group, {}).items()
    }
    predicted, keys = {str(row.get("name")): row for row in budget}, ("unit", "must", "reach", "predicted")
    if names := list(dict.fromkeys([*predicted, *measured])):
        yield from rows(
            ["bf16; predictions are for an H100", *keys, "measured"],
            (
                [
                    name,
                    *(predicted.get(name, {}).get(key) for key in keys),
                    measured.get(name),
                ]
                for name in names
            ),
        )


def sweep(found: Mapping[str, Any]) -> Iterator[str]:
    """Column steps by the shape of a launch, and the constants of runtimes/cuda/cost.py, now and fitted to them."""
    if cycles := found.get("sweep"):
        head = ["cycles a column step, images in blocks", "measured", "predicted", "refitted"]
        yield from rows(head, ([name, *values] for name, values in cycles.items()))
    if constants := found.get("constants"):
        yield from rows(["cost.py", "now", "refitted"], ([k, *v] for k, v in constants.items()))


def sampling(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Seconds for a batch of the default PixelCNN."""
    found = {
        name: times
        for of_stage in figures.values()
        for name, times in of_stage.items()
        if name.startswith(CONTESTANTS) and isinstance(times, dict)
    }
    batches = sorted({int(n) for times in found.values() for n in times})
    if found:
        yield from rows(
            ["seconds, by batch", *batches],
            ([name, *(times.get(str(n)) for n in batches)] for name, times in found.items()),
        )


def profile(found: Mapping[str, str]) -> Iterator[str]:
    stalls = {name.removeprefix(STALL): value for name, value in found.items() if name.startswith(STALL)}
    worst = islice(sorted(stalls.items(), key=lambda item: _number(item[1]), reverse=True), 5)
    told = [(name, found[name]) for name in TELLING if name in found]
    if told or stalls:
        yield from rows(["counter", ""], [*told, *((f"stalled: {name}", value) for name, value in worst)])


def rows(
    head: Sequence[object], body: Iterator[Sequence[object]] | Sequence[Sequence[object]] | Any
) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(map(str, head)) + " |"
    yield "|---" * len(head) + "|"
    for row in body:
        yield "| " + " | ".join(map(shown, row)) + " |"


def shown(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: str) -> float:
    try:
        return float(value.split()[0].replace(",", ""))
    except (ValueError, IndexError):
        return 0.0
