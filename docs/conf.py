"""The documentation site, which `make docs` builds into out/docs."""

import os
import re
from pathlib import Path
from typing import Any

import pixelcnn_fast

# In docstrings: where an argument is explained, which no line is that goes on with a sentence; what is as it stands;
# and what indented lines follow.
ARGUMENT = re.compile(r"((?<![^.;:\n]\n)^|\. |; )([a-z]\w*(?:, [a-z]\w*)*):(?=\s)", re.MULTILINE)
LITERAL = re.compile(r"(``[^`]+``|^ .*$)", re.MULTILINE)
INDENTED = re.compile(r"^(\S.*)\n\n(?= )", re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)]*\)")

project = "pixelcnn_fast"
author = "the maintainers of pixelcnn_fast"
release = pixelcnn_fast.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]
autodoc_typehints = "none"  # docstrings give shapes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
html_theme = "furo"
html_show_copyright = False  # LICENSE has it
html_title = f"pixelcnn_fast {release}"
nitpicky = True
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_merge_streams = True
nb_execution_timeout = 120
nb_execution_raise_on_error = True
os.environ["SMALL"] = "1"  # the recipes' small mode
os.environ["TQDM_DISABLE"] = "1"


def named(link: re.Match[str]) -> str:
    """A link to what is in the repository, but not in this folder, as its name and path."""
    text, path = link[1], link[2]
    return text if path in text else f"{text} (`{path}`)"


def argument(found: re.Match[str]) -> str:
    """In bold, and at the start of a paragraph unless it goes on a sentence."""
    before = found[1] if found[1] == "; " else f"{found[1].strip()}\n\n"
    return f"{before}**{found[2]}:**"


def setup(app: Any) -> None:
    def read(app: Any, page: str, source: list[str]) -> None:
        if "/" not in page:  # from a folder of pages, ../ is another page
            source[0] = OUTSIDE.sub(named, source[0])

    def include(app: Any, path: Path, page: str, source: list[str]) -> None:
        """The links of files of the repository's root."""
        below = re.sub(r"\]\((?!https?:|#)", "](../", source[0]).replace("](../docs/", "](")
        source[0] = OUTSIDE.sub(named, below)

    def docstring(app: Any, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        """Plain text, but for ``literals`` and indented lines, as reStructuredText, with its arguments in bold."""
        parts = LITERAL.split(INDENTED.sub(r"\1\n\n::\n\n", "\n".join(lines)))
        parts[::2] = [ARGUMENT.sub(argument, re.sub(r"([*|])", r"\\\1", part)) for part in parts[::2]]
        lines[:] = "".join(parts).split("\n")

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("include-read", include)
