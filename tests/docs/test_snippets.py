"""The Python snippets of the README, and of pages that can run as they stand, run one after the other."""

import re
from pathlib import Path

import pytest
import torch

from pixelcnn_fast.models import PixelCNNpp
from tests.tiers import few

ROOT = Path(__file__).parents[2]
# By page: what its reader has, and how.
READERS = {
    "README.md": {},
    "docs/pixelcnnpp.md": {"port": lambda: PixelCNNpp(n_filters=8, n_resnets=1).eval()},
}


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", few([*READERS], 1))
def test_snippets_run_as_they_stand(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {name: make() for name, make in READERS[page].items()}
    assert len(snippets(page)) > 1
    for number, code in enumerate(snippets(page), 1):
        exec(compile(code, f"{page}, snippet {number}", "exec"), names)
    if page == "README.md":
        assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
