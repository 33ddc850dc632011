"""What is generated in docs/ is what the code gives today, and the generator leaves prose alone."""

from functools import cache
from pathlib import Path

import generate
import pytest

from tests.docs import DOCS


@cache
def generated() -> dict[str, str]:
    return generate.generated()


@pytest.mark.parametrize("name", [*generate.PAGES, "provenance.svg", "wavefront.svg"])
def test_generated_files_are_fresh(name: str) -> None:
    assert (DOCS / name).read_text() == generated()[name], f"docs/{name} is stale: run `make generate`"


def test_every_drawing_is_on_a_page() -> None:
    drawings = {path.name for path in DOCS.glob("*.svg")}
    pages = "".join((DOCS / name).read_text() for name in generate.PAGES)
    assert drawings == set(generated()) - set(generate.PAGES)
    assert all(f"({name})" in pages for name in drawings)


def test_files_that_are_fresh_are_left_alone(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "old.md").write_text("old")
    (tmp_path / "fresh.md").write_text("as it was")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    texts = {"old.md": "new", "fresh.md": "as it was", "absent.svg": "a drawing"}
    monkeypatch.setattr(generate, "generated", lambda: texts)
    generate.main()
    assert capsys.readouterr().out == "docs/old.md is new\ndocs/absent.svg is new\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == texts


PAGE = "Before.\n<!-- generated: a part -->\nold\n<!-- end -->\nAfter.\n"


def test_only_what_is_between_the_markers_changes() -> None:
    new = generate.filled(PAGE, {"a part": "new"})
    assert new == PAGE.replace("old", "new")
    assert generate.filled(new, {"a part": "new"}) == new


@pytest.mark.parametrize("parts", [{}, {"another part": ""}, {"a part": "", "another part": ""}])
def test_each_part_has_one_place(parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="places"):
        generate.filled(PAGE, parts)
