"""Cross-entropies within what is compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.rewriting.backend import Backend

MAP = torch.randn(
    2, 7, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
)  # levels second
LAST = MAP.movedim(1, -1)  # logits as this library's models give them
LEVELS = torch.randint(0, 7, (2, 3, 4, 5), generator=torch.Generator().manual_seed(1))
SOME = LEVELS.where(LEVELS != 3, -100)

# the loss of logits and levels, the logits, and whether it is rewritten
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, bool]] = {
    "maps": (lambda x: F.cross_entropy(x, LEVELS), MAP, True),
    "maps of one colour": (lambda x: F.cross_entropy(x, LEVELS[:, 0]), MAP[:, :, 0].contiguous(), True),
    "flattened": (lambda x: F.cross_entropy(x.reshape(-1, 7), LEVELS.flatten()), LAST, True),
    "flattened otherwise": (
        lambda x: F.cross_entropy(x.flatten(0, -2), LEVELS.reshape(-1)),
        LAST.contiguous(),
        True,
    ),
    "flattened twice": (lambda x: F.cross_entropy(x.flatten(0, 1).flatten(0, 2), LEVELS.flatten()), LAST, True),
    "a matrix": (lambda x: F.cross_entropy(2 * x, LEVELS.flatten()), LAST.reshape(-1, 7), True),
    "other levels in the last place": (
        lambda x: F.cross_entropy(x.reshape(-1, 14), LEVELS.flatten()[::2]),
        LAST,
        True,
    ),
    "sum": (lambda x: F.cross_entropy(x, LEVELS, reduction="sum"), MAP, True),
    "none": (lambda x: F.cross_entropy(x, LEVELS, reduction="none").sum(), MAP, False),
    "ignored by default": (lambda x: F.cross_entropy(x, SOME), MAP, True),
    "ignored": (lambda x: F.cross_entropy(x, LEVELS, ignore_index=2), MAP, True),
    "ignored, sum": (lambda x: F.cross_entropy(x, LEVELS, ignore_index=2, reduction="sum"), MAP, True),
    "weights": (lambda x: F.cross_entropy(x, LEVELS, torch.ones(7, dtype=x.dtype)), MAP, False),
    "smoothing": (lambda x: F.cross_entropy(x, LEVELS, label_smoothing=0.1), MAP, False),
    "probabilities": (lambda x: F.cross_entropy(x, MAP.softmax(1)), MAP, False),
    "small integers": (lambda x: F.cross_entropy(x, LEVELS.to(torch.uint8).long()), MAP, True),
    "written afterwards": (
        lambda x: (lambda y: F.cross_entropy(y, LEVELS) + y.detach().mul_(2).sum())(x * 1),
        MAP,
        False,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    torch._dynamo.reset()
    of_logits, logits, rewritten = LOSSES[name]

    def loss(x: Tensor) -> Tensor:
        return of_logits(1 * x)  # logits that nobody else knows

    backend = Backend()
    found = []
    for each in (torch.compile(loss, backend=backend), loss):
        x = logits.clone(memory_format=torch.preserve_format).requires_grad_()
        y = each(x)
        found.append((y.detach(), *torch.autograd.grad(y, x)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert bool(backend.report.rewritten) == rewritten, str(backend.report)


def test_targets_that_pytorch_refuses_are_refused() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, levels: F.cross_entropy(2 * x, levels), backend=Backend())
    for logits, levels in ((MAP, LEVELS.int()), (MAP[:0, :, 0], LEVELS[:0])):
        for function in (F.cross_entropy, compiled):
            with pytest.raises(Exception, match="expected target|batches of spatial targets"):
                function(logits, levels)


def test_levels_out_of_range_are_refused() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, levels: F.cross_entropy(2 * x, levels), backend=Backend())
    with pytest.raises(ValueError, match="levels span 0...9, expected 0...6"):
        compiled(MAP, LEVELS.where(LEVELS < 6, 9))
