"""All stages, one after the other, within the time that there is for them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpu.stage import Outcome, Running, Stage, begun


class Check:
    """Runs stages in their order; the first says whether there is a GPU.

    Together they take no longer than the sum of their limits: each may use what the later ones that will run do not
    need. keep: is given all outcomes whenever there is another one.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        environment: Mapping[str, str],
        folder: Path,
        keep: Callable[[list[Outcome]], None],
    ) -> None:
        self._stages, self._environment, self._folder, self._keep = stages, environment, folder, keep
        self._end = time.monotonic() + sum(stage.limit for stage in stages)
        self._outcomes: dict[str, Outcome] = {}
        self._has_gpu = True  # until the first stage has ended
        self._running: dict[str, Running] = {}

    def run(self) -> list[Outcome]:
        try:
            for index, stage in enumerate(self._stages):
                seconds = self._seconds(index)
                if (outcome := self._begun(stage, seconds)) is not None:
                    self._done(outcome)
                elif not stage.beside:
                    self._wait(stage.name, seconds)
                self._has_gpu = "gpu" in self._outcomes[self._stages[0].name].figures
            for name in list(self._running):
                self._wait(name, self._end - time.monotonic())
        except KeyboardInterrupt:
            self._done(Outcome("the rest", "failed: interrupted"))
        finally:
            for running in self._running.values():
                running.stop()
        return list(self._outcomes.values())

    def _seconds(self, index: int) -> float:
        """What a stage has: all that is left but the limits of the later ones that will run."""
        later = [stage.limit for stage in self._stages[index + 1 :] if self._why_not(stage) is None]
        return self._end - time.monotonic() - sum(later)

    def _why_not(self, stage: Stage) -> str | None:
        if stage.on_gpu and not self._has_gpu:
            return "there is no GPU"
        if stage.needs in self._outcomes and not self._outcomes[stage.needs].is_ok:
            return f"{stage.needs} has failed"
        return None

    def _begun(self, stage: Stage, seconds: float) -> Outcome | None:
        """Begins a stage -> None, or the outcome of one that can't begin."""
        if (why := self._why_not(stage)) is not None:
            return Outcome(stage.name, f"not run: {why}")
        found = begun(stage, self._folder, self._environment, seconds)
        if isinstance(found, Outcome):
            return found
        self._running[stage.name] = found
        return None

    def _wait(self, name: str, seconds: float) -> None:
        outcome = self._running[name].outcome(seconds)
        del self._running[name]
        self._done(outcome)

    def _done(self, outcome: Outcome) -> None:
        self._outcomes[outcome.stage] = outcome
        print(f"{outcome.stage}: {outcome.verdict}, {outcome.seconds} s", flush=True)
        self._keep(list(self._outcomes.values()))
