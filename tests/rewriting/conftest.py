"""Networks of tests are rewritten however small they are, and nothing that one has compiled is left to the next."""

import pytest
import torch

from pixelcnn_fast.rewriting import profitability


@pytest.fixture(autouse=True)
def rewritten_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(profitability, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(profitability, "FEWEST_ELEMENTS", 0)
