"""What is written of tests as they run, also if they are cut off, crash, or lose the GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu.stage import Outcome, Running, Stage, environment
from gpu.verdicts import of_tests

from tests.tiers import thorough

ROOT = Path(__file__).parents[3]
TESTS = """
import os, time
import pytest, torch

def test_right(): pass

@pytest.mark.skip(reason="no GPU")
def test_skipped(): pass

def test_next():
    {next}

def test_last(): pass
"""


def outcome(folder: Path, code: str, seconds: float = 60.0) -> Outcome:
    (folder / "test_it.py").write_text(TESTS.format(next=code))
    command = f"{{python}} -m pytest -q -c {os.devnull} --rootdir {folder} -p no:cacheprovider -p gpu.journal"
    stage = Stage("it", f"{command} --journal {{folder}}/tests.jsonl {folder}/test_it.py", seconds, of_tests)
    return Running(stage, folder, environment(ROOT, sys.executable), seconds).outcome(seconds)


LOSES = """torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = test_next
    raise RuntimeError('CUDA error: an illegal access\\nand more')"""
VERDICTS = {
    LOSES: "failed: 1 of 3 tests, 1 not run, the first: test_next: RuntimeError: CUDA error: an illegal access",
    "os._exit(3)": "failed: status 3 in test_next; 1 passed, 2 not run",
    "assert 1 == 2, 'because'": "failed: 1 of 4 tests, the first: test_next: AssertionError: because",
    "pass": "ok: 3 passed, 1 skipped",
}


@thorough
@pytest.mark.parametrize("code", VERDICTS, ids=["lost", "crash", "wrong", "right"])
def test_the_first_that_failed_is_named(tmp_path, code):
    assert outcome(tmp_path, code).verdict == VERDICTS[code]


@thorough
def test_a_run_that_is_cut_off_keeps_its_results(tmp_path, monkeypatch):
    found = outcome(tmp_path, "time.sleep(60)", 12.0)
    assert found.verdict.startswith("ok so far: 1 passed, 1 skipped, 2 not run in ") and not found.has_failed
    assert "test_next" in (tmp_path / "it" / "tests.jsonl").read_text()


@thorough
def test_workers_leave_the_writing_to_the_main_process(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(TESTS.format(next="assert False"))
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), "-n", "2"]
    plugin = ["-p", "no:cacheprovider", "-p", "gpu.journal", "--journal", str(tmp_path / "lines")]
    subprocess.run(
        [*command, *plugin, str(tmp_path)],
        env=environment(ROOT, sys.executable),
        capture_output=True,
        check=False,
    )
    lines = (tmp_path / "lines").read_text()
    assert lines.count('"outcome": "failed"') == lines.count('"outcome": "skipped"') == 1
    assert '{"tests": 4}' in lines
