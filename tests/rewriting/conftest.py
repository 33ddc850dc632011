"""Networks of tests are small, and are rewritten all the same."""

from __future__ import annotations

import pytest

from pixelcnn_fast.rewriting import profitability


@pytest.fixture(autouse=True)
def however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profitability, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(profitability, "FEWEST_ELEMENTS", 0)
