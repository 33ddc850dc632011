"""The budget's table, its judgement of predictions, and its kernels."""

from __future__ import annotations

import dataclasses
import json

import cuda_budget
import pytest
from cuda_budget import ROWS, Prediction, Row
from sass_simulator import RATES, Rates

from tests.sass_simulator.needs import needs_nvcc


def test_a_prediction_is_judged_by_what_must_be_reached():
    time, rate = Row("a", "ms", 9, 2.5), Row("b", "images/s", 25_000, 45_000, more_is_better=True)
    assert time.result(Prediction(9))["met"] and not time.result(Prediction(9.1))["met"]
    assert rate.result(Prediction(25_000))["met"] and not rate.result(Prediction(24_999))["met"]
    assert time.result(None)["met"] is None


def test_json_has_an_object_for_each_row(capsys, monkeypatch):
    def predict(cubin, rates: Rates) -> Prediction:
        assert rates is RATES["100"]
        return Prediction(123_456.0)

    monkeypatch.setattr(cuda_budget, "kernels", lambda arch, folder: folder)
    monkeypatch.setattr(cuda_budget, "ROWS", (dataclasses.replace(ROWS[0], predict=predict), *ROWS[1:]))
    cuda_budget.main(["--json", "--arch", "100"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [row.name for row in ROWS]
    assert all(set(row) == {"name", "unit", "must", "reach", "predicted", "met"} for row in rows)
    assert rows[0]["predicted"] == 123_456 and rows[0]["met"] is False
    cuda_budget.main(["--arch", "100"])
    assert "| cycles | 100,000 | – | 123,456 | **no** |" in capsys.readouterr().out


@needs_nvcc
@pytest.mark.parametrize("arch", ["90a"])
def test_the_kernels_compile_with_their_source_lines(arch, tmp_path):
    assert b".debug_line" in cuda_budget.kernels(arch, tmp_path).read_bytes()
