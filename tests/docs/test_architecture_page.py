"""docs/architecture.md agrees with the code: the order of imports, the passes, and what its drawings say."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import product

import architecture
import pytest

from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.rewriting.pipeline import REWRITES
from tests.docs import DOCS
from tests.test_architecture import PACKAGE, TIERS

PAGE = (DOCS / "architecture.md").read_text()


def first_cells(table: str) -> list[list[str]]:
    """For each row of the page's table of that name, the words in backticks in its first column."""
    rows = PAGE.split(f"<!-- {table} -->")[1].split("<!-- end -->")[0].strip().splitlines()
    return [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in rows[2:]]


def test_the_order_of_imports_is_the_one_that_is_tested() -> None:
    assert [set(row) for row in first_cells("order of imports")] == TIERS


def test_every_pass_is_described() -> None:
    listed = [name for (name,) in first_cells("passes")]
    assert listed == list(dict.fromkeys(transform.__name__ for transform in pipeline.PASSES))


def test_every_rewrite_is_described() -> None:
    listed = [f"pixelcnn_fast.rewriting.{name}" for (name,) in first_cells("rewrites")]
    assert listed == [each.__module__ for each in REWRITES]


def test_links_lead_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (DOCS / target).exists(), f"{page.name} links to {target}"


def test_every_pixel_is_drawn_after_what_it_sees() -> None:
    """With a smaller lag, some pixels would be drawn too early."""
    steps, (_, height, width) = architecture.steps(), architecture.SHAPE
    too_early = []
    for y, x in product(range(height), range(width)):
        for row, column in architecture.seen_from(y, x):
            assert steps[row][column] < steps[y][x]
            too_early.append(steps[row][column] + y - row >= steps[y][x])
    assert any(too_early)


def test_the_middle_pixel_sees_what_masks_a_and_b_show_it() -> None:
    above = {(0, x) for x in range(5)} | {(1, x) for x in range(4)}
    assert architecture.seen_from(2, 2) == above | {(2, 0), (2, 1)}


@pytest.mark.parametrize("name", ["provenance.svg", "wavefront.svg"])
def test_drawings_are_well_formed_and_lie_on_a_card_of_their_own_colour(name: str) -> None:
    root = ElementTree.parse(DOCS / name).getroot()
    title, card, *_ = root
    assert title.text and card.get("fill") == "#ffffff"
    assert float(card.get("width", 0)) == float(root.get("width", 0)) - 1


def test_parts_named_on_the_page_are_in_the_package() -> None:
    parts = {name for row in first_cells("order of imports") for name in row}
    there = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there <= {name.partition(".")[0] for name in parts}
