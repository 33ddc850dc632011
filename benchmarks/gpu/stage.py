"""A stage of the check: a process with a deadline, what it measured, and the verdict on it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

OK = "ok"
GRACE = 3.0  # seconds that a stage has to write what it measured, once it is interrupted
TAIL = 15  # lines of output that are kept of a stage that is not ok


class Ended(NamedTuple):
    """status: the process's, or None if it was cut off; output, errors: what it printed; folder: where it wrote files;
    seconds: how long it has run; at: when it ended, by the clock of time.time()."""

    status: int | None
    output: str
    errors: str
    folder: Path
    seconds: float = 0.0
    at: float = 0.0


def by_status(ended: Ended) -> str:
    """If it is not 0, with the error that ended the process, or else the last that it has said."""
    if ended.status == 0:
        return OK
    if ended.status is None:
        return f"failed: not finished in {ended.seconds:.0f} s"
    said = (ended.errors.strip() or ended.output.strip()).splitlines() or ["and nothing said"]
    return f"failed: status {ended.status}: {(raised(said) or said[-1])[:120]}"


def raised(said: Sequence[str]) -> str | None:
    """The first line of the error at the end of the last traceback, whose message may go on for lines."""
    begins = [i for i, line in enumerate(said) if line.startswith("Traceback (most recent call last)")]
    after = said[begins[-1] + 1 :] if begins else ()
    return next((line for line in after if line.strip() and not line.startswith(" ")), None)


@dataclass(frozen=True)
class Stage:
    """command: as in a shell; {python} and {folder} stand for this Python and the stage's folder, {early} for the
    seconds within which it should begin what may take a minute, {failed} for the cases of the smoke test that have
    failed. Figures are what it prints as JSON objects, one a line, so that a stage that is cut off keeps those it has,
    and what is found in its folder.
    limit: seconds that are set aside for it. judge: the verdict on a process that ended, which starts with 'ok',
    'failed' or 'not available'. needs: a stage without which it makes no sense. on_gpu: it makes sense on a GPU
    only. beside: it runs beside all others, on the CPU, until their end.
    """

    name: str
    command: str
    limit: float
    judge: Callable[[Ended], str] = by_status
    found: Callable[[Path], Mapping[str, Any]] = lambda folder: {}
    needs: str = ""
    on_gpu: bool = True
    beside: bool = False


@dataclass(frozen=True)
class Outcome:
    """verdict: 'ok', perhaps 'so far' if there was no time for all of it; 'failed', 'not available' (a tool is missing
    or refuses the machine) or 'not run', and why."""

    stage: str
    verdict: str
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    tail: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        return self.verdict.startswith(OK)

    @property
    def has_failed(self) -> bool:
        return self.verdict.startswith("failed")


class Running:
    """A stage's process, whose files go to a folder of its own in the one that is given. It has a process group of its
    own, so that what it started ends with it."""

    def __init__(
        self, stage: Stage, folder: Path, environment: Mapping[str, str], seconds: float, failed: str = ""
    ) -> None:
        """Raises FileNotFoundError if there is no such program."""
        self.stage, self._folder, self._began = stage, folder / slug(stage.name), time.monotonic()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        early = f"{max(seconds - 60, 1):.0f}"
        places = dict(python=environment["PYTHON"], folder=str(self._folder), early=early, failed=failed)
        command = [word.format(**places) for word in shlex.split(stage.command)]
        program = shutil.which(command[0], path=environment["PATH"])
        if program is None:
            raise FileNotFoundError(command[0])
        with self._file("output").open("wb") as output, self._file("errors").open("wb") as errors:
            self._process = subprocess.Popen(
                [program, *command[1:]],
                cwd=environment["PWD"],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def outcome(self, seconds: float) -> Outcome:
        """Waits for the process for so long, and then ends it."""
        in_time = self._ends_within(max(seconds - GRACE, 0.0))
        self.stop()
        took = time.monotonic() - self._began
        output, errors = (self._file(name).read_text(errors="replace") for name in ("output", "errors"))
        figures = printed_figures(output)
        status = self._process.returncode if in_time else None
        try:
            figures.update(self.stage.found(self._folder))
            verdict = self.stage.judge(Ended(status, output, errors, self._folder, took, time.time()))
        except Exception as error:  # what was written may be cut off anywhere; other stages go on
            verdict = f"failed: it can't be judged ({type(error).__name__}: {error})"
        tail = [] if verdict.startswith(OK) else [*output.splitlines()[-TAIL:], *errors.splitlines()[-TAIL:]]
        return Outcome(self.stage.name, verdict, round(took, 1), figures, [line[:300] for line in tail])

    def stop(self) -> None:
        """Interrupts the process if it runs, kills it if that does not help, and then whatever it left running."""
        if self._process.poll() is None:
            self._send(signal.SIGINT)
            self._ends_within(GRACE)
        self._send(signal.SIGKILL)
        self._ends_within(GRACE)  # a process that waits for a driver may not even end now

    def _ends_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _send(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def _file(self, name: str) -> Path:
        return self._folder / name


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def printed_figures(output: str) -> dict[str, Any]:
    """All JSON objects among the lines, as one."""
    figures: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                figures.update(json.loads(line))
            except ValueError:
                continue
    return figures


def environment(root: Path, python: str) -> dict[str, str]:
    """What stages see: no settings of this library, its sources, and the tools of the environment and of CUDA."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIXELCNN_FAST_")}
    cuda = [Path(kept[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if kept.get(name)]
    tools = [*cuda, Path("/usr/local/cuda/bin"), *sorted(Path("/opt/nvidia/nsight-compute").glob("*"))]
    paths = [str(Path(python).parent), *filter(None, [kept.get("PATH")]), *map(str, tools)]
    return {
        **kept,
        "PATH": os.pathsep.join(paths),
        "PYTHONPATH": os.pathsep.join(
            map(str, [root, root / "benchmarks", *filter(None, [kept.get("PYTHONPATH")])])
        ),
        "PYTHONUNBUFFERED": "1",
        "PYTHON": python,
        "PWD": str(root),
    }
