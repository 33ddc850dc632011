"""docs/cuda_resources.md says what is compiled of the kernels, and what a plan takes; no kernel spills."""

from __future__ import annotations

import cuda_resources as resources
import pytest

from tests.needs import needs_native
from tests.sass_simulator.needs import needs_kernels
from tests.tiers import thorough

STALE = "run python benchmarks/cuda_resources.py"


def documented(section: str, math: str) -> list[dict[str, str]]:
    """A table of the page: its rows for a kind of numbers, a cell by the name of its column."""
    rows = resources.TABLE.read_text().split(f"## {section}")[1].split("##")[0].splitlines()
    names, _, *cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")]
    return [dict(zip(names, row, strict=True)) for row in cells if row[0] == math]


@needs_native
@needs_kernels
@pytest.mark.parametrize("math", ["fp32", "bf16"])
@thorough
def test_registers_are_what_is_compiled(math: str) -> None:
    """Of all its kernels, for all of these GPUs; and none spills."""
    rows = {
        resources.Instance(math, int(row["tiles"]), int(row["blocks"])): row
        for row in documented("Registers of a thread", math)
    }
    assert [*rows] == resources.instances([math])
    is_same = f" {resources.needed_compiler()} " in resources.TABLE.read_text()
    for instance, arch, usage in resources.usages(rows):
        assert not usage.stack
        assert not is_same or rows[instance][f"sm_{arch}"] == str(usage.registers), STALE


@needs_native
def test_shared_memory_is_what_a_plan_takes() -> None:
    plans = resources.plans_of_default("bf16", sizes=[227], most=2)
    rows = {int(row["images"]): row for row in documented("Shared memory of a block", "bf16")}
    (column,) = (name for name in rows[1] if name.startswith("227 KB"))
    assert len(plans) == 2 and len(rows) == 8
    for (images, _), plan in plans.items():
        assert rows[images][column] == resources.shared(plan), STALE


@needs_native
@thorough
def test_what_lies_where() -> None:
    rows = resources.network_rows([resources.GATED, resources.DIAGONAL])
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
