"""The examples of each --help and of docs/command_line.md work as written, one after the other."""

import re
import shlex
from pathlib import Path

import pytest

from pixelcnn_fast.__main__ import _parser
from pixelcnn_fast.native import native
from tests.cli.common import run
from tests.tiers import thorough

COMMANDS = ["", "demo", "sample", "complete", "nll", "bench", "receptive-field", "compile", "info"]
EXAMPLE = re.compile(
    r"^ +(?:\w+=\w+ )?(?:torchrun .*-m pixelcnn_fast|python -m pixelcnn_fast) (.*?)(?:   +.*)?$", re.M
)
SLOW = (
    "demo",
    "bench",
    "compile",
    "sample --runtime cuda",
    "sample -n 100 ",
)  # or they need a GPU, or processes
PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"


def examples(text: str) -> list[str]:
    return [example.strip() for example in EXAMPLE.findall(text)]


def help_of(command: str, capsys) -> str:
    assert run(*command.split(), "--help") == 0
    return str(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_examples_that_are_understood(command: str, capsys) -> None:
    found = examples(help_of(command, capsys))
    assert any(example.startswith(command) for example in found)
    for example in [*found, *examples(PAGE.read_text())]:
        _parser().parse_args(shlex.split(example))


@thorough
@pytest.mark.parametrize("command", [*COMMANDS, "page"])
def test_they_work(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    found = examples(PAGE.read_text() if command == "page" else help_of(command, capsys))
    for example in found:
        if not example.startswith(SLOW):
            assert run(*shlex.split(example)) == 0, example


@thorough
@pytest.mark.skipif(native() is None, reason="no compiled sampler")
@pytest.mark.parametrize("command", ["demo", "bench"])
def test_the_quickest_of_those_that_measure_work(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    found = [x for x in examples(help_of(command, capsys)) if "quick" in x or "--size 14" in x]
    assert len(found) == 1 and run(*shlex.split(found[0])) == 0
