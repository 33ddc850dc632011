"""What the site's builder does not see to: figures are described; and what it does, but only where it is installed."""

import re

from tests.docs import DOCS

PAGES = {path: path.read_text() for path in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]}
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"^```\{(?:figure|image)\} (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_every_page_is_in_a_table_of_contents() -> None:
    lines = [
        (path, line) for path, text in PAGES.items() for x in TOCTREE.findall(text) for line in x.split("\n")
    ]
    names = [(path, re.sub(r".*<(.*)>", r"\1", line)) for path, line in lines if line and line[0] != ":"]
    listed = {path.parent / f"{name}.md" for path, name in names}
    assert {path for path in PAGES if path.is_relative_to(DOCS)} - listed == {DOCS / "index.md"}


def test_every_figure_is_described() -> None:
    found = [(path, *x) for path, text in PAGES.items() for x in re.findall(r"!\[(.*?)\]\((\S+?)\)", text)]
    found += [
        (path, (re.search("^:alt: (.+)", options, re.MULTILINE) or ["", ""])[1], name)
        for path, text in PAGES.items()
        for name, options in FIGURE.findall(text)
    ]
    assert len(found) > 8
    assert [(path, name) for path, described, name in found if len(described) < 10] == []
