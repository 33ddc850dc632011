"""Every kind of step on every runtime, against its formula in PyTorch. A new kind is tested without a change here."""

import shutil
from collections.abc import Callable, Sequence

import pytest
import torch

from pixelcnn_fast.heads import Categorical, Head
from pixelcnn_fast.passes.phases import split_phases
from pixelcnn_fast.passes.pipeline import for_runtime
from pixelcnn_fast.program.conditions import Conditioning, ConditionProgram
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.formulas import FORMULAS
from pixelcnn_fast.program.instructions import Convolution, FromLevels
from pixelcnn_fast.program.operands import ConditionOperand, Read, Step, Tap
from pixelcnn_fast.program.phased import PhasedProgram
from pixelcnn_fast.program.program import Program, condition_operands
from pixelcnn_fast.program.steps import KINDS, Operand, StepKind
from pixelcnn_fast.program.verify import verify
from pixelcnn_fast.runtimes.cpu import CpuRuntime
from pixelcnn_fast.runtimes.cuda.runtime import CudaRuntime, Limits
from pixelcnn_fast.runtimes.eager import EagerRuntime
from pixelcnn_fast.runtimes.job import Job, Runtime
from tests.csrc.emulated import EmulatedKernels
from tests.needs import needs_native
from tests.tolerances import assert_right

LEVEL_COUNT, HEIGHT, WIDTH, IMAGES = (
    33,
    3,
    5,
    5,
)  # 33 channels: one more than fill whole vectors, or two tiles
needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="the host's emulation is not built: no g++"
)


def emulated_cuda(program: PhasedProgram, conditions: ConditionProgram, head: Head) -> CudaRuntime:
    limits = Limits(227 << 10, 4)
    own = for_runtime("cuda", program)
    return CudaRuntime(own, conditions, head, kernels=EmulatedKernels(), limits=limits)


RUNTIMES: dict[str, tuple[torch.dtype, Callable[[PhasedProgram, ConditionProgram, Head], Runtime]]] = {
    "eager": (torch.float64, EagerRuntime),
    "cpu float32": (torch.float32, CpuRuntime),
    "cpu float64": (torch.float64, CpuRuntime),
    "cuda emulated": (torch.float32, emulated_cuda),
}
MARKS = {"eager": (), "cuda emulated": (needs_native, needs_compiler)}
on_every_runtime = pytest.mark.parametrize(
    "runtime", [pytest.param(r, marks=MARKS.get(r, needs_native)) for r in RUNTIMES]
)
without_a_gpu = pytest.mark.parametrize(
    "runtime", [pytest.param(r, marks=MARKS.get(r, needs_native)) for r in RUNTIMES if r != "cuda emulated"]
)
ALPHAS = {"power": [2.0, 0.5, -0.5, -1.0, 1.7], **dict.fromkeys(("at_least", "at_most"), [0.6, 0.0, -0.6])}


def alphas(kind: StepKind) -> list[float]:
    return ALPHAS.get(kind.name, [0.6, 2.5] if kind.alpha else [1.0])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def half_of_x(kind: StepKind, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """[levels, channels]: of both signs, unless the formula is not defined at or below zero."""
    x = torch.linspace(-9, 9, LEVEL_COUNT * LEVEL_COUNT, dtype=torch.float64)
    tried = torch.cat([x, torch.zeros(1, dtype=x.dtype)])
    operands = {Operand.NONE: 0, Operand.CONSTANTS: 2}.get(kind.operand, 1)
    defined = torch.isfinite(FORMULAS[kind.name](tried, alpha, *[torch.ones_like(tried)] * operands)).all()
    x = x / 2 if defined else x.abs() / 2 + 0.25
    return (
        x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))].view(-1, LEVEL_COUNT).to(dtype)
    )


