"""What the linters can't see: their own settings."""

import re
from pathlib import Path

from tests.test_build import ROOT, files_of_a_clone

PYTHON = sorted(name for name in files_of_a_clone() if name.endswith(".py"))


def test_every_linter_is_pinned() -> None:
    extra = re.search(r"^lint = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra
    tools = re.findall(r'"([^"]+)"', extra[1])
    constraints = (ROOT / "constraints-dev.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in constraints if "==" in line}
    assert tools and set(tools) == pinned


def test_the_type_checker_skips_nothing() -> None:
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.mypy]")[2].partition("\n[tool.")[0]
    own, _, overrides = settings.partition("[[tool.mypy.overrides]]")
    assert "warn_unused_ignores = true" in own and "ignore_missing_imports" not in own
    assert re.findall(r"^\w+", overrides, re.MULTILINE) == ["module", "ignore_missing_imports"]
    assert "pixelcnn_fast" not in overrides
    files = re.search(r"^files = \[(.*)\]$", own, re.MULTILINE)
    assert files
    checked = tuple(re.findall(r'"([^"]+)"', files[1]))
    assert PYTHON and [name for name in PYTHON if not name.startswith(checked)] == []
    for blanket in ("ignore_errors", "follow_imports", "exclude", "disable_error_code"):
        assert blanket not in settings


def test_every_ignored_error_has_its_reason() -> None:
    """ruff (PGH) insists on the code."""
    lines = [
        f"{name}: {line.strip()}"
        for name in PYTHON
        if ROOT / name != Path(__file__)
        for line in (ROOT / name).read_text().splitlines()
        if "type: ignore" in line
    ]
    assert [line for line in lines if not re.search(r"# type: ignore\[[\w, -]+\]  # \w", line)] == []
