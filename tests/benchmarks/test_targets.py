"""The tables of targets: verdicts, checks, and what is left of a table of which some cases fail."""

import json
import math
import subprocess
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import targets as script
import torch
from cases import acceleration, door, ops
from measuring import (
    Found,
    Settings,
    Target,
    check,
    compare_checked,
    factor,
    faster,
    interleaved,
    paired_ratios,
    ratio,
)

from pixelcnn_fast.bench.checks import Check
from pixelcnn_fast.bench.contestants import Result
from pixelcnn_fast.bench.workload import random_model, workload
from pixelcnn_fast.errors import CheckFailed


def target(value: float | None, **how: Any) -> Target:
    samples = [] if value is None else [value, value + 1]
    return Target("it", 2.0, 4.0, value, samples, factor, **how)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(1.9, "no"), (math.nan, "no"), (2.0, "yes"), (3.9, "yes"), (4.0, "yes, reached"), (5.0, "yes, reached")],
)
def test_verdicts(value: float, verdict: str) -> None:
    assert target(value).verdict() == verdict
    assert Target("it", -2.0, -4.0, -value, [], factor, at_most=True).verdict() == verdict


def test_a_strict_bound_is_not_met_by_itself() -> None:
    assert target(2.0, strict=True).verdict() == "no"
    assert target(2.1, strict=True).verdict() == "yes"
    assert target(4.0, strict=True).verdict() == "yes, reached"


def test_contestants_take_turns() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ab" + "abab" and {name: len(s) for name, s in seconds.items()} == {
        "a": 2,
        "b": 2,
    }


def test_ratios_are_of_the_rounds_that_both_took_part_in() -> None:
    slow, fast = Result("reference", 1, 4, 4, [6.0, 8.0]), Result("cpu", 1, 4, 4, [2.0, 1.0, 5.0])
    assert paired_ratios(slow, fast) == [3, 8]


def test_wrong_images_end_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Result("cpu", 2, 4, 4, [1.0], Check(8, 8, 0.3))
    monkeypatch.setattr("measuring.compare", lambda *_, **__: [wrong])
    with pytest.raises(CheckFailed, match="cpu, 2 at once"):
        compare_checked(workload(random_model(input_channels=1), 2, 2, 2), ["cpu"], 1)


def test_rows() -> None:
    assert target(3.0).row() == ["it", ">= 2.00×", "4.00×", "3.00×", "3.00× – 4.00×", "yes"]
    assert target(3.0, at_most=True).row()[1] == "<= 2.00×"
    assert target(3.0, at_most=True, strict=True).row()[1] == "< 2.00×"
    assert Target("it", 2.0, 4.0, 3.0, [3.0], factor).row()[4] == ""  # one run has no spread


def test_what_is_not_measured_is_not_met() -> None:
    found = target(None, needs="--port FOLDER")
    assert found.row() == ["it", ">= 2.00×", "4.00×", "", "", "not measured: needs --port FOLDER"]


@pytest.mark.parametrize(
    ("value", "text"), [(1.15, "1.15×"), (1.3, "1.30×"), (12.4, "12×"), (1234, "1,234×")]
)
def test_factors_are_shown_as_exactly_as_bounds(value: float, text: str) -> None:
    assert factor(value) == text


def test_a_ratio_is_of_medians_and_of_rounds() -> None:
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0], 10) == (20.0, [20.0, 30.0, 20.0])


def test_other_results_are_no_gain() -> None:
    """A value that is small beside the largest of all may differ by its rounding."""
    check("it", [torch.ones(2), torch.zeros(2)], [torch.ones(2), torch.full((2,), 9e-6)])
    for wrong in (1.01, float("nan")):
        with pytest.raises(CheckFailed, match="it: result 1 differs"):
            check("it", [torch.ones(2), torch.ones(2)], [torch.ones(2), torch.tensor([1, wrong])])
    check("it", [torch.tensor(9.0)], [torch.tensor(9.001)])
    with pytest.raises(CheckFailed):  # a loss is no measure for gradients
        check(
            "it", [torch.tensor(9.0), torch.full((2,), 1e-3)], [torch.tensor(9.0), torch.full((2,), 1.1e-3)]
        )
    works = {"plain": lambda: [torch.ones(2)], "ours": lambda: [torch.zeros(2)]}
    with pytest.raises(CheckFailed, match="it, ours"):
        faster("it", works, 1, 2, repeats=1)


def test_ours_is_compared_with_the_fastest_of_the_others(monkeypatch) -> None:
    seconds = {"loop": [8.0], "compiled loop": [6.0], "ours": [2.0]}
    monkeypatch.setattr("measuring.interleaved", lambda works, repeats: seconds)
    found = faster("it", dict.fromkeys(seconds, lambda: [torch.ones(1)]), 1, 2, repeats=1)
    assert found.value == 3.0 and found.name == "it (loop 8.00 s → compiled loop 6.00 s → ours 2.00 s)"


