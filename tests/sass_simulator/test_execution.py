"""The simulator executes what nvcc makes of small kernels, and memory afterwards is what numpy computes."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sass_simulator import RATES, Kernel, Memory, Run, compiled, pack, simulate
from sass_simulator.floats import as_bf16
from sass_simulator.machine import SimulationError

from tests.sass_simulator.needs import needs_nvcc
from tests.tiers import thorough

pytestmark = [needs_nvcc, thorough]
SOURCE = Path(__file__).parent / "small_kernels.cu"
ARCHS = ("80", "90", "100", "120")
Random = np.random.Generator


@cache
def cubin(arch: str, folder: Path) -> Path:
    return compiled(SOURCE, arch, folder / f"{arch}.cubin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


@pytest.fixture(params=ARCHS)
def run(request: pytest.FixtureRequest, folder: Path) -> Callable[..., Run]:
    def of(name: str, memory: Memory, *parameters, threads=256, shared=0, **more) -> Run:
        kernel = Kernel.load(cubin(request.param, folder), name)
        return simulate(kernel, pack(*parameters), memory, threads=threads, rates=RATES[request.param],
                        shared_bytes=shared, **more)  # fmt: skip

    return of


def random() -> Random:
    return np.random.default_rng(0)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_fragments(weights: np.ndarray) -> np.ndarray:
    """[16 rows, k] of bfloat16 -> operands of lanes, [k / 16, 32, 8]."""
    tiles = weights.reshape(2, 8, -1, 2, 4, 2)  # [row half, row, k step, k half, member, pair]
    return tiles.transpose(2, 1, 4, 3, 0, 5).reshape(-1, 32, 8)


def test_products_of_bfloat16(run):
    k, r = 80, random()
    w, x = (as_bf16(r.standard_normal(s).astype(np.float32)).astype(np.uint16) for s in ((128, k), (8, k)))
    bias = r.standard_normal(128).astype(np.float32)
    m = Memory()
    out = m.place(128 * 8 * 4)
    fragments = np.stack([as_fragments(w[16 * n : 16 * n + 16]) for n in range(8)])
    run("convolution", m, m.place(fragments), m.place(x), m.place(bias), out, np.int32(k), shared=8 * k * 2)
    expected = np.maximum(from_bf16(w) @ from_bf16(x).T + bias[:, None], 0)
    np.testing.assert_allclose(m.read(out, 1024, np.float32).reshape(128, 8), expected, rtol=1e-4, atol=1e-4)


def test_draws_by_shuffles_votes_and_float64(run):
    r, m = random(), Memory()
    logits = r.standard_normal((4, 256)).astype(np.float32) * 3
    sums = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64).cumsum(1)
    u = sums[:, -1] * np.array([0.01, 0.3, 0.7, 0.99])
    level, total = m.place(16), m.place(32)
    run("draw", m, m.place(logits), m.place(u), level, total, threads=128)
    np.testing.assert_allclose(m.read(total, 4, np.float64), sums[:, -1], rtol=1e-14)
    assert m.read(level, 4, np.int32).tolist() == [int(n) // 4 * 4 for n in (sums <= u[:, None]).sum(1)]


def collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n, steps = (3 * n + 1 if n % 2 else n // 2), steps + 1
    return steps


def diverged(i: int, n: int) -> tuple[int, bool]:
    """(result, whether the thread left early)"""
    x = collatz(i + 1)
    if i % 7 == 5:
        for j in range(i):
            if j * n % 13 == 5:
                break
            x += j
        return x, False
    if i % 7 == 6:
        return (-1, True) if x > 40 else (x, False)
    return [x + n, x ^ 0x55, x * x - n, x << 3, -x][i % 7], False


def test_lanes_that_go_different_ways(run):
    m, n = Memory(), 9
    out = m.place(4 * 513)
    run("divergent", m, out, np.int32(n), block=(1, 0, 0), blocks=(2, 1, 1))
    expected = [diverged(i, n) for i in range(256, 512)]
    got = m.read(out, 513, np.int32)
    assert got[256:512].tolist() == [x for x, _ in expected] and not got[:256].any()
    assert got[512] == sum(x for i, (x, left) in enumerate(expected, 256) if i % 3 == 0 and not left)


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def integer_results(a: int, b: int, i: int) -> list[int]:
    unsigned_a, unsigned_b = a % 2**32, b % 2**32
    x = signed(a * 0x12345 + b, 64)
    y = b - quotient(b, 1000) * 1000 + 1001
    first_bit = (b & -b).bit_length()
    reverse = int(f"{unsigned_a & 0xFF:032b}"[::-1], 2) >> 8
    rotated = (unsigned_b << 32 | unsigned_a) << i % 32 >> 32 & 0xFFFFFFFF
    picked = (
        unsigned_a >> 8 & 255 | unsigned_a >> 24 << 8 | (unsigned_b >> 8 & 255) << 16 | unsigned_b >> 24 << 24
    )
    bits = bin(unsigned_a).count("1") | 32 - unsigned_b.bit_length() << 8 | reverse | first_bit << 24
    return [
        quotient(a, b | 1),
        unsigned_a % (unsigned_b | 1),
        quotient(x, y),
        x % 2**64 % y,
        signed(bits, 32),
        signed((unsigned_a * unsigned_b >> 32) + (signed(a * b >> 32, 32) << 20), 64),
        signed((x >> (a & 63)) ^ (x << (b & 63)), 64),
        rotated ^ picked ^ max(min(a, 7), -9) % 2**32,
    ]


def test_integers_of_32_and_64_bits(run):
    m, n, r = Memory(), 64, random()
    a, b = r.integers(-(2**31), 2**31, (2, n)).astype(np.int32)
    b[:5] = [0, 1, -1, 7, 2**31 - 1]
    out = m.place(8 * 9 * n)
    run("integers", m, m.place(a), m.place(b), out, threads=n)
    got = m.read(out, 9 * n, np.int64).reshape(9, n)
    for i in range(n):
        assert got[:8, i].tolist() == integer_results(int(a[i]), int(b[i]), i), (i, a[i], b[i])
    for warp in range(n // 32):
        mine = a[32 * warp : 32 * warp + 32]
        total = signed(int(mine.astype(np.int64).sum()), 32)
        assert got[8, 32 * warp : 32 * warp + 32].tolist() == [total] * 32


def test_floating_point(run):
    m, n, r = Memory(), 96, random()
    x, y = r.standard_normal((2, n)).astype(np.float32) * 3
    x[:4], y[:4] = [1e-39, 3e38, 0, 5], [2, 1e-5, 3, 1e-40]
    y[4:6] = [np.inf, 2.5]
    out, wide = m.place(4 * 9 * n), m.place(8 * 3 * n)
    run("floats", m, m.place(x), m.place(y), out, wide, threads=n)
    got = m.read(out, 9 * n, np.float32).reshape(9, n)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = [
            x / y,
            np.exp(x64),
            np.tanh(x64),
            1 / (1 + np.exp(-x64)),
            np.log(np.abs(x64) + 1e-3),
            1 / np.sqrt(np.abs(y64)) + np.sqrt(np.abs(x64)),
            np.floor(x) + np.rint(y) * 16 + np.trunc(x * 3) * 256,
            x.astype(np.float16).astype(np.float32) + from_bf16(as_bf16(y)),
            np.clip(np.trunc(x64 * 100), -(2**31), 2**31 - 1) + np.minimum(np.abs(y64) * 1e9, 2**32),
        ]
        doubles = [
            x64 / y64,
            x64 / 3 + np.log(np.abs(y64)),
            np.exp(x64) + np.sqrt(np.abs(y64)) + (x64 > y64),
        ]
    usual = np.isfinite(y) & (np.abs(x) < 1e30)
    np.testing.assert_array_equal(got[0], expected[0])
    for row, of in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(row[usual], of[usual], rtol=2e-6, atol=2e-7)
    quotient, *others = m.read(wide, 3 * n, np.float64).reshape(3, n)
    np.testing.assert_array_equal(quotient, doubles[0])
    for row, of in zip(others, doubles[1:], strict=True):
        np.testing.assert_allclose(row[usual], of[usual], rtol=1e-14)


def test_asynchronous_copies_and_matrices_from_shared_memory(run):
    m, rounds = Memory(), 3
    data = (
        random().integers(0, 2**16, (rounds, 8, 4, 8, 8)).astype(np.uint16)
    )  # [..., warp, matrix, row, column]
    out = m.place(data.nbytes)
    marks = run("copies", m, m.place(data), out, np.int32(rounds)).marks(7)
    assert len(marks) == rounds and sorted(marks) == marks
    data.reshape(rounds, 256, 8)[:, ::5] = 0
    swapped = data[:, [1, 0, 3, 2, 5, 4, 7, 6]].swapaxes(
        3, 4
    )  # a lane gets four registers, one of each matrix
    expected = swapped.reshape(rounds, 8, 4, 32, 2).transpose(0, 1, 3, 2, 4)
    np.testing.assert_array_equal(m.read(out, data.size, np.uint16), expected.reshape(-1))


def test_generic_pointers_local_memory_and_barriers_of_some_warps(run):
    m, which = Memory(), 1
    data = np.arange(256, dtype=np.int32) * 7
    at, out = m.place(data), m.place(1024)
    result = run("pointers", m, at, out, np.int32(which))
    own = np.arange(1000, 1256, dtype=np.int32)
    x = np.zeros(256, np.int32)
    index = np.arange(256)
    shared = (index + which) % 2 == 1
    many = np.stack([np.where(shared, own[(index + j) % 256], data[(index + j) % 256]) for j in range(40)])
    for j in range(40):
        x = x * 3 + many[(j * index + which) % 40, index]
    expected = np.where(shared, x + data, x + own) + (x > 0).sum()
    np.testing.assert_array_equal(m.read(out, 256, np.int32), expected.astype(np.int32))
    assert result.generic_accesses > 0 and result.local_accesses > 0


def test_what_a_gpu_refuses_is_an_error_that_names_the_instruction(run):
    m = Memory()
    out = m.place(4 * 256)  # the sum after the 256 numbers is nobody's
    with pytest.raises(SimulationError, match=r"RED.*: address .* nobody's"):
        run("divergent", m, out, np.int32(9))


def test_an_unknown_instruction_is_an_error(folder):
    kernel = Kernel.load(cubin("90", folder), "convolution")
    changed = [i.__class__(i.index, i.address, i.text.replace("HMMA", "QMMA"), i.encoding, i.lines)
               for i in kernel.instructions]  # fmt: skip
    kernel.instructions[:] = changed
    m = Memory()
    with pytest.raises(SimulationError, match="QMMA.*unknown instruction"):
        pointers = [m.place(1 << 14) for _ in range(4)]
        simulate(kernel, pack(*pointers, np.int32(32)), m, threads=256, rates=RATES["90"], shared_bytes=512)
