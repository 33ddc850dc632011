"""Cross-entropies within what is compiled."""

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


def of_pixels(x: Tensor, levels: Tensor = LEVELS) -> Tensor:
    return F.cross_entropy(x, levels, reduction="none")


def reduced_without_gradients(x: Tensor) -> Tensor:
    costs = of_pixels(x)
    with torch.no_grad():
        mean = costs.mean()
    return mean + x.sum()


def flattened_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        flat = x.reshape(-1, 7)
    return F.cross_entropy(flat, LEVELS.flatten()) + x.sum()


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
    "flattened from six axes": (
        lambda x: F.cross_entropy(x.reshape(-1, 7), LEVELS.flatten()),
        LAST[:, :, None],
        True,
    ),
    "flattened without gradients": (flattened_without_gradients, LAST, True),
    "flattened twice": (
        lambda x: F.cross_entropy(x.flatten(0, 1).flatten(0, 2), LEVELS.flatten()),
        LAST,
        True,
    ),
    "a matrix": (lambda x: F.cross_entropy(2 * x, LEVELS.flatten()), LAST.reshape(-1, 7), True),
    "other levels in the last place": (
        lambda x: F.cross_entropy(x.reshape(-1, 14), LEVELS.flatten()[::2]),
        LAST,
        True,
    ),
    "sum": (lambda x: F.cross_entropy(x, LEVELS, reduction="sum"), MAP, True),
    "of pixels, sum": (lambda x: of_pixels(x).sum(), MAP, True),
    "of pixels, mean": (lambda x: torch.mean(of_pixels(x)), MAP, True),
    "of pixels, mean of images": (lambda x: of_pixels(x).mean(dim=[1, 2, 3]), MAP, True),
    "of pixels, sum of images": (lambda x: torch.sum(of_pixels(x), (1, -2, -1)), MAP, True),
    "of pixels, flattened": (lambda x: of_pixels(x).flatten(1).mean(1), MAP, True),
    "of pixels, viewed": (lambda x: of_pixels(x).view(2, -1).sum(-1), MAP, True),
    "of pixels, some ignored, mean of images": (lambda x: of_pixels(x, SOME).mean((1, 2, 3)), MAP, True),
    "of pixels, some ignored, mean": (lambda x: of_pixels(x, SOME).mean(), MAP, True),
    "of pixels, some ignored, sum": (lambda x: of_pixels(x, SOME).sum(), MAP, True),
    "of pixels of a matrix": (lambda x: of_pixels(x.reshape(-1, 7), LEVELS.flatten()).mean(), LAST, True),
    "of pixels, read": (lambda x: (lambda y: y.sum() + y.max())(of_pixels(x)), MAP, False),
    "of pixels, of rows": (lambda x: of_pixels(x).mean(-1), MAP, False),
    "of pixels, with axes": (lambda x: of_pixels(x).mean((1, 2, 3), keepdim=True), MAP, False),
    "of pixels, with axes as the second argument": (lambda x: of_pixels(x).mean((1, 2, 3), True), MAP, False),
    "of pixels, of halves": (lambda x: of_pixels(x).view(4, -1).mean(1), MAP, False),
    "of pixels, in another dtype": (lambda x: of_pixels(x).sum(dtype=torch.float32), MAP, False),
    "of pixels, reduced without gradients": (reduced_without_gradients, MAP, False),
    "none": (lambda x: of_pixels(x), MAP, False),
    "sum, the old way": (lambda x: F.cross_entropy(x, LEVELS, size_average=False), MAP, False),
    "none, the old way": (lambda x: F.cross_entropy(x, LEVELS, reduce=False), MAP, False),
    "six axes": (lambda x: F.cross_entropy(x[..., None], LEVELS[..., None]), MAP, False),
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


@pytest.mark.filterwarnings("ignore:size_average and reduce args will be deprecated")
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    of_logits, logits, rewritten = LOSSES[name]

    def loss(x: Tensor) -> Tensor:
        return of_logits(1 * x)  # logits that nobody else knows

    backend = Backend()
    found = []
    for each in (torch.compile(loss, backend=backend), loss):
        x = logits.clone(memory_format=torch.preserve_format).requires_grad_()
        y = each(x)
        along = torch.arange(1, y.numel() + 1).view(y.shape).to(y)
        found.append((y.detach(), *torch.autograd.grad(y, x, along)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert bool(backend.report.rewritten) == rewritten, str(backend.report)


def test_targets_that_pytorch_refuses_are_refused() -> None:
    compiled = torch.compile(lambda x, levels: F.cross_entropy(2 * x, levels), backend=Backend())
    for logits, levels in ((MAP, LEVELS.int()), (MAP[:0, :, 0], LEVELS[:0])):
        for function in (F.cross_entropy, compiled):
            with pytest.raises(Exception, match="expected target|batches of spatial targets"):
                function(logits, levels)


def test_levels_out_of_range_are_refused() -> None:
    compiled = torch.compile(lambda x, levels: F.cross_entropy(2 * x, levels), backend=Backend())
    with pytest.raises(ValueError, match="levels span 0...9, expected 0...6"):
        compiled(MAP, LEVELS.where(LEVELS < 6, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_under_autocast_it_is_computed_as_pytorch_does(dtype: torch.dtype) -> None:
    backend = Backend()
    compiled = torch.compile(lambda x: F.cross_entropy(1 * x, LEVELS), backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (loss(MAP.to(dtype)) for loss in (compiled, lambda x: F.cross_entropy(x, LEVELS)))
    assert found.dtype == expected.dtype and backend.report.rewritten
    assert found.dtype == torch.float32 or dtype == torch.float64
    torch.testing.assert_close(found, expected)


def test_losses_in_bfloat16_are_left() -> None:
    backend = Backend()
    low = MAP.bfloat16()
    assert torch.equal(
        torch.compile(lambda x: F.cross_entropy(1 * x, LEVELS), backend=backend)(low),
        F.cross_entropy(low, LEVELS),
    )
    assert "cross_entropy: it is torch.bfloat16" in str(backend.report)
