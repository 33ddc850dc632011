"""What the linters can't see: their own settings."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("pixelcnn_fast", "tests", "benchmarks", "examples")


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
    for blanket in ("ignore_errors", "follow_imports", "exclude", "disable_error_code"):
        assert blanket not in settings


def test_every_ignored_error_has_its_reason() -> None:
    """ruff (PGH) insists on the code."""
    lines = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py*")
        if path.suffix == ".py" and path != Path(__file__)
        for line in path.read_text().splitlines()
        if "type: ignore" in line
    ]
    assert [line for line in lines if not re.search(r"# type: ignore\[[\w, -]+\]  # \w", line)] == []
