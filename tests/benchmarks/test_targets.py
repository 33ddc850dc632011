"""What the targets' scripts share: verdicts, and the table of the ops."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import ops_table
import pytest
from targets import Target, ratio

from pixelcnn_fast.bench import report


def target(value: float, **how: bool) -> Target:
    return Target("it", 2.0, 4.0, value, [value, value + 1], report.factor, **how)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(1.9, "no"), (2.0, "yes"), (3.9, "yes"), (4.0, "yes, reached"), (5.0, "yes, reached")],
)
def test_verdicts(value: float, verdict: str) -> None:
    assert target(value).verdict() == verdict
    assert Target("it", -2.0, -4.0, -value, [], report.factor, at_most=True).verdict() == verdict


def test_a_strict_bound_is_not_met_by_itself() -> None:
    assert target(2.0, strict=True).verdict() == "no"
    assert target(2.1, strict=True).verdict() == "yes"
    assert target(4.0, strict=True).verdict() == "yes, reached"


def test_rows() -> None:
    assert target(3.0).row() == ["it", ">= 2×", "4×", "3×", "3× – 4×", "yes"]
    assert target(3.0, at_most=True).row()[1] == "<= 2×"
    assert target(3.0, at_most=True, strict=True).row()[1] == "< 2×"
    assert Target("it", 2.0, 4.0, 3.0, [3.0], report.factor).row()[4] == ""  # one run has no spread


def test_a_ratio_is_of_medians_and_of_rounds() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0], 10) == (20.0, [20.0, 30.0, 20.0])


def entry(group: str, contestant: str, median: float) -> dict[str, object]:
    stats = {"median": median, "min": median / 2, "max": 2 * median}
    return {"group": group, "extra_info": {"contestant": contestant}, "stats": stats}


def test_the_table_of_the_ops_compares_within_a_group(tmp_path: Path, monkeypatch) -> None:
    entries = [
        entry("conv, 3x3, cpu", "plain", 8.0),
        entry("gate, cpu", "fast", 1.0),
        entry("gate, cpu", "plain", 5.0),
        entry("conv, 3x3, cpu", "fast", 4.0),
        {**entry("another", "plain", 1.0), "extra_info": {}},
    ]
    (tmp_path / "ops.json").write_text(json.dumps({"benchmarks": entries}))
    monkeypatch.setattr(ops_table.pictures, "chart", lambda *_, **__: None)
    monkeypatch.setattr(sys, "argv", ["it", str(tmp_path / "ops.json"), "--out", str(tmp_path / "out")])
    assert ops_table.main() == 0
    with (tmp_path / "out" / "ops.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ops_table.HEADER
    assert [(op, name, *map(float, numbers)) for _, op, name, *numbers in rows] == [
        ("conv, 3x3", "plain", 8, 4, 16, 1),
        ("conv, 3x3", "fast", 4, 2, 8, 2),
        ("gate", "fast", 1, 0.5, 2, 5),
        ("gate", "plain", 5, 2.5, 10, 1),
    ]
    assert "| 5×" in (tmp_path / "out" / "ops.md").read_text()


def test_a_file_without_ops_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "ops.json").write_text(json.dumps({"benchmarks": []}))
    monkeypatch.setattr(sys, "argv", ["it", str(tmp_path / "ops.json"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        ops_table.main()
    assert "holds no benchmark of an op" in capsys.readouterr().err
