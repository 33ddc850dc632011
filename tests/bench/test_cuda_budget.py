"""The budget's table, and its judgement of predictions."""

import dataclasses
import json

import cuda_budget
import pytest
from column_steps import ColumnSteps, Refused
from cuda_budget import ROWS, Prediction, Row


def predict(steps: ColumnSteps) -> Prediction:
    return Prediction(123_456.0)


def refuse(steps: ColumnSteps) -> Prediction:
    raise Refused("the program computes whole rows")


def test_a_prediction_is_judged_by_what_must_be_reached():
    time = Row("a", "ms", 9, 2.5, predict)
    rate = Row("b", "images/s", 25_000, 45_000, predict, more_is_better=True)
    assert time.result(Prediction(9))["met"] and not time.result(Prediction(9.1))["met"]
    assert rate.result(Prediction(25_000))["met"] and not rate.result(Prediction(24_999))["met"]
    assert time.result(None)["met"] is None


def test_json_has_an_object_for_each_row(capsys, monkeypatch):
    rows = [dataclasses.replace(row, predict=refuse) for row in ROWS]
    rows[0] = dataclasses.replace(ROWS[0], predict=predict)
    monkeypatch.setattr(cuda_budget, "ROWS", rows)
    cuda_budget.main(["--json", "--arch", "100"])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [row["name"] for row in found] == [row.name for row in ROWS]
    assert all(set(row) == {"name", "unit", "must", "reach", "predicted", "met"} for row in found)
    assert found[0]["predicted"] == 123_456 and found[0]["met"] is False
    assert found[1]["predicted"] is None and "one image: no prediction, the program computes" in printed.err
    cuda_budget.main(["--arch", "100"])
    out = capsys.readouterr().out
    assert out.startswith("| B200, bf16 |") and "| cycles | 100,000 | – | 123,456 | **no** |" in out


def test_what_does_not_compile_is_no_missing_prediction(monkeypatch):
    def fail(steps: ColumnSteps) -> Prediction:
        raise RuntimeError("error: expected a ';'")

    monkeypatch.setattr(cuda_budget, "ROWS", [dataclasses.replace(ROWS[0], predict=fail)])
    with pytest.raises(RuntimeError, match="expected a ';'"):
        cuda_budget.main([])
