"""Flags between blocks: no schedule shows that a release or an acquire is missing, but the thread sanitizer does."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "build" / "emulation-thread" / "check_cuda"
FLAGS = ("publish", "arrive", "observe")
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="not built: run make sanitize-thread")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    quiet = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=quiet)


def test_every_flag_orders_what_it_announces():
    sites = [line.split() for line in run("list").stdout.splitlines()]
    flags = [site for site in sites if site[0] in FLAGS]
    assert {name for name, _ in flags} == set(FLAGS)
    for name, line in flags:
        done = run("without", name, line)
        assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stderr, f"{name} in line {line}"
