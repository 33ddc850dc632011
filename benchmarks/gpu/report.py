"""The table that is printed last, short enough for a terminal that keeps the end of the output only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpu.stage import Outcome

MOST_CHARACTERS = 11_500
MOST_OF_FAILURES = 2500  # what failed stages have printed, beside their verdicts
TOLD = (
    "smoke",
    "rates",
    "sweep",
    "sampling",
    "layers",
    "counters",
)  # stages whose figures are shown, in this order
TARGETS, TABLE = ("targets", "families"), "table"  # figures that are not the stage's own
OF_TARGETS = ("unit", "must", "reach", "predicted", "measured")
# Of ncu's counters; all are in the JSON.
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
    figures = {outcome.stage: outcome.figures for outcome in outcomes}
    yield "# " + shown(figures.get("machine", {}))
    yield from rows(
        ["stage", "verdict", "seconds"], ([o.stage, o.verdict[:160], o.seconds] for o in outcomes)
    )
    if of_targets := targets(figures):
        body = ([name, *(values.get(key) for key in OF_TARGETS)] for name, values in of_targets.items())
        yield from rows(["bf16; predictions are for an H100", *OF_TARGETS], body)
    told: dict[str, dict[str, object]] = {name: {} for name in TOLD}
    for stage, found in figures.items():
        own = {name: value for name, value in found.items() if name not in (*TARGETS, TABLE)}
        told.get(stage.split(", ")[0], {}).update(own)
    told["rates"] = beside(told["rates"])
    told["counters"] = telling(told["counters"])
    for stage, values in told.items():
        yield from named(stage, dict(flat(values)))
    for found in figures.values():
        yield from found.get(TABLE, ())


def flat(figures: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """With those of a group of figures, each of which has several values, one by one."""
    for name, value in figures.items():
        is_group = isinstance(value, Mapping) and all(isinstance(each, Mapping) for each in value.values())
        yield from value.items() if is_group else [(name, value)]


def beside(rates: Mapping[str, Any]) -> dict[str, object]:
    """Each rate as it was measured, beside what the predictions assume."""
    assumed = rates.get("assumed", {})
    found = {name: {"measured": value} for name, value in rates.items() if name != "assumed"}
    return {
        name: {"assumed": assumed[name], **value} if name in assumed else value
        for name, value in found.items()
    }


def targets(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The budget's rows beside what was measured, by name. Either may be missing."""
    found = {name: dict(row) for name, row in figures.get("budget", {}).get("budget", {}).items()}
    for name, value in [item for f in figures.values() for key in TARGETS for item in f.get(key, {}).items()]:
        found.setdefault(name, {})["measured"] = value
    return found


def telling(counters: Mapping[str, Any]) -> dict[str, object]:
    """Of ncu's counters those that say most, and what warps wait for most."""
    stalls = sorted(
        (name for name in counters if name.startswith(STALL)), key=lambda name: -number(counters[name])
    )
    return {name: counters[name] for name in [*TELLING, *stalls[:5]] if name in counters}


def named(head: str, values: Mapping[str, object]) -> Iterator[str]:
    if values:
        yield from rows([head, ""], values.items())


def rows(head: Sequence[object], body: Iterable[Sequence[object]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(map(str, head)) + " |"
    yield "|---" * len(head) + "|"
    for row in body:
        yield "| " + " | ".join(map(shown, row)) + " |"


def shown(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: str) -> float:
    try:
        return float(value.split()[0].replace(",", ""))
    except (ValueError, IndexError):
        return 0.0
