"""docs/cuda_resources.md says what this nvcc makes of the kernels, and what a plan takes; no kernel spills."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cuda_resources as resources
import pytest

from tests.csrc.emulated import emulated
from tests.needs import needs_native

NVCC = shutil.which(os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin/nvcc")
STALE = "run python benchmarks/cuda_resources.py"


def documented(section: str, math: str, blocks: int | None = None) -> dict[int, dict[str, str]]:
    """A table of the page: for each number in its second column, its cells by the names of their columns. blocks: of
    rows with so many in the third column."""
    rows = resources.TABLE.read_text().split(f"## {section}")[1].split("##")[0].splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")]
    found = [row for row in cells if row[0] == math and (blocks is None or row[2] == str(blocks))]
    return {int(row[1]): dict(zip(cells[0], row, strict=True)) for row in found}


@pytest.mark.skipif(NVCC is None, reason="no nvcc in CUDA_HOME or /usr/local/cuda")
@pytest.mark.parametrize("math, arch", [("bf16", "90a")])  # one of 24: the build refuses spills in all of them
def test_registers_are_what_nvcc_reports(math: str, arch: str, tmp_path: Path) -> None:
    assert NVCC is not None
    kernels, source = ((1, 1), (1, 4), (8, 1)), tmp_path / "kernels.cu"  # the fewest tiles, and the most
    instances = (
        f"template __global__ void walk<Math::{math}, {tiles}, {blocks}>(__grid_constant__ const KernelParams);"
        for tiles, blocks in kernels
    )
    source.write_text(
        "\n".join(['#include "cuda/kernels/walk.h"', "namespace pcf::cuda {", *instances, "}", ""])
    )
    found = resources.compiled(NVCC, source, math, [arch])
    assert set(found) == {(*kernel, arch) for kernel in kernels}
    assert not any(registers.spilled for registers in found.values())
    version = resources.nvcc_version(NVCC)
    if f"nvcc {version};" not in resources.TABLE.read_text():
        pytest.skip(f"the table was written with another nvcc than {version}")
    for tiles, blocks in kernels:
        row = documented("Registers of a thread", math, blocks)[tiles]
        assert row[f"sm_{arch}"] == str(found[tiles, blocks, arch]), STALE


@needs_native
@pytest.mark.skipif(not shutil.which("g++"), reason="the host's emulation is not built: no g++")
def test_shared_memory_is_what_a_plan_takes() -> None:
    plans = resources.plans_of_default(emulated(), "bf16", sizes=[227], most=2)
    rows = documented("Shared memory of a block", "bf16")
    (column,) = (name for name in rows[1] if name.startswith("227 KB"))
    assert len(plans) == 2 and len(rows) == 8
    for (images, _), plan in plans.items():
        assert rows[images][column] == resources.shared(plan), STALE


@needs_native
@pytest.mark.skipif(not shutil.which("g++"), reason="the host's emulation is not built: no g++")
def test_what_lies_where() -> None:
    rows = resources.network_rows(["GATED", "DIAGONAL"])
    page = resources.TABLE.read_text().splitlines()
    assert len(rows) == 4 and set(rows) <= set(page), STALE


def test_a_row_of_a_network_that_is_sampled_a_row_at_a_time() -> None:
    """Two sweeps: one over 4 columns at once, one over each of 8 columns; 3 rows."""
    sweeps = [
        {"steps": 2, "records": 8, "weight_bytes": 400, "value_bytes": 4_000},
        {"steps": 8, "records": 5, "weight_bytes": 1_000, "value_bytes": 0},
    ]
    facts = {"sweeps": sweeps, "turns": 3, "cluster": 4, "workspace_bytes": 250_000, "shared_bytes": 1_024}
    assert (
        resources.network_row("N", facts, 8)
        == "| N, a pixel | 4 | 30 | 7 | 1,100 | 1,000 | 1,000,000 | 1,024 |"
    )
    one = {**facts, "sweeps": sweeps[:1], "turns": 1, "cluster": 1}
    assert resources.network_row("N", one, 8) == "| N | 1 | 2 | 8 | 400 | 4,000 | 250,000 | 1,024 |"
