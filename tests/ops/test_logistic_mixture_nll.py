import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.ops.logistic_mixture_nll import reference
from tests.needs import EACH_ISA, instruction_set, needs_native
from tests.tolerances import assert_identical_up_to_rounding, assert_right

# Images, colours, height, width, components, channels for each of these, levels.
SHAPES = [
    (2, 3, 7, 5, 3, 10, 256),
    (1, 1, 1, 1, 1, 3, 2),
    (3, 1, 4, 40, 2, 4, 33),
    (1, 3, 9, 8, 11, 10, 3),
    (1, 1, 5, 7, 2, 3, 65536),
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "columns first": lambda x: x.mT.contiguous().mT,
    "with gaps": lambda x: torch.stack([x, x], 4).flatten(3, 4)[:, :, :, ::2],
    "cut out": lambda x: F.pad(x, (1, 2, 3, 1), value=torch.nan)[:, :, 3:-1, 1:-2],
}
BACKENDS = ["reference", pytest.param("compiled", marks=needs_native)]


def drawn(shape: tuple[int, ...], scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Parameters of all kinds of pixels, and values of which some are at either edge."""
    n, colours, height, width, components, of_one, levels = shape
    generator = torch.Generator().manual_seed(0)
    size = (n, of_one * components, height, width)
    parameters = scale * torch.randn(size, generator=generator, dtype=torch.float64)
    values = torch.randint(0, levels, (n, colours, height, width), generator=generator)
    values[:, :, 0, ::3] = 0
    values[:, :, -1, 1::3] = levels - 1
    return parameters, values


def run(function, parameters, dtype, layout="contiguous"):
    x = LAYOUTS[layout](parameters.to(dtype, copy=True)).requires_grad_()
    y = function(x)
    y.backward(torch.linspace(0.5, 2, len(y), dtype=y.dtype))
    return [y.detach(), x.grad]


@pytest.mark.parametrize("isa", EACH_ISA or [""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_published_formula(isa, dtype, layout):
    with instruction_set(isa):
        for shape in SHAPES:
            components, levels = shape[4], shape[6]
            parameters, values = drawn(shape)
            parameters = parameters.to(dtype).double()  # the same numbers for all

            def plain(x: Tensor, values=values, components=components, levels=levels) -> Tensor:
                return reference.logistic_mixture_nll(x, values, components, levels)[0]

            def ours(x: Tensor, values=values, components=components, levels=levels) -> Tensor:
                return ops.logistic_mixture_nll(x, values, components, levels)

            got = run(ours, parameters, dtype, layout)
            expected, exact = run(plain, parameters, dtype), run(plain, parameters, torch.float64)
            for one, other, true in zip(got, expected, exact, strict=True):
                assert_right(one, other, true)


@pytest.mark.parametrize("isa", EACH_ISA or [""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_it_for_every_mean_and_scale(isa: str, dtype: torch.dtype) -> None:
    """Of a single component: far from the level and near it, where its mass is small, and below the least scale."""
    means, log_scales = torch.linspace(-3, 3, 47), torch.linspace(-9.1, 14, 29)
    grid = torch.stack(torch.meshgrid(means, log_scales, indexing="ij")).double()
    for levels, value in itertools.product([3, 256, 65536], [0, 0.5, 1]):
        values = torch.full((1, 1, *grid.shape[1:]), round(value * (levels - 1)))
        parameters = torch.cat([torch.zeros_like(grid[:1]), grid])[None]

        def nll(x: Tensor, backend: str, values=values, levels=levels) -> Tensor:
            return ops.logistic_mixture_nll(x, values, 1, levels, backend)

        with instruction_set(isa):
            got = run(lambda x: nll(x, "auto"), parameters, dtype)
        expected, exact = (run(lambda x: nll(x, "reference"), parameters, d) for d in (dtype, torch.float64))
        for one, other, true in zip(got, expected, exact, strict=True):
            assert_right(one, other, true)


def by_hand(parameters: list[float], values: list[int], components: int, levels: int) -> float:
    """The nats of one pixel of three colours; no mass may be small."""

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    total, half, x = 0.0, 1 / (levels - 1), [2 * value / (levels - 1) - 1 for value in values]
    for k in range(components):
        mean, log_scale, coefficient = (
            [parameters[components + 3 * components * c + components * p + k] for c in range(3)]
            for p in range(3)
        )
        kappa = [math.tanh(each) for each in coefficient]
        mean = [mean[0], mean[1] + kappa[0] * x[0], mean[2] + kappa[1] * x[0] + kappa[2] * x[1]]
        product = math.exp(parameters[k])
        for c, value in enumerate(values):
            scale = math.exp(log_scale[c])
            upper = 1.0 if value == levels - 1 else logistic((x[c] + half - mean[c]) / scale)
            lower = 0.0 if value == 0 else logistic((x[c] - half - mean[c]) / scale)
            product *= upper - lower
        total += product
    return math.log(sum(math.exp(each) for each in parameters[:components])) - math.log(total)


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_of_the_channels(backend: str) -> None:
    parameters, values = drawn((1, 3, 2, 3, 4, 10, 16), scale=0.5)
    found = ops.logistic_mixture_nll(parameters, values, 4, 16, backend)
    pixels = zip(parameters[0].flatten(1).T.tolist(), values[0].flatten(1).T.tolist(), strict=True)
    expected = sum(by_hand(*pixel, 4, 16) for pixel in pixels)
    assert_identical_up_to_rounding(found, torch.tensor([expected], dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("colours", "of_one", "levels"), [(3, 10, 3), (1, 4, 16)])
def test_probabilities_sum_to_one(backend: str, colours: int, of_one: int, levels: int) -> None:
    """Where no mass is small."""
    parameters, _ = drawn((1, colours, 1, 1, 5, of_one, levels), scale=0.5)
    values = torch.tensor(list(itertools.product(range(levels), repeat=colours)))[:, :, None, None]
    nll = ops.logistic_mixture_nll(parameters.expand(len(values), -1, -1, -1), values, 5, levels, backend)
    assert_identical_up_to_rounding((-nll).exp().sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_means_and_extreme_scales_have_finite_gradients(backend: str, dtype: torch.dtype) -> None:
    cases = list(itertools.product([0, 7, 255], [-1e6, -40, 0, 40, 1e6], [-1e3, -7.5, -7, 0, 30, 80]))
    values = torch.tensor([value for value, _, _ in cases])[:, None, None, None]
    parameters = torch.tensor([[0, 0, mean, 0.2, scale, -1] for _, mean, scale in cases], dtype=dtype)
    found = run(
        lambda x: ops.logistic_mixture_nll(x, values, 2, 256, backend), parameters[:, :, None, None], dtype
    )
    assert all(each.isfinite().all() for each in found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_log_scales_below_the_least_count_as_it_and_have_no_gradient(backend: str) -> None:
    values = torch.tensor([0, 7, 255]).view(1, 1, 1, 3)
    means = torch.tensor([-1.0, 14 / 255 - 1, 1.0])

    def found(log_scale: float) -> list[Tensor]:
        parameters = torch.stack([means * 0, means, means * 0 + log_scale])[None, :, None]
        return run(lambda x: ops.logistic_mixture_nll(x, values, 1, 256, backend), parameters, torch.float64)

    least, below = found(-7), found(-7.1)
    assert torch.equal(least[0], below[0]) and torch.equal(least[1][:, :2], below[1][:, :2])
    assert (least[1][:, 2] != 0).all() and (below[1][:, 2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_stays_in_its_image(backend: str) -> None:
    clean, values = drawn((2, 3, 2, 3, 2, 10, 256))
    expected = ops.logistic_mixture_nll(clean, values, 2, backend=backend)
    for channel in range(20):
        parameters = clean.clone()
        parameters[1, channel, 1, 1] = torch.nan
        nll = ops.logistic_mixture_nll(parameters, values, 2, backend=backend)
        assert nll[0] == expected[0] and nll[1].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("off", [0, 1, 2])
def test_a_component_may_be_off(backend: str, off: int) -> None:
    parameters, values = drawn((2, 1, 2, 3, 3, 3, 256))
    parameters[:, off] = -torch.inf
    rest = [k for k in range(9) if k % 3 != off]
    got = run(lambda x: ops.logistic_mixture_nll(x, values, 3, 256, backend), parameters, torch.float64)
    expected = run(
        lambda x: ops.logistic_mixture_nll(x, values, 2, 256, backend), parameters[:, rest], torch.float64
    )
    assert_identical_up_to_rounding(got[0], expected[0])
    assert_identical_up_to_rounding(got[1][:, rest], expected[1])
    assert not got[1][:, off::3].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_unused_coefficients_of_one_colour(backend: str) -> None:
    parameters, values = drawn((2, 1, 3, 2, 5, 4, 256))
    got = run(lambda x: ops.logistic_mixture_nll(x, values, 5, 256, backend), parameters, torch.float64)
    expected = run(
        lambda x: ops.logistic_mixture_nll(x, values, 5, 256, backend), parameters[:, :15], torch.float64
    )
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1][:, :15], expected[1])
    assert not got[1][:, 15:].any()


def test_values_may_have_gaps_and_are_not_written() -> None:
    parameters, values = drawn((2, 3, 4, 5, 2, 10, 256))
    copies = parameters.clone(), values.clone()
    x = parameters.requires_grad_()
    results = []
    for given in (values, values.mT.contiguous().mT, values.to(torch.uint8)):
        nll = ops.logistic_mixture_nll(x, given, 2)
        results.append((nll, *torch.autograd.grad(nll.sum(), x)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    assert torch.equal(x, copies[0]) and torch.equal(values, copies[1])


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "cut out"])
def test_threads_do_not_matter(layout: str) -> None:
    parameters, values = drawn((3, 3, 9, 40, 2, 10, 256))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(
                run(lambda x: ops.logistic_mixture_nll(x, values, 2), parameters, torch.float32, layout)
            )
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(0, 2, 2), (2, 0, 3)])
def test_nothing_to_sum(backend: str, size: tuple[int, int, int]) -> None:
    n, *rest = size
    x = torch.zeros(n, 20, *rest, requires_grad=True)
    nll = ops.logistic_mixture_nll(x, torch.zeros(n, 3, *rest, dtype=torch.uint8), 2, 256, backend)
    assert torch.equal(nll, torch.zeros(n))
    assert torch.autograd.grad(nll.sum(), x)[0].shape == x.shape


def maps(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, channels, 2, 2, dtype=dtype)


@pytest.mark.parametrize(
    ("parameters", "values", "components", "levels", "message"),
    [
        (maps(20), maps(3).long() + 4, 2, 4, "values span 4...4, expected 0...3"),
        (maps(20), maps(3).long() - 1, 2, 4, "values span -1...-1"),
        (maps(20), maps(1).long(), 2, 256, r"expected \[N, 20, H, W\] and \[N, 3, H, W\], or \[N, 6 or 8"),
        (maps(6), maps(3).long(), 2, 256, "do not fit"),
        (maps(7), maps(1).long(), 2, 256, "do not fit"),
        (maps(20)[0], maps(3).long(), 2, 256, "do not fit"),
        (maps(20), maps(3).long()[:, :, :1], 2, 256, "do not fit"),
        (maps(20), maps(3), 2, 256, "integers"),
        (maps(20), maps(3).bool(), 2, 256, "integers"),
        (maps(20).long(), maps(3).long(), 2, 256, "floating point"),
        (maps(20), maps(3).long().to("meta"), 2, 256, "values are on meta"),
        (maps(20), maps(3).long(), 0, 256, "0 components"),
        (maps(20), maps(3).long(), 2, 1, "1 levels"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_refusals(
    parameters: Tensor, values: Tensor, components: int, levels: int, message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ops.logistic_mixture_nll(parameters, values, components, levels, backend)
