"""Networks of tests are small, and are rewritten all the same."""

from __future__ import annotations

import pytest

from pixelcnn_fast.rewriting import worth


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(worth, "FEWEST_ELEMENTS", 0)
