import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import ops
from tests.needs import EACH_ISA, instruction_set, needs_native
from tests.tolerances import assert_right

SHAPES = [(2, 3, 7, 5, 256), (1, 1, 1, 1, 2), (3, 2, 4, 40, 33), (1, 1, 9, 8, 5)]
LAYOUTS = {
    "levels last": lambda x: x,
    "maps of levels": lambda x: x.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2),
    "channels last": lambda x: x.permute(0, 2, 3, 1, 4).contiguous().permute(0, 3, 1, 2, 4),
    "with gaps": lambda x: torch.stack([x, x], 4).flatten(3, 4)[:, :, :, ::2],
    "cut out": lambda x: F.pad(x, (0, 0, 1, 2, 3, 1))[:, :, 3:-1, 1:-2],
}


def plain(logits, levels):
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide.flatten(0, 3), levels.flatten(), reduction="none")
    return losses.view(levels.shape).flatten(1).sum(1)


def run(function, logits, levels, dtype, layout="levels last"):
    x = LAYOUTS[layout](logits.to(dtype, copy=True)).requires_grad_()
    y = function(x, levels)
    y.backward(torch.linspace(0.5, 2, len(y), dtype=y.dtype))
    return [y.detach(), x.grad]


@pytest.mark.parametrize("isa", EACH_ISA or [""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_cross_entropy(isa, dtype, layout):
    with instruction_set(isa):
        for shape in SHAPES:
            generator = torch.Generator().manual_seed(0)
            logits = 4 * torch.randn(shape, generator=generator, dtype=torch.float64)
            logits = logits.to(dtype).double()  # the same numbers for all
            levels = torch.randint(0, shape[-1], shape[:-1], generator=generator)
            got = run(ops.categorical_nll, logits, levels, dtype, layout)
            expected, exact = run(plain, logits, levels, dtype), run(plain, logits, levels, torch.float64)
            for one, other, true in zip(got, expected, exact, strict=True):
                assert_right(one, other, true)


def test_levels_may_have_gaps() -> None:
    logits = torch.randn(2, 3, 4, 5, 7, dtype=torch.float64)
    levels = torch.randint(7, (2, 3, 5, 4)).mT
    for got, expected in zip(
        run(ops.categorical_nll, logits, levels, logits.dtype),
        run(plain, logits, levels, logits.dtype),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_far_logits_do_not_overflow():
    logits = torch.tensor([3e38, -3e38, 0.0, 1e3]).expand(1, 1, 1, 2, 4).contiguous()
    levels = torch.tensor([0, 0]).view(1, 1, 1, 2)
    assert ops.categorical_nll(logits, levels).tolist() == [0]


def test_the_gradient_of_a_sum_is_one_number_for_all_images() -> None:
    logits = torch.randn(3, 2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    levels = torch.randint(7, logits.shape[:-1])
    found, expected = (
        torch.autograd.grad(f(logits, levels).sum(), logits)[0] for f in (ops.categorical_nll, plain)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_logit_may_be_far_above_all_others(layout: str) -> None:
    """Whichever it is."""
    levels = torch.arange(70).expand(2, 1, 2, 70)
    logits = LAYOUTS[layout](1e3 * F.one_hot(levels).float())
    assert ops.categorical_nll(logits, levels).tolist() == [0, 0]


def test_no_image_and_small_integer_levels():
    assert ops.categorical_nll(
        torch.zeros(0, 1, 2, 2, 8), torch.zeros(0, 1, 2, 2, dtype=torch.uint8)
    ).shape == (0,)
    nll = ops.categorical_nll(torch.zeros(2, 1, 1, 1, 8), torch.ones(2, 1, 1, 1, dtype=torch.uint8))
    assert torch.allclose(nll, torch.full((2,), 8.0).log())


@pytest.mark.parametrize(
    ("logits", "levels", "message"),
    [
        (torch.zeros(1, 1, 2, 2, 4), torch.full((1, 1, 2, 2), 4), "levels span 4...4"),
        (torch.zeros(1, 1, 2, 2, 4), torch.full((1, 1, 2, 2), -1), "levels span -1...-1, expected 0...3"),
        (torch.zeros(1, 1, 2, 2, 4), torch.zeros(1, 2, 2, dtype=torch.long), "do not fit"),
        (torch.zeros(1, 1, 2, 2, 4), torch.zeros(1, 1, 2, 2), "integers"),
        (torch.zeros(1, 1, 2, 2, 4), torch.zeros(1, 1, 2, 2, dtype=torch.bool), "integers"),
        (torch.zeros(1, 1, 2, 2, 4).long(), torch.zeros(1, 1, 2, 2).long(), "floating point"),
        (torch.zeros(1, 1, 2, 2, 4), torch.zeros(1, 1, 2, 2, device="meta").long(), "levels are on meta"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_refusals(logits, levels, message, backend):
    with pytest.raises(ValueError, match=message):
        ops.categorical_nll(logits, levels, backend)


@pytest.mark.parametrize("backend", ["reference", pytest.param("compiled", marks=needs_native)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_levels_that_are_ignored(backend: str, layout: str) -> None:
    logits = torch.randn(2, 3, 4, 40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = torch.randint(0, 5, logits.shape[:-1], generator=torch.Generator().manual_seed(1))
    levels[0, :, :, 7:20] = -7
    got = run(lambda x, t: ops.categorical_nll(x, t, backend, -7), logits, levels, torch.float64, layout)

    def expected_of(x: Tensor, t: Tensor) -> Tensor:
        nll = F.cross_entropy(x.movedim(-1, 1), t.long(), ignore_index=-7, reduction="none")
        return nll.flatten(1).sum(1)

    for one, other in zip(got, run(expected_of, logits, levels, torch.float64), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="levels span -7...4"):
        ops.categorical_nll(logits, levels, backend)
    with pytest.raises(ValueError, match="levels span 0...9"):
        ops.categorical_nll(logits, levels.where(levels != 4, 9), backend, -7)
    x = logits.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: ops.categorical_nll(x, levels[:, :1, :1, 5:9], backend, -7), x[:, :1, :1, 5:9]
    )
