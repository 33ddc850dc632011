"""docs/cuda_resources.md says what this nvcc makes of the kernels, and what a plan takes; no kernel spills."""

from __future__ import annotations

import shutil
from pathlib import Path

import cuda_resources as resources
import pytest
from sass_simulator.kernel import tool

from pixelcnn_fast import native
from tests.csrc.emulated import emulated
from tests.needs import needs_native

STALE = "run python benchmarks/cuda_resources.py"


def documented(section: str, math: str) -> list[dict[str, str]]:
    """A table of the page: its rows for a kind of numbers, a cell by the name of its column."""
    rows = resources.TABLE.read_text().split(f"## {section}")[1].split("##")[0].splitlines()
    names, _, *cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")]
    return [dict(zip(names, row, strict=True)) for row in cells if row[0] == math]


@needs_native
def test_registers_are_what_nvcc_has_built() -> None:
    """Of all kernels, for the GPUs that the installed module is built for; and none spills."""
    info = native.required().build_info()
    if not info["cuda"]:
        pytest.skip(f"the module has no kernels: {info['cuda_off']}")
    if tool("cuobjdump") is None:
        pytest.skip("no cuobjdump in CUDA_HOME, on the PATH or beside triton")
    found = resources.usage_of(Path(str(native.required().__file__)))
    built = {arch.split("-")[0] for arch in info["cuda_archs"]} & set(resources.ARCHS)
    assert {kernel.arch for kernel in found} >= built
    assert not any(usage.stack for usage in found.values())
    if f"nvcc {info['cuda_version']} " not in resources.TABLE.read_text():
        pytest.skip(f"the table was written with another nvcc than {info['cuda_version']}")
    for math in resources.MATHS:
        for row in documented("Registers of a thread", math):
            for arch in built:
                usage = found.get(resources.Kernel(math, int(row["tiles"]), int(row["blocks"]), arch))
                assert row[f"sm_{arch}"] == (str(usage.registers) if usage else "–"), STALE


@needs_native
@pytest.mark.skipif(not shutil.which("g++"), reason="the host's emulation is not built: no g++")
def test_shared_memory_is_what_a_plan_takes() -> None:
    plans = resources.plans_of_default(emulated(), "bf16", sizes=[227], most=2)
    rows = {int(row["images"]): row for row in documented("Shared memory of a block", "bf16")}
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
