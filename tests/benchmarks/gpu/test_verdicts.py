"""What pytest's, compute-sanitizer's and ncu's reports mean."""

import json
from pathlib import Path

import pytest
from gpu.stage import Ended
from gpu.verdicts import counters, of_budget, of_profiler, of_rates, of_sanitizer, of_tests


def ended(folder: Path, status: int = 0, output: str = "", errors: str = "") -> Ended:
    return Ended(status, output, errors, folder)


def line(name: str, outcome: str, **more: object) -> dict[str, object]:
    return {"name": f"tests/test_it.py::{name}", "outcome": outcome, "at": 100.0, "why": "", **more}


PASSED, SKIPPED = line("a", "passed"), line("b", "skipped", why="no GPU")
FAILED, ERROR = line("c", "failed", why="wrong: 1"), line("d", "failed", why="broken")


@pytest.mark.parametrize(
    ("lines", "status", "verdict"),
    [
        ([PASSED, line("e", "passed"), SKIPPED], 0, "ok: 2 passed, 1 skipped"),
        (
            [SKIPPED, line("e", "skipped")],
            0,
            "failed: no test has passed, 2 were skipped, the first because: no GPU",
        ),
        ([], 5, "failed: status 5 before any test"),
        ([line("c", "begun"), FAILED, ERROR, PASSED], 1, "failed: 2 of 3 tests, the first: c: wrong: 1"),
        (
            [ERROR, FAILED, line("e", "begun"), {"tests": 9}],
            None,
            "failed: 2 of 3 tests, 7 not run, the first: d: broken",
        ),
        (
            [line("c", "passed"), FAILED],
            1,
            "failed: 1 of 1 tests, the first: c: wrong: 1",
        ),  # as it was torn down
        ([PASSED], 2, "failed: 1 tests passed, but the status is 2"),
        ([{"tests": 9}, PASSED, SKIPPED], None, "ok so far: 1 passed, 1 skipped, 7 not run in 30 s"),
        (
            [{"tests": 9}, PASSED, line("e", "begun")],
            None,
            "ok so far: 1 passed, 0 skipped, 8 not run in 30 s",
        ),
        (
            [{"tests": 2}, PASSED, line("e", "begun", at=75.0)],
            None,
            "failed: not finished in 30 s in e; 1 passed, 1 not run",
        ),
        ([{"tests": 2}, PASSED, line("e", "begun")], -11, "failed: status -11 in e; 1 passed, 1 not run"),
        ([{"tests": 9}], None, "failed: not finished in 30 s before any test"),
    ],
)
def test_tests(tmp_path, lines, status, verdict):
    """Those that are at work when their time ends have begun 5 s before, and may take 20; one did 30 s before."""
    (tmp_path / "tests.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert of_tests(Ended(status, "", "", tmp_path, 30.0, 105.0)) == verdict


def test_lines_that_are_cut_off_or_of_no_kind_are_left_out(tmp_path):
    kinds = [*map(json.dumps, ({"tests": 9}, PASSED, None, line("f", "rerun"))), "", '{"name": "tests/te']
    (tmp_path / "tests.jsonl").write_text("\n".join(kinds))
    verdict = of_tests(Ended(None, "", "", tmp_path, 30.0, 105.0))
    assert verdict == "ok so far: 1 passed, 0 skipped, 7 not run in 30 s"


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


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        ("", "ok so far: 2 cases in 30 s"),
        (
            "========= Error: process didn't terminate\n========= ERROR SUMMARY: 0 errors\n",
            "ok so far: 2 cases in 30 s",
        ),
        (
            "========= Invalid __global__ read of size 16 bytes\n",
            "failed: Invalid __global__ read of size 16 bytes",
        ),
    ],
)
def test_a_sanitizer_that_is_cut_off(tmp_path, report, verdict):
    (tmp_path / "report.txt").write_text(f"========= COMPUTE-SANITIZER\n{report}")
    cut_off = Ended(None, '{"bf16": "right"}\n{"cluster": "right"}\n', "", tmp_path, 30.0)
    assert of_sanitizer(cut_off) == verdict
    if not report:
        assert of_sanitizer(cut_off._replace(output="")) == "failed: not finished in 30 s"


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
    rows = '{"budget": {"one image": {"met": false}}}'
    assert of_budget(ended(tmp_path, 0, rows)) == "ok"
    assert of_budget(ended(tmp_path, 0, rows, errors="of others\n")) == "ok: of others"
    assert (
        of_budget(ended(tmp_path, 0, errors="not recorded: do it\n")) == "not available: not recorded: do it"
    )
    assert of_budget(ended(tmp_path, 1, errors="Traceback")) == "failed: status 1: Traceback"


def test_rates(tmp_path):
    assert of_rates(ended(tmp_path, 1, errors="nvcc is missing\n")) == "not available: nvcc is not installed"
    assert (
        of_rates(ended(tmp_path, 1, errors="error")) == "failed: status 1: error"
        and of_rates(ended(tmp_path)) == "ok"
    )
