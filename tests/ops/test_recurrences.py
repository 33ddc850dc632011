"""The recurrences of PixelRNN, against a loop over single pixels."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from pixelcnn_fast import ops
from tests.needs import EACH_ISA, ISAS, instruction_set, on_each_isa
from tests.tolerances import assert_right

Recurrence = Callable[..., Tensor]


GATES = (torch.sigmoid, torch.sigmoid, torch.tanh, torch.sigmoid)  # i, f, g and o


def pixel_by_pixel(
    sums: Tensor, weight: Tensor, h0: Any, c0: Any, order: Any, taps: Any, before: Any, gates_are: Any = GATES
) -> Tensor:
    """One pixel after the other, as the paper defines it. order: of the pixels; taps: where each lies, (dy, dx), and
    whether the initial state lies there outside of the image; before: where the cell before lies."""
    (n, _, height, width), hidden = sums.shape, weight.shape[1]
    states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def state(which: int, y: int, x: int, has_initial: bool = True) -> Tensor:
        if (y, x) in states:
            return states[y, x][which]
        initial = (h0, c0)[which]
        in_columns = 0 <= x < width or (0 <= y < height)
        if initial is None or not has_initial or not in_columns:
            return sums.new_zeros(n, hidden)
        return initial.expand(n, hidden)

    for y, x in order(height, width):
        gates = sums[:, :, y, x]
        for k, (dy, dx, has_initial) in enumerate(taps):
            gates = gates + state(0, y + dy, x + dx, has_initial(x + dx, width)) @ weight[:, :, k].T
        parts = gates.unflatten(1, (4, hidden)).unbind(1)
        i, f, g, o = (activation(part) for activation, part in zip(gates_are, parts, strict=True))
        c = f * state(1, y + before[0], x + before[1]) + i * g
        states[y, x] = o * c.tanh(), c
    return torch.stack([torch.stack([states[y, x][0] for x in range(width)], 2) for y in range(height)], 2)


def raster(height: int, width: int) -> Iterator[tuple[int, int]]:
    yield from ((y, x) for y in range(height) for x in range(width))


def from_the_right(height: int, width: int) -> Iterator[tuple[int, int]]:
    yield from ((y, x) for y in range(height) for x in reversed(range(width)))


def inside(x: int, width: int) -> bool:
    return 0 <= x < width


def row_taps(k: int) -> list:
    return [(-1, j - k // 2, inside) for j in range(k)]


def anywhere(x: int, width: int) -> bool:
    return True


CASES: dict[str, tuple[Recurrence, int, tuple]] = {
    "rows": (ops.row_lstm, 3, (raster, row_taps(3), (-1, 0))),
    "rows, five taps": (ops.row_lstm, 5, (raster, row_taps(5), (-1, 0))),
    "rows, one tap": (ops.row_lstm, 1, (raster, row_taps(1), (-1, 0))),
    "diagonals": (
        ops.diagonal_lstm,
        2,
        (raster, [(-1, 0, anywhere), (0, -1, anywhere)], (0, -1)),
    ),
    "diagonals from the right": (
        partial(ops.diagonal_lstm, reverse=True),
        2,
        (from_the_right, [(-1, 0, anywhere), (0, 1, anywhere)], (0, 1)),
    ),
}
SIZES = [(1, 1, 3), (1, 6, 3), (5, 1, 3), (7, 5, 19), (4, 33, 3)]  # H, W, hidden channels


def inputs(hidden: int, taps: int, n: int, size: tuple[int, int], learned: bool) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    states = [drawn(hidden), drawn(hidden)] if learned else [None, None]
    return [drawn(n, 4 * hidden, *size), 0.5 * drawn(4 * hidden, hidden, taps), *states]


def with_gradients(function: Recurrence, given: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of what is given."""
    given = [x if x is None else x.to(dtype).requires_grad_() for x in given]
    h = function(*given)
    grad = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return [h.detach(), *torch.autograd.grad(h, [x for x in given if x is not None], grad)]


