"""That the fast and the plain model of a family learn alike."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


def assert_losses_agree(
    fast: nn.Module, plain: nn.Module, loss_of: Callable[[nn.Module], Tensor], steps: int
) -> None:
    """Takes so many steps with each, and compares the losses, which must fall."""
    losses: list[list[float]] = []
    for model in (plain, fast):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        losses.append([])
        for _ in range(steps):
            loss = loss_of(model)
            losses[-1].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
