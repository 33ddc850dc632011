"""Writes what is generated in this folder: parts of pages, and drawings. Run it as `make generate`.

In a page of prose, `<!-- generated: NAME -->` and `<!-- end -->` enclose what is written here; everything else is left
alone. NAME is a key of `parts()` in the script that has the page's name. Nothing here draws random numbers or
depends on the machine, so the same sources give the same files, to the letter.
"""

from __future__ import annotations

import re
from pathlib import Path

import architecture
import supported_calls

DOCS = Path(__file__).parent
PAGES = {"architecture.md": architecture.parts, "supported_calls.md": supported_calls.parts}
PART = re.compile(r"(<!-- generated: (?P<name>[^>]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with its generated parts up to date. Raises ValueError unless each part has one place in it."""
    places = [match["name"] for match in PART.finditer(page)]
    if sorted(places) != sorted(parts):
        raise ValueError(f"the page has places for {sorted(places)}, and the parts are {sorted(parts)}")
    return PART.sub(lambda match: f"{match[1]}{parts[match['name']]}\n{match[3]}", page)


def generated() -> dict[str, str]:
    """What each generated file of this folder should hold, by the file's name."""
    pages = {name: filled((DOCS / name).read_text(), parts()) for name, parts in PAGES.items()}
    return {**pages, **architecture.drawings()}


def main() -> None:
    for name, text in generated().items():
        path = DOCS / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"docs/{name} is new")


if __name__ == "__main__":
    main()
