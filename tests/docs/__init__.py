"""Tests of the documentation, whose pages are partly generated."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def snippets(text: str) -> list[str]:
    """The Python in a page of Markdown."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
