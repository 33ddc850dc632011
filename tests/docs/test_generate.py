"""What is generated in docs/ is what the code gives today, and the generator leaves prose alone."""

from __future__ import annotations

import pytest

from tests.docs import DOCS, script

generate = script("generate")


@pytest.mark.parametrize("name", generate.generated())
def test_generated_files_are_fresh(name: str) -> None:
    assert (DOCS / name).read_text() == generate.generated()[name], f"docs/{name} is stale: run `make docs`"


PAGE = "Before.\n<!-- generated: a part -->\nold\n<!-- end -->\nAfter.\n"


def test_only_what_is_between_the_markers_changes() -> None:
    new = generate.filled(PAGE, {"a part": "new"})
    assert new == PAGE.replace("old", "new")
    assert generate.filled(new, {"a part": "new"}) == new


@pytest.mark.parametrize("parts", [{}, {"another part": ""}, {"a part": "", "another part": ""}])
def test_each_part_has_one_place(parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="places"):
        generate.filled(PAGE, parts)