def program_with(kind: StepKind, alpha: float, dtype: torch.dtype) -> Program:
    """The step on a value of the pixel phase, on one of the row phase, and on levels where its operand allows it."""
    halves, identity = half_of_x(kind, alpha, dtype), torch.eye(LEVEL_COUNT, dtype=dtype)

    def step(value: int, map_of_conditions: bool) -> Step:
        if kind.operand is Operand.VALUE:
            return Step(kind.name, alpha, value=Read(value))
        if kind.operand is Operand.CONDITION:
            shape = (HEIGHT, WIDTH, LEVEL_COUNT) if map_of_conditions else (LEVEL_COUNT,)
            return Step(
                kind.name, alpha, condition=ConditionOperand(1, torch.zeros(shape, dtype=torch.long), True)
            )
        if kind.operand is Operand.CONSTANTS:
            scale, shift = normal(2, LEVEL_COUNT, seed=2).to(dtype)
            return Step(kind.name, alpha, scale=scale, shift=shift)
        return Step(kind.name, alpha)

    def random_taps(dy: int, dx: int, seed: int) -> tuple[Tap, ...]:
        return (Tap(0, dy, dx, (normal(LEVEL_COUNT, LEVEL_COUNT, seed=seed) / 6).to(dtype)),)

    on_levels = (step(-1, False),) if kind.operand in (Operand.NONE, Operand.CONSTANTS) else ()

    def convolution(
        out: int, name: str, *taps: Tap, bias: torch.Tensor | None = None, **fields
    ) -> Convolution:
        return Convolution(out, LEVEL_COUNT, name, taps, bias, **fields)

    at_logits = (
        Tap(1, 0, -1, identity),
        Tap(4, 0, 0, 0.5 * identity.flip(0)),
        Tap(5, 0, 0, identity.roll(1, 0)),
    )
    instructions = (
        FromLevels(0, LEVEL_COUNT, "halves of x", table=halves),
        FromLevels(1, LEVEL_COUNT, "of levels", table=2 * halves, steps=on_levels),
        convolution(2, "operand", *random_taps(0, -1, 3), bias=normal(LEVEL_COUNT).to(dtype)),
        convolution(3, "operand in row", *random_taps(-1, 0, 4)),
        convolution(4, "in row", Tap(0, -1, 0, identity), bias=halves[3], steps=(step(3, False),)),
        convolution(5, "at pixel", Tap(0, 0, -1, identity), bias=halves[4], steps=(step(2, True),)),
        convolution(6, "logits", *at_logits),
    )
    program = Program((1, HEIGHT, WIDTH), LEVEL_COUNT, instructions, (6,), dtype)
    verify(program)
    return program


class RandomConditions(ConditionProgram):
    """Random numbers for each operand, the same for all operands of one shape."""

    def __init__(self) -> None:
        super().__init__([])

    def __call__(
        self, operands: Sequence[ConditionOperand], given: Conditioning, n: int
    ) -> dict[ConditionOperand, torch.Tensor]:
        shapes = {operand: operand.index.shape for operand in operands}
        return {operand: normal(n, *shape, seed=len(shape)) for operand, shape in shapes.items()}


def logits_of(program: Program, levels: torch.Tensor, runtime: str) -> torch.Tensor:
    """What a runtime computes where all levels are known."""
    _, make = RUNTIMES[runtime]
    logits = torch.full((*levels.shape, program.parameters), float("nan"), dtype=program.dtype)
    job = Job(
        values=levels,
        noise=torch.zeros(levels.shape, dtype=torch.float64),
        known=torch.ones_like(levels, dtype=torch.bool),
        parameters=logits,
    )
    make(split_phases(program), RandomConditions(), Categorical(program.parameters)).run(job)
    return logits


