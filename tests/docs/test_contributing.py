"""The files that CONTRIBUTING.md sends people to exist."""

from __future__ import annotations

import re

from tests.docs import DOCS

ROOT = DOCS.parent
# Shorter names of what lies in a folder that the same row or section names.
FOLDERS = ("", "pixelcnn_fast", "tests", "tests/capture", "tests/ops", "csrc/cpu/ops", "pixelcnn_fast/passes")
OPS = ("masked_conv2d", "categorical_nll")


def test_files_and_folders_exist() -> None:
    named = re.findall(r"`([\w./<>]+(?:/|\.(?:py|pyi|h|cpp|md|txt)))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 40
    for name in named:
        for op in OPS:
            path = name.replace("<op>", op).replace("heads/<name>", "heads/bernoulli")
            assert any((ROOT / folder / path).exists() for folder in FOLDERS), name
