"""The script that measures what a newcomer waits for: its status says whether a target is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace

import door_targets as script
import pytest


def fails(clone):
    raise subprocess.CalledProcessError(1, "make")


def too_long(clone):
    pytest.fail("a row that takes long is measured with --quick")


ROWS = {
    "met": script.Row("met", 2, 1, lambda clone: 1.5, is_quick=True),
    "missed": script.Row("missed", 2, 1, lambda clone: 3.0, is_quick=True),
    "failing": script.Row("failing", 2, 1, fails, is_quick=True),
    "long": script.Row("long", 2, 1, too_long),
}


@pytest.mark.parametrize(
    ("names", "status"),
    [(["met"], 0), (["met", "missed"], 1), (["missed"], 1), (["failing", "met"], 1), (["long", "met"], 0)],
)
def test_one_missed_target_is_enough_for_status_1(names, status, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "ROWS", ROWS)
    monkeypatch.setattr(script, "Clone", lambda folder, log: Namespace(log=log))
    monkeypatch.setattr(sys, "argv", ["it", "--quick", "--rows", *names, "--out", str(tmp_path)])
    assert script.main() == status
    (record,) = tmp_path.glob("*.json")
    assert [row["name"] for row in json.loads(record.read_text())["targets"]] == [
        n for n in names if n != "long"
    ]


def test_what_was_measured_is_kept_if_the_rest_is_interrupted(monkeypatch, tmp_path):
    def interrupted(clone):
        raise KeyboardInterrupt

    rows = {"met": ROWS["met"], "interrupted": script.Row("interrupted", 2, 1, interrupted, is_quick=True)}
    monkeypatch.setattr(script, "ROWS", rows)
    monkeypatch.setattr(script, "Clone", lambda folder, log: Namespace(log=log))
    monkeypatch.setattr(sys, "argv", ["it", "--quick", "--rows", *rows, "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    (record,) = tmp_path.glob("*.json")
    assert [row["name"] for row in json.loads(record.read_text())["targets"]] == ["met"]


@pytest.mark.parametrize("name", ["file", "file/results"])
def test_a_file_is_no_folder_for_results(monkeypatch, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["door_targets.py", "--out", str(tmp_path / name)])
    with pytest.raises(SystemExit):
        script.main()
    assert "is a file, or in one: name a folder" in " ".join(capsys.readouterr().err.split())
