"""The documentation site, which `make docs` builds into out/docs."""

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)]*\)")

project = "pixelcnn_fast"
author = "the maintainers of pixelcnn_fast"
release = metadata.version("pixelcnn_fast")
extensions = ["myst_nb"]
html_theme = "furo"
html_title = f"pixelcnn_fast {release}"
nitpicky = True
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "force"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
os.environ["SMALL"] = "1"  # the recipes' small mode
os.environ["TQDM_DISABLE"] = "1"


def named(link: re.Match[str]) -> str:
    """A link to what is in the repository, but not in this folder, as its name and path."""
    text, path = link[1], link[2]
    return text if path in text else f"{text} (`{path}`)"


def setup(app: Any) -> None:
    def read(app: Any, page: str, source: list[str]) -> None:
        source[0] = OUTSIDE.sub(named, source[0])

    def include(app: Any, path: Path, page: str, source: list[str]) -> None:
        """The links of files of the repository's root."""
        below = re.sub(r"\]\((?!https?:|#)", "](../", source[0]).replace("](../docs/", "](")
        source[0] = OUTSIDE.sub(named, below)

    app.connect("source-read", read)
    app.connect("include-read", include)