@on_every_runtime
@pytest.mark.parametrize(
    "kind, alpha",
    [(k, a) for k in KINDS.values() for a in alphas(k)],
    ids=lambda p: getattr(p, "name", str(p)),
)
def test_each_kind_is_its_formula(kind, alpha, runtime):
    dtype, _ = RUNTIMES[runtime]
    program = program_with(kind, alpha, dtype)
    levels = torch.randint(
        0, LEVEL_COUNT, (IMAGES, 1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0)
    )
    levels = levels.int()
    logits = logits_of(program, levels, runtime)

    def meaning(dtype: torch.dtype) -> torch.Tensor:
        given = RandomConditions()(condition_operands(program.instructions), Conditioning(), IMAGES)
        operands = {operand: x.to(dtype) for operand, x in given.items()}
        return evaluate(program_with(kind, alpha, dtype), levels, _ByShape(operands))

    exact = meaning(torch.float64)
    assert exact.std() > 0.1
    assert_right(logits, meaning(dtype), exact)


class _ByShape:
    """For a program whose operands are equal to those of another one, but not the same."""

    def __init__(self, operands: dict[ConditionOperand, torch.Tensor]) -> None:
        self._of_shape = {operand.index.shape: x for operand, x in operands.items()}

    def __call__(self, operand: ConditionOperand) -> torch.Tensor:
        return self._of_shape[operand.index.shape]


def applied(kind: str, x: torch.Tensor, operand: torch.Tensor, alpha: float, runtime: str) -> torch.Tensor:
    """What a runtime makes of x, [n], by one step. The biases of layers without taps hold x and the operand, since
    weights, even if they are 0, make NaN of what is infinite."""
    n, reads_value = len(x), KINDS[kind].operand is Operand.VALUE
    step = Step(kind, alpha, value=Read(0) if reads_value else None)
    instructions = (
        Convolution(0, n, "operand", (), operand),
        Convolution(1, n, "logits", (), x, steps=(step,)),
    )
    program = Program((1, 1, 1), n, instructions, (1,), x.dtype)
    verify(program)
    return logits_of(program, torch.zeros(1, 1, 1, 1, dtype=torch.int32), runtime).flatten()


@on_every_runtime
@pytest.mark.parametrize(
    "kind, formula",
    [
        ("maximum", torch.maximum),
        ("minimum", torch.minimum),
        ("at_least", torch.maximum),
        ("at_most", torch.minimum),
    ],
)
def test_the_larger_or_smaller_is_one_of_the_two_to_the_bit(kind, formula, runtime):
    """However large the other is; and NaN if one of them is."""
    dtype, _ = RUNTIMES[runtime]
    numbers = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), -1e9, 1e9, 0.1, -0.3, 0.0], dtype=dtype
    )
    x, operand = torch.cartesian_prod(numbers, numbers).unbind(-1)
    for alpha in (0.1, -0.3, 0.0, 1e9, -1e9):
        other = operand if KINDS[kind].operand is Operand.VALUE else torch.full_like(x, alpha)
        found = applied(kind, x, operand, alpha, runtime)
        assert torch.allclose(found, formula(x, other), rtol=0, atol=0, equal_nan=True)


@on_every_runtime
def test_exp_reaches_both_ends_of_its_dtype(runtime):
    dtype, _ = RUNTIMES[runtime]
    limits = torch.finfo(dtype)
    low, high = torch.tensor([limits.smallest_normal, limits.max], dtype=torch.float64).log().tolist()
    x = torch.linspace(1.3 * low, 1.1 * high, 401, dtype=dtype)
    x = torch.cat([x, torch.tensor([float("nan"), float("inf"), -float("inf"), -1e9, 1e9], dtype=dtype)])
    found, plain, exact = applied("exp", x, x, 1.0, runtime), x.exp(), x.double().exp()
    finite = plain.isfinite()
    assert torch.equal(found.isnan(), plain.isnan())
    assert torch.equal(found.isposinf(), plain.isposinf())
    assert torch.equal(found == 0, plain == 0) and bool((found == 0).any())
    size = exact[finite].clamp_min(
        limits.smallest_normal
    )  # the error is relative, except for denormal numbers
    found, plain, exact = ((y[finite].double() / size) for y in (found, plain, exact))
    assert_right(found.to(dtype), plain.to(dtype), exact)