BACKENDS = [*on_each_isa("compiled"), ("reference", "")]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "isa"), BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_a_loop_over_pixels(name, backend, isa, dtype, learned):
    """All results together, relative to their size, since the error of a few numbers is luck."""
    function, taps, definition = CASES[name]
    parts: list[list[Tensor]] = [[], [], []]
    for *size, hidden in SIZES:
        given = inputs(hidden, taps, 2, (size[0], size[1]), learned)
        with instruction_set(isa):
            found = with_gradients(partial(function, backend=backend), given, dtype)
        plain, exact = defined(name, learned, hidden, *size, dtype)
        for results, part in zip((found, plain, exact), parts, strict=True):
            assert all(x.dtype == (torch.float64 if results is exact else dtype) for x in results)
            part += [
                (x / e.abs().max().clamp_min(1e-30)).flatten() for x, e in zip(results, exact, strict=True)
            ]
    assert_right(
        *(torch.cat(part).to(d) for part, d in zip(parts, (dtype, dtype, torch.float64), strict=True))
    )


@cache
def defined(
    name: str, learned: bool, hidden: int, height: int, width: int, dtype: torch.dtype
) -> list[list[Tensor]]:
    """What ``inputs`` should come to, with gradients, in dtype and in float64."""
    _, taps, definition = CASES[name]
    given = inputs(hidden, taps, 2, (height, width), learned)
    return [
        with_gradients(lambda *args: pixel_by_pixel(*args, *definition), given, d)
        for d in (dtype, torch.float64)
    ]


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("name", CASES)
def test_layouts_batches_and_threads_change_nothing(name: str, isa: str) -> None:
    function, taps, _ = CASES[name]
    sums, weight, *states = inputs(5, taps, 19, (6, 7), True)
    assert sums is not None
    grad = torch.randn(19, 5, 6, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def run(sums: Tensor, grad: Tensor) -> list[Tensor]:
        leaves = [
            sums.detach().requires_grad_(),
            *(x.requires_grad_() for x in (weight, *states) if x is not None),
        ]
        h = function(*leaves)
        return [h.detach(), *torch.autograd.grad(h, leaves, grad)]

    with instruction_set(isa):
        h, of_sums, *of_weights = run(sums, grad)
        ways = {
            "channels last": (sums.to(memory_format=torch.channels_last), grad),
            "a gap": (sums.repeat(1, 2, 1, 1)[:, : sums.shape[1]], grad.mT.contiguous().mT),
        }
        for way, (like_sums, like_grad) in ways.items():
            found = run(like_sums, like_grad)
            assert torch.equal(found[0], h) and torch.equal(found[1], of_sums), way
            assert found[0].is_contiguous(memory_format=torch.channels_last) == (way == "channels last")
            for one, other in zip(found[2:], of_weights, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        for part in (slice(1), slice(1, 14)):
            found = run(sums[part], grad[part])
            assert torch.equal(found[0], h[part]) and torch.equal(found[1], of_sums[part])
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(5)
            for n in (19, 2):  # a thread has several images, and an image several threads
                found = run(sums[:n], grad[:n])
                assert torch.equal(found[0], h[:n]) and torch.equal(found[1], of_sums[:n])
        finally:
            torch.set_num_threads(threads)


def behind(name: str, y: int, x: int, height: int, width: int) -> Tensor:
    """Which pixels may have a part in a state: those that it follows on, or, since four states of a row are computed
    together, all rows above, and the pixel itself."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    if name.startswith("rows"):
        return (rows < y) | ((rows == y) & (columns == x))
    return (rows <= y) & (columns >= x if name.endswith("right") else columns <= x)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("name", CASES)
def test_what_lies_ahead_has_no_part(name: str, isa: str) -> None:
    """To the last bit, though neighbouring states are computed together; nor does it get a gradient."""
    recurrence, taps, _ = CASES[name]
    sums, weight, *_ = (x if x is None else x.float() for x in inputs(17, taps, 1, (5, 11), False))
    assert sums is not None and weight is not None
    with instruction_set(isa):
        for y, x in ((2, 5), (0, 0), (4, 10), (3, 6)):
            read = behind(name, y, x, 5, 11)
            leaf = sums.clone().requires_grad_()
            state = recurrence(leaf, weight)[0, :, y, x]
            (grad,) = torch.autograd.grad(state.sum(), leaf)
            assert not grad[0, :, ~read].any() and grad[0, :, y, x].any()
            other = torch.where(read, sums, sums.flip(1))
            assert torch.equal(recurrence(other, weight)[0, :, y, x], state.detach())


@pytest.mark.parametrize("gate", range(4))
@pytest.mark.parametrize("name", CASES)
def test_the_definition_tells_each_gate_from_the_others(name: str, gate: int) -> None:
    """By its activation and by its place: what public implementations get wrong would not pass."""
    function, taps, definition = CASES[name]
    sums, weight, h0, c0 = inputs(3, taps, 2, (4, 5), True)
    assert sums is not None and weight is not None
    found = function(sums, weight, h0, c0)
    other = torch.sigmoid if GATES[gate] is torch.tanh else torch.tanh
    activations = (*GATES[:gate], other, *GATES[gate + 1 :])
    order, places, before = definition
    mutants = [pixel_by_pixel(sums, weight, h0, c0, order, places, before, activations)]
    for place in range(gate):
        swapped = list(range(4))
        swapped[gate], swapped[place] = place, gate
        x, w = (part.unflatten(dim, (4, 3)) for part, dim in ((sums, 1), (weight, 0)))
        in_other_places = x[:, swapped].flatten(1, 2), w[swapped].flatten(0, 1)
        mutants.append(pixel_by_pixel(*in_other_places, h0, c0, *definition))
    for mutant in mutants:
        assert (mutant - found).abs().max() > 0.01


@pytest.mark.parametrize("backend", ["reference", *(["compiled"] if ISAS else [])])
@pytest.mark.parametrize("name", CASES)
def test_one_initial_state_does_without_the_other(name: str, backend: str) -> None:
    """What is not given is zero, in the gradients too."""
    function, taps, definition = CASES[name]
    sums, weight, *states = inputs(3, taps, 2, (4, 5), True)
    for given in ([sums, weight, states[0], None], [sums, weight, None, states[1]]):
        found = with_gradients(partial(function, backend=backend), given, torch.float64)
        expected = with_gradients(lambda *args: pixel_by_pixel(*args, *definition), given, torch.float64)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_the_definition_tells_directions_apart(name: str) -> None:
    """Where the walk begins, which pixel a tap lies on, and which cell is the one before."""
    function, taps, (order, places, before) = CASES[name]
    given: list[Any] = [*inputs(3, taps, 2, (4, 5), True)]
    found = function(*given)
    moved = [(dy, dx - 1, initial) for dy, dx, initial in places]
    mutants: list[tuple] = [(order, places[::-1], before), (raster, moved, before)]
    mutants.append((raster, places, (0, -1) if before == (-1, 0) else (-1, 0)))
    if name.startswith("diagonals"):
        mutants.append(CASES["diagonals" if name.endswith("right") else "diagonals from the right"][2])
    for mutant in mutants if taps > 1 else mutants[1:]:
        assert (pixel_by_pixel(*given, *mutant) - found).abs().max() > 0.01


@pytest.mark.parametrize("name", CASES)
def test_weights_and_states_may_have_gaps(name: str) -> None:
    function, taps, _ = CASES[name]
    given = inputs(3, taps, 2, (4, 5), True)
    spread = [given[0], *(x if x is None else torch.stack([x, x], -1)[..., 0] for x in given[1:])]
    found, expected = (with_gradients(function, each, torch.float64) for each in (spread, given))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_compute(name: str) -> None:
    function, taps, _ = CASES[name]
    for n, size in ((0, (3, 4)), (2, (0, 4)), (2, (3, 0))):
        given = [x.requires_grad_() for x in inputs(3, taps, n, size, True) if x is not None]
        h = function(*given)
        assert h.shape == (n, 3, *size)
        assert all(not g.any() for g in torch.autograd.grad(h.sum(), given))


def test_gates_are_not_kept_where_no_gradient_is_needed() -> None:
    sums, weight, *_ = inputs(2, 3, 1, (3, 4), False)
    h, gates = torch.ops.pixelcnn_fast.row_lstm(sums, weight, None, None, False, "auto")
    assert h.shape == (1, 2, 3, 4) and gates.numel() == 0


@pytest.mark.parametrize(("backend", "isa"), BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_cells_of_bfloat16_are_in_float32(name: str, backend: str, isa: str) -> None:
    """Each step adds a thousandth to the cell. In bfloat16, it would stop at 1/4."""
    function, taps, _ = CASES[name]
    sums = (
        torch.tensor([100.0, 100.0, 0.001, 100.0]).view(1, 4, 1, 1).expand(1, 4, 300, 300 if taps == 2 else 1)
    )
    weight = torch.zeros(4, 1, taps)
    with instruction_set(isa):
        h = function(sums.bfloat16(), weight.bfloat16(), backend=backend)
    last = h[0, 0, -1, 0 if name.endswith("right") else -1].item()
    assert last == pytest.approx(torch.tensor(0.3).tanh().item(), rel=0.01)


@pytest.mark.parametrize("isa", EACH_ISA)
def test_float64_is_exact_to_a_few_roundings(isa: str) -> None:
    """tanh and the logistic function, near zero and far from it."""
    x = torch.cat([torch.logspace(-12, 2.5, 4001), torch.linspace(0.6, 0.65, 400), torch.zeros(1)]).double()
    x = torch.cat([x, -x])
    one = torch.full_like(x, 60)  # whose logistic function and tanh are 1
    with instruction_set(isa):
        h_of_g, h_of_i = (
            ops.row_lstm(torch.stack(gates).view(1, 4, 1, len(x)), torch.zeros(4, 1, 1).double()).flatten()
            for gates in ((one, one, x, one), (x, one, one, one))
        )
    torch.testing.assert_close(h_of_g, x.tanh().tanh(), rtol=4e-15, atol=0)
    torch.testing.assert_close(h_of_i, x.sigmoid().tanh(), rtol=4e-15, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_autocast_and_compile(name: str) -> None:
    function, taps, _ = CASES[name]
    given = [x if x is None else x.float() for x in inputs(2, taps, 2, (3, 4), True)]
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*given).dtype == torch.bfloat16
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), function(*given))


WEIGHT = torch.zeros(8, 2, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(1, 8, 2, 2), torch.zeros(8, 3, 3)), r"weight \[8, 3, 3\]: expected \[4h, h, k\]"),
        ((torch.zeros(1, 6, 2, 2), WEIGHT), r"sums \[1, 6, 2, 2\]: expected \[N, 8, H, W\]"),
        ((torch.zeros(8, 2, 2), WEIGHT), r"sums \[8, 2, 2\]"),
        ((torch.zeros(1, 8, 2, 2), torch.zeros(8, 2, 2)), "odd number of taps"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT, torch.zeros(3)), r"h0 \[3\]: expected \[2\]"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT, None, torch.zeros(1, 2)), r"c0 \[1, 2\]: expected \[2\]"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT.double()), "weight is torch.float64, sums are torch.float32"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT.long()), "weight is torch.int64"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT, None, torch.zeros(2).double()), "c0 is torch.float64"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT, torch.zeros(2, device="meta")), "h0 is torch.float32 on meta"),
        ((torch.zeros(1, 8, 2, 2), 3), "weight is a int, expected a tensor"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT, 0.0), "h0 is a float, expected a tensor"),
        ((torch.zeros(1, 8, 2, 2), WEIGHT, None, None, "cuda"), "backend is 'cuda', expected 'auto' or"),
        (
            (torch.zeros(1, 8, 2, 2), WEIGHT, None, None, "triton"),
            "computes on cuda tensors, and these are on cpu",
        ),
    ],
)
def test_refusals(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.row_lstm(*args)


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_there_is_refused(name: str) -> None:
    """Second derivatives, forward-mode ones, and float64 beside what autocast lowers."""
    recurrence, taps, _ = CASES[name]
    sums, weight = (x.requires_grad_() for x in inputs(3, taps, 2, (3, 4), False)[:2] if x is not None)
    (grad,) = torch.autograd.grad(recurrence(sums, weight).square().sum(), sums, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="no second derivatives: for gradient penalties, use the plain"
    ):
        grad.square().sum().backward()
    sums, weight = sums.detach(), weight.detach()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        recurrence(sums, forward_ad.make_dual(weight, weight))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="float64 tensors stay as they are"),
    ):
        recurrence(sums.float(), weight)


def test_negative_bits_are_read() -> None:
    sums = torch.randn(1, 8, 2, 2, dtype=torch.complex64).conj().imag
    assert torch.equal(ops.row_lstm(sums, WEIGHT + 1), ops.row_lstm(sums.resolve_neg().clone(), WEIGHT + 1))


def test_the_direction_is_a_bool() -> None:
    with pytest.raises(ValueError, match="reverse is 'reference', expected True or False"):
        given: Any = "reference"  # meant for the backend
        ops.diagonal_lstm(torch.zeros(1, 8, 2, 2), WEIGHT[..., :2], None, None, given)


def test_a_diagonal_lstm_has_two_taps() -> None:
    with pytest.raises(ValueError, match="expected two taps, above and to the left"):
        ops.diagonal_lstm(torch.zeros(1, 8, 2, 2), WEIGHT)
