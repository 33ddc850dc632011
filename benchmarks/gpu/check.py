"""All stages, one after the other, within the time that there is for them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpu.stage import Outcome, Running, Stage

SMOKE = "smoke, "  # before the names of the smoke test's cases


class Check:
    """Runs groups of stages in their order, those of a group at once; the first stage says whether there is a GPU.

    Together they take no longer than the sum of the groups' limits: each may use what the later ones that will run do
    not need. keep: is given all outcomes whenever there is another one.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Stage]],
        environment: Mapping[str, str],
        folder: Path,
        keep: Callable[[list[Outcome]], None],
    ) -> None:
        self._groups, self._environment, self._folder, self._keep = groups, environment, folder, keep
        self._end = time.monotonic() + sum(map(limit, groups))
        self._outcomes: dict[str, Outcome] = {}
        self._has_gpu = True  # until the first stage has ended
        self._running: list[Running] = []

    def run(self) -> list[Outcome]:
        try:
            for index, group in enumerate(self._groups):
                later = [
                    g for g in self._groups[index + 1 :] if any(self._why_not(stage) is None for stage in g)
                ]
                end = self._end - sum(map(limit, later))
                for stage in group:
                    self._begin(stage, end)
                self._wait([running for running in self._running if not running.stage.beside], end)
                self._has_gpu = "gpu" in next(iter(self._outcomes.values())).figures
            self._wait(list(self._running), self._end)
        except KeyboardInterrupt:
            self._done(Outcome("the rest", "failed: interrupted"))
        finally:
            for running in self._running:
                running.stop()
        return list(self._outcomes.values())

    def _why_not(self, stage: Stage) -> str | None:
        if stage.on_gpu and not self._has_gpu:
            return "there is no GPU"
        if stage.needs in self._outcomes and not self._outcomes[stage.needs].is_ok:
            return f"{stage.needs} has failed"
        return None

    def _begin(self, stage: Stage, end: float) -> None:
        if (why := self._why_not(stage)) is not None:
            return self._done(Outcome(stage.name, f"not run: {why}"))
        wrong = [
            o.stage.removeprefix(SMOKE) for o in self._outcomes.values() if o.has_failed and SMOKE in o.stage
        ]
        seconds = end - time.monotonic()
        try:
            self._running.append(Running(stage, self._folder, self._environment, seconds, ",".join(wrong)))
        except FileNotFoundError as error:
            self._done(Outcome(stage.name, f"not available: {error.args[0]} is not installed"))

    def _wait(self, group: Sequence[Running], end: float) -> None:
        for running in group:
            outcome = running.outcome(end - time.monotonic())
            self._running.remove(running)
            self._done(outcome)

    def _done(self, outcome: Outcome) -> None:
        self._outcomes[outcome.stage] = outcome
        print(f"{outcome.stage}: {outcome.verdict}, {outcome.seconds} s", flush=True)
        self._keep(list(self._outcomes.values()))


def limit(group: Sequence[Stage]) -> float:
    """The seconds that are set aside for stages that run at once."""
    return max(stage.limit for stage in group)
