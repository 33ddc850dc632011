"""A plugin of pytest, -p gpu.journal --journal FILE: a line for each test as it begins and ends, so that a run that is
cut off leaves its results. After an error that the GPU does not recover from, no further test is begun."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--journal", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Journal(config.getoption("--journal"), hasattr(config, "workerinput")))


class Journal:
    """in_worker: of xdist, whose main process writes the results."""

    def __init__(self, path: Path, in_worker: bool) -> None:
        self._path, self._in_worker = path, in_worker
        self._session: pytest.Session | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._session = session
        if items := getattr(session, "items", None):
            self._write(tests=len(items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if not self._in_worker:
            self._write(name=nodeid, outcome="begun", at=time.time())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._in_worker and (report.when == "call" or report.outcome != "passed"):
            self._write(name=report.nodeid, outcome=report.outcome, why=why(report))
        if report.failed and self._session is not None and (lost := why_lost()):
            self._session.shouldstop = f"the GPU is lost: {lost}"

    def _write(self, **line: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def why(report: pytest.TestReport) -> str:
    """The first line of what it failed by, or was skipped for."""
    if isinstance(report.longrepr, tuple):  # file, line, reason
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr or "")).split("\n")[0]


def why_lost() -> str:
    """The error that every call of CUDA meets from now on; '' if there is none."""
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).split("\n")[0]
    return ""