@pytest.mark.parametrize(
    "case",
    [
        lambda on: ops.convolution(on, 4, 3, "B", 5),
        lambda on: ops.block(on, 4, 3, "B", 5),
        lambda on: ops.gate(on, 4, 5),
        lambda on: ops.likelihood(on, 2, 5),
        lambda on: ops.mixture(on, 2, 5),
    ],
    ids=["convolution", "block", "gate", "likelihood", "mixture"],
)
def test_contestants_of_an_op_agree(case: Callable[[ops.On], ops.Case], request) -> None:
    found = case(ops.On(2))
    for name in found.contestants:
        check(name, found.forward(ops.PLAIN)(), found.forward(name)())
        if "block" not in request.node.name:  # which has no gradient
            check(name, found.both_ways(ops.PLAIN)(), found.both_ways(name)())


# -- whole tables


def met() -> Found:
    yield Target("met", 2, 1, 1.5, [1.5], factor, at_most=True)


def missed() -> Found:
    yield Target("missed", 2, 1, 3.0, [3.0], factor, at_most=True)


def failing() -> Found:
    yield from met()
    raise subprocess.CalledProcessError(1, "make")


def interrupted() -> Found:
    raise KeyboardInterrupt


@pytest.fixture
def table(monkeypatch, tmp_path) -> Callable[..., int]:
    """Measures a table of such cases, in tmp_path -> the status."""
    monkeypatch.setattr(script.torch, "set_num_threads", lambda n: None)

    def run(cases: dict[str, Callable[[], Found]], *options: str) -> int:
        module = Namespace(TITLE="It", cases=lambda how: cases)
        monkeypatch.setattr(script.importlib, "import_module", lambda name: module)
        return script.main(["door", "--out", str(tmp_path), *options])

    return run


def written(folder: Path) -> tuple[list[str], str]:
    """The names of the targets, and the text."""
    (record,) = folder.glob("*.json")
    rows = json.loads(record.read_text())["targets"]
    return [row["name"] for row in rows], record.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("cases", "status", "rows"),
    [
        ({"a": met}, 0, ["met"]),
        ({"a": met, "b": missed}, 1, ["met", "missed"]),
        ({"a": failing, "b": missed, "c": met}, 1, ["met", "missed", "met"]),
    ],
)
def test_one_missed_target_is_enough_for_status_1(cases, status, rows, table, tmp_path, capsys) -> None:
    """A case that fails leaves its rows so far and the others."""
    assert table(cases) == status
    names, text = written(tmp_path)
    assert names == rows
    if cases["a"] is failing:
        assert "Failed: a: CalledProcessError: Command 'make'" in text
        assert "CalledProcessError" in capsys.readouterr().err


def test_what_was_measured_is_kept_if_the_rest_is_interrupted(table, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        table({"a": met, "b": interrupted})
    assert written(tmp_path)[0] == ["met"]


def test_some_cases_of_a_table(table, tmp_path, capsys) -> None:
    """Those that have the text in their names, or the one of that name; partial results have a file of their own."""
    cases = {"test": met, "test-all": missed}
    assert table(cases, "--only", "all") == 1 and written(tmp_path)[0] == ["missed"]
    assert next(tmp_path.glob("*.json")).stem.endswith("-door-all")
    next(tmp_path.glob("*.json")).unlink()
    assert table(cases, "--only", "test") == 0 and written(tmp_path)[0] == ["met"]
    with pytest.raises(SystemExit):
        table(cases, "--only", "other")
    assert "choose from test, test-all" in capsys.readouterr().err


def test_for_what_there_is_no_time_is_listed(table, tmp_path) -> None:
    assert table({"a": met, "b": met}, "--within", "0") == 0
    assert "Left out, for want of time: a; b." in written(tmp_path)[1]


@pytest.mark.parametrize("name", ["file", "file/results"])
def test_a_file_is_no_folder_for_results(tmp_path, capsys, name) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        script.main(["door", "--out", str(tmp_path / name)])
    assert "is a file, or in one: name a folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", script.TABLES)
def test_each_table_has_cases_and_a_title(name, tmp_path) -> None:
    module = script.importlib.import_module(f"cases.{name}")
    how = Settings(2, 2, True, "cpu", None, tmp_path / "log")
    assert module.TITLE and module.cases(how)


# -- cases


def test_with_quick_what_takes_long_is_left_out(tmp_path) -> None:
    how = Settings(1, 2, True, "cpu", None, tmp_path / "log")
    assert not {"demo", "test", "test-all"} & door.cases(how).keys()
    row = door.Row("met", 2, 1, lambda clone: 1.5)
    (found,) = door.measured(row, Namespace())  # type: ignore[arg-type]  # the row asks nothing of the clone
    assert isinstance(found, Target) and found.verdict() == "yes" and found.at_most


@pytest.mark.parametrize("absent", ["accelerated", "accelerated with inductor"])
def test_a_mode_that_fails_leaves_the_other(absent) -> None:
    seconds = {
        "plain": [6.0],
        "torch.compile": [4.0],
        "accelerated": [2.0],
        "accelerated with inductor": [2.0],
    }
    del seconds[absent]
    found = list(acceleration.judged("it", seconds, "", ((1.0, 2.0), (1.0, 2.0))))
    assert [target.value for target in found] == [3.0, 2.0] and all(
        "fails" in target.name for target in found
    )
    assert list(acceleration.judged("it", {"plain": [6.0]}, "", ((1.0, 2.0), None))) == []