@on_every_runtime
@pytest.mark.parametrize("kind", ["erf", "erfc"])
def test_error_functions_are_exact_however_small(kind, runtime):
    """Near 0, and far out, until they are 0, 1 or 2."""
    dtype, _ = RUNTIMES[runtime]
    x = torch.cat([torch.linspace(-30, 30, 999), torch.logspace(-30, 0, 99)]).to(dtype)
    ends = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0], dtype=dtype)
    found = applied(kind, torch.cat([x, ends]), torch.cat([x, ends]), 1.0, runtime)
    plain, exact = (FORMULAS[kind](each, 1.0) for each in (torch.cat([x, ends]), x.double()))
    assert torch.allclose(found[-4:], plain[-4:], rtol=0, atol=0, equal_nan=True)
    normal = exact.abs() > torch.finfo(dtype).smallest_normal
    assert (found[:-4][~normal] <= torch.finfo(dtype).smallest_normal).all()
    found, plain = (y[:-4][normal].double() / exact[normal] for y in (found, plain))
    assert_right(found.to(dtype), plain.to(dtype), torch.ones_like(found))


@on_every_runtime
def test_log_where_it_is_not_finite(runtime):
    dtype, _ = RUNTIMES[runtime]
    x = torch.tensor([0.0, 1.0, -1.0, -float("inf"), float("inf"), float("nan")], dtype=dtype)
    assert torch.allclose(applied("log", x, x, 1.0, runtime), x.log(), rtol=0, atol=0, equal_nan=True)


@without_a_gpu
@pytest.mark.parametrize("kind, alpha", [("relu", 1.0), ("softplus", 0.6), ("softplus", 2.5)])
def test_far_from_zero_and_nan(kind, alpha, runtime):
    dtype, _ = RUNTIMES[runtime]
    x = torch.cat([torch.linspace(-40, 40, 161), torch.tensor([float("nan"), float("inf")])]).to(dtype)
    found = applied(kind, x, x, alpha, runtime)
    torch.testing.assert_close(found, FORMULAS[kind](x, alpha), equal_nan=True)


@without_a_gpu
def test_many_channels_have_each_its_operand(runtime):
    dtype, _ = RUNTIMES[runtime]
    x, operand = normal(2, 1100).to(dtype)
    assert torch.equal(applied("maximum", x, operand, 1.0, runtime), torch.maximum(x, operand))


def test_zero_becomes_infinite_where_the_table_says_so():
    """Whatever the operand is: two random ones are tried."""
    zero, operands = torch.zeros(3, 7, dtype=torch.float64), [normal(3, 7, seed=seed) for seed in (5, 6)]
    for kind in KINDS.values():
        count = {Operand.NONE: 0, Operand.CONSTANTS: 2}.get(kind.operand, 1)
        for alpha in alphas(kind):
            y = FORMULAS[kind.name](zero, alpha, *operands[:count])
            assert kind.is_infinite_at_zero(alpha) == bool(y.isinf().any()), kind.name


def test_what_the_table_says_of_operands_is_what_formulas_take():
    x, other = normal(4, 7, seed=5), normal(4, 7, seed=6)
    for kind in KINDS.values():
        if kind.operand not in (Operand.VALUE, Operand.CONDITION):
            assert not kind.reads_all_channels
            continue
        changed = other.clone()
        changed[:, 2] += 1
        before, after = (FORMULAS[kind.name](x, 0.6, operand) for operand in (other, changed))
        moved = (before != after).any(0)
        assert bool(moved[2]) and bool(moved.sum() > 1) == kind.reads_all_channels, kind.name
        swapped = FORMULAS[kind.name](other, 1.0, x)
        if kind.operand is Operand.VALUE:
            assert torch.equal(swapped, FORMULAS[kind.name](x, 1.0, other)) == kind.commutes, kind.name
