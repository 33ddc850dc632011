"""What pytest's, compute-sanitizer's and ncu's reports mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu.stage import Ended
from gpu.verdicts import counters, of_budget, of_profiler, of_sanitizer, of_tests

PASSED = '<testcase name="a"/>'
SKIPPED = '<testcase name="b"><skipped message="no GPU"/></testcase>'
FAILED = '<testcase name="c"><failure message="wrong"/></testcase>'
ERROR = '<testcase name="d"><error message="broken"/></testcase>'


def ended(folder: Path, status: int = 0, output: str = "", errors: str = "") -> Ended:
    return Ended(status, output, errors, folder)


@pytest.mark.parametrize(
    ("cases", "status", "verdict"),
    [
        ([PASSED, PASSED, SKIPPED], 0, "ok: 2 passed, 1 skipped"),
        ([SKIPPED, SKIPPED], 0, "failed: no test has passed, 2 were skipped, the first because: no GPU"),
        ([], 5, "failed: no test has passed, 0 were skipped"),
        ([PASSED, FAILED, ERROR], 1, "failed: 2 of 3 tests: c, d"),
        ([PASSED], 2, "failed: 1 tests passed, but the status is 2"),
    ],
)
def test_tests(tmp_path, cases, status, verdict):
    (tmp_path / "junit.xml").write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert of_tests(ended(tmp_path, status)) == verdict


def test_no_report_is_a_failure(tmp_path):
    assert of_tests(ended(tmp_path, 4)) == "failed: status 4 before any test"
    assert of_sanitizer(ended(tmp_path)).startswith("failed")
    assert of_profiler(ended(tmp_path)).startswith("failed")


@pytest.mark.parametrize(
    ("report", "status", "verdict"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0, "ok: ERROR SUMMARY: 0 errors"),
        (
            "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            0,
            "ok: RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
        ),
        (
            "========= Invalid __global__ read of size 16 bytes\n=========     at walk\n"
            "========= ERROR SUMMARY: 1 error\n",
            99,
            "failed: Invalid __global__ read of size 16 bytes",
        ),
        (
            "========= Error: Race reported between Write access and Read access [3 hazards]\n"
            "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n",
            0,
            "failed: Error: Race reported between Write access and Read access [3 hazards]",
        ),
        ("========= ERROR SUMMARY: 0 errors\n", 1, "failed: status 1: ValueError: because"),
        (
            "========= Error: Device not supported. Please refer to the manual\n",
            255,
            "not available: Error: Device not supported. Please refer to the manual",
        ),
    ],
)
def test_sanitizer(tmp_path, report, status, verdict):
    (tmp_path / "report.txt").write_text(f"========= COMPUTE-SANITIZER\n{report}")
    errors = "Traceback (most recent call last):\n  here\nValueError: because\nof this\n"
    assert of_sanitizer(ended(tmp_path, status, errors=errors)) == verdict


COUNTED = """==PROF== Connected to process 7
"ID","Kernel Name","sm__cycles_elapsed.max","smsp__inst_executed.sum"
"","","cycle","inst"
"0","walk","15,801,234","1,000"
"1","walk","1","1"
"""


def test_profiler(tmp_path):
    (tmp_path / "report.csv").write_text(COUNTED)
    assert counters(tmp_path)["sm__cycles_elapsed.max"] == "15,801,234 cycle"
    assert of_profiler(ended(tmp_path)) == "ok: 4 counters"
    assert of_profiler(ended(tmp_path, 1)).startswith("failed")
    (tmp_path / "report.csv").write_text("==PROF== Connected\n==WARNING== No kernels were profiled.\n")
    assert of_profiler(ended(tmp_path)) == "failed: status 0, 0 counters"
    (tmp_path / "report.csv").write_text("==ERROR== ERR_NVGPUCTRPERM - no permission\n")
    assert of_profiler(ended(tmp_path, 1)).startswith("not available: ERROR== ERR_NVGPUCTRPERM")


def test_budget(tmp_path):
    missing = "python: can't open file '/x/benchmarks/cuda_budget.py': [Errno 2] No such file or directory"
    assert of_budget(ended(tmp_path, 2, errors=missing)).startswith("not available")
    assert of_budget(ended(tmp_path, 1, '[{"name": "one image", "met": false}]')) == "ok"
    assert of_budget(ended(tmp_path, 1, errors="Traceback")) == "failed: status 1 and no rows"
