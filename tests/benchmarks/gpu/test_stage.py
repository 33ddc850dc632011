"""Stages as processes: what is kept of their output, and what is left of them when their time is over."""

import os
import sys
import time
from pathlib import Path

import pytest
from gpu import stage
from gpu.stage import Outcome, Running, Stage, environment

from tests.tiers import thorough

ROOT = Path(__file__).parents[3]


def outcome_of(code: str, folder: Path, seconds: float = 60.0) -> Outcome:
    program = folder / "program.py"
    program.write_text(code)
    return outcome(Stage("it", f"{{python}} {program}", 0.0), folder, seconds)


def outcome(stage: Stage, folder: Path, seconds: float = 60.0) -> Outcome:
    return Running(stage, folder, environment(ROOT, sys.executable), seconds).outcome(seconds)


def test_figures_survive_warnings_and_what_else_is_printed(tmp_path):
    found = outcome_of(
        """
import sys, warnings
print('{"a": 1, "b": 2}')
print("compiling {")
print('{"b": 3}')
warnings.warn("beware")
print("[1] done", file=sys.stderr)
""",
        tmp_path,
    )
    assert found.verdict == "ok" and found.figures == {"a": 1, "b": 3} and not found.tail


def test_what_can_t_be_judged_has_failed(tmp_path):
    def judge(ended: stage.Ended) -> str:
        raise KeyError("rates")

    found = outcome(Stage("it", "{python} -c 1", 0.0, judge), tmp_path)
    assert found.verdict == "failed: it can't be judged (KeyError: 'rates')"


def test_a_failure_keeps_its_figures_and_the_end_of_both_streams(tmp_path):
    found = outcome_of("import sys\nprint('{\"a\": 1}')\nprint('here')\nsys.exit('because')", tmp_path)
    assert found.verdict == "failed: status 1: because" and found.has_failed
    assert found.figures == {"a": 1} and found.tail[-2:] == ["here", "because"]


def test_the_error_is_told_though_its_message_goes_on(tmp_path):
    found = outcome_of(
        """
try:
    {}["first"]
except KeyError as error:
    raise ValueError("because\\nof this:\\n  that\\nand more") from error
""",
        tmp_path,
    )
    assert found.verdict == "failed: status 1: ValueError: because" and found.tail[-1] == "and more"


@thorough
def test_the_end_of_its_time_leaves_figures_and_no_process(tmp_path, monkeypatch):
    """A process that ignores the interrupt, and one that it has started, which holds its output open."""
    monkeypatch.setattr(stage, "GRACE", 0.2)
    begin = time.monotonic()
    found = outcome_of(
        """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(json.dumps({"child": child.pid}), flush=True)
time.sleep(60)
""",
        tmp_path,
        seconds=5.0,
    )
    assert found.verdict == "failed: not finished in 5 s" and time.monotonic() - begin < 20
    ends = time.monotonic() + 5  # a busy machine takes its time to bury it
    while is_running(found.figures["child"]) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not is_running(found.figures["child"])


def is_running(pid: int) -> bool:
    """A zombie, which nobody may collect in a container, has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupted_process_may_write_what_it_has(tmp_path):
    program = """
import time
try:
    time.sleep(60)
finally:
    print('{"so far": 7}')
"""
    found = outcome_of(program, tmp_path, seconds=stage.GRACE + 1)
    assert found.has_failed and found.figures == {"so far": 7}


def test_a_missing_program_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-tool"):
        outcome(Stage("it", "no-such-tool -x", 1.0), tmp_path)


def test_the_environment_has_the_sources_and_none_of_the_librarys_settings(monkeypatch):
    monkeypatch.setenv("PIXELCNN_FAST_NATIVE", "0")
    monkeypatch.setenv("CUDA_HOME", "/some/cuda")
    found = environment(ROOT, sys.executable)
    assert not [name for name in found if name.startswith("PIXELCNN_FAST_")]
    assert found["PYTHONPATH"].split(os.pathsep)[:2] == [str(ROOT), str(ROOT / "benchmarks")]
    assert "/some/cuda/bin" in found["PATH"].split(os.pathsep)
