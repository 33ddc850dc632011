"""What a cubin says of a kernel, and counts over its code."""

from pathlib import Path

import numpy as np
import pytest
from sass_simulator import Kernel, compiled, pack, unknown_instructions
from sass_simulator.kernel import loops, of_lines

from tests.sass_simulator.needs import needs_nvcc
from tests.tiers import thorough

pytestmark = [needs_nvcc, thorough]
FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(FOLDER / "small_kernels.cu", "90", tmp_path_factory.mktemp("cubins") / "small.cubin")


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(FOLDER / "layers.cu", "90", tmp_path_factory.mktemp("cubins") / "layers.cubin")


def test_memory_and_parameters(small):
    kernel = Kernel.load(small, "pointers")
    assert (kernel.arch, kernel.parameter_bytes, kernel.local_bytes) == (90, 20, 160)
    assert 1028 <= kernel.shared_bytes - 1024 <= 1040  # int[256] and a flag, after what the system keeps
    assert 16 <= kernel.registers <= 255


def test_a_name_must_fit_one_kernel(small):
    assert Kernel.load(small, "convol").name == "convolution"
    for name, count in (("o", 4), ("nothing", 0)):
        with pytest.raises(ValueError, match=f"{name} is part of {count} names"):
            Kernel.load(small, name)


def test_counts_over_the_code(small, layers):
    pointers = Kernel.load(small, "pointers").counts()
    assert pointers["generic accesses"] and pointers["local accesses"]
    assert Kernel.load(small, "integers").counts()["integer divisions"] >= 4
    none, division = (Kernel.load(layers, f"Defect{n}E") for n in (0, 4))
    assert none.counts()["generic accesses"] == none.counts()["local accesses"] == 0
    assert none.counts()["integer divisions"] == 0 and division.counts()["integer divisions"] == 1


def test_counts_over_chosen_lines_and_loops(layers):
    kernel = Kernel.load(layers, "Defect4E")
    source = (FOLDER / "layers.cu").read_text().splitlines()
    (line,) = (n for n, text in enumerate(source, 1) if "kDefect == kDivision" in text)
    assert kernel.counts(of_lines("layers.cu", [line]))["integer divisions"] == 1
    assert kernel.counts(of_lines("layers.cu", [1]))["integer divisions"] == 0
    products = [loop for loop in loops(kernel) if any(kernel.instructions[n].name == "HMMA" for n in loop)]
    assert len(products) == 1
    assert kernel.counts(lambda i: i.index in products[0])["HMMA"] == kernel.counts()["HMMA"] == 8


def test_the_simulator_says_what_it_does_not_know(small, tmp_path):
    for name in ("convolution", "draw", "divergent", "integers", "floats", "copies", "pointers"):
        assert unknown_instructions(Kernel.load(small, name)) == []
    (tmp_path / "clock.cu").write_text("__global__ void now(int* out) { *out = clock(); }")
    (unknown,) = unknown_instructions(
        Kernel.load(compiled(tmp_path / "clock.cu", "90", tmp_path / "c"), "now")
    )
    assert "SR_CLOCKLO" in unknown and "a clock" in unknown and "clock.cu:1" in unknown


def test_parameters_are_aligned_to_their_size():
    packed = pack(1, np.int32(2), 3, np.uint8(4), np.float32(5))
    assert packed == b"".join(
        [(1).to_bytes(8, "little"), b"\2\0\0\0", bytes(4), (3).to_bytes(8, "little"), b"\4", bytes(3)]
    ) + np.float32(5).tobytes()  # fmt: skip
