"""docs/cuda_resources.md says what is compiled of the kernels, and what a plan takes; none does what is slow."""

import inspect
from pathlib import Path

import column_steps
import cuda_resources as resources
import pytest
import sass_simulator
from sass_simulator.kernel import GENERIC, LOCAL, Kernel, is_integer_division

from pixelcnn_fast.runtimes.cuda.compilers import Compiler, compilers
from pixelcnn_fast.runtimes.cuda.kernels import Instance, instances, sources
from tests.found_before import found_before
from tests.needs import needs_native
from tests.sass_simulator.needs import needs_kernels
from tests.tiers import thorough

STALE = "run python benchmarks/cuda_resources.py"


def documented(section: str, math: str) -> list[dict[str, str]]:
    """A table of the page: its rows for a kind of numbers, a cell by the name of its column."""
    rows = resources.TABLE.read_text().split(f"## {section}")[1].split("##")[0].splitlines()
    names, _, *cells = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("|")
    ]
    return [dict(zip(names, row, strict=True)) for row in cells if row[0] == math]


@needs_native
@needs_kernels
@pytest.mark.parametrize("math", ["fp32", "bf16"])
@thorough
def test_registers_are_what_is_compiled(math: str, tmp_path: Path) -> None:
    """Of an H100's kernels, and for other GPUs of those with few registers left. None spills; and whatever a
    network makes them do, or an option of the draw, an H100's have no generic and no local access, and divide
    integers only where a sweep begins. ``cuda_resources.py --check`` tells of all."""
    rows = {
        resources.Instance(math, int(row["tiles"]), int(row["blocks"])): row
        for row in documented("Registers of a thread", math)
    }
    assert [*rows] == resources.instances([math])
    compiler = resources.needed_compiler()
    is_same = f" {compiler} " in resources.TABLE.read_text()

    def is_wanted(instance: resources.Instance, arch: str) -> bool:
        return arch == "90" or rows[instance][f"sm_{arch}"] in map(str, range(250, 256))

    with found_before(f"registers of {math}", *made_of(compiler), [*rows.values()]) as found:
        for instance, arch, cubin in () if found else resources.cubins(rows, is_wanted=is_wanted):
            usage = resources.usage_of(cubin)
            assert not usage.stack
            assert not is_same or rows[instance][f"sm_{arch}"] == str(usage.registers), STALE
            if arch == "90":
                file = tmp_path / f"{instance}.cubin"
                file.write_bytes(cubin)
                assert_does_nothing_slow(Kernel.load(file, ""))


def made_of(compiler: Compiler) -> list[object]:
    """What these tests find follows from, apart from what is on the page."""
    functions = assert_does_nothing_slow, begins_a_sweep, resources.usage_of, resources.cubins
    found_by = [inspect.getsource(function) for function in functions]
    simulator = sorted(Path(sass_simulator.__file__).parent.glob("*.py"))
    texts = column_steps.device_sources(sources())
    return [*texts, str(compiler), compiler.identity, *found_by, *simulator]


@needs_native
@needs_kernels
@pytest.mark.parametrize("compiler", compilers()[1:], ids=lambda found: found.path.name)
@thorough
def test_the_tightest_kernels_of_other_compilers_do_not_spill(compiler: Compiler) -> None:
    """``cuda_resources.py --check`` tells of all kernels. The extra `test` brings NVRTC 12.8."""
    tightest = {"bf16-1x8": [90, 100], "bf16-8x1": [80, 90, 120], "fp32-2x1": [120]}
    by_name = {str(instance): instance for instance in instances(["bf16", "fp32"])}
    known = {*compiler.architectures()}
    wanted = [(arch, by_name[name].options) for name, archs in tightest.items() for arch in known & {*archs}]
    assert wanted
    with found_before(f"the tightest kernels by {compiler}", *made_of(compiler), wanted) as found:
        for _, cubin in () if found else compiler.compiled_each(sources(), wanted):
            assert not resources.usage_of(cubin).stack


@needs_native
@needs_kernels
@thorough
def test_compilers_before_12_8_have_kernels_of_clusters_too() -> None:
    """They refuse some instructions as others write them."""
    older = {
        name: text.replace("__CUDACC_VER_MINOR__ < 1208", "0 < 9999") for name, text in sources().items()
    }
    assert older != sources()
    with found_before("as of a compiler before 12.8", *made_of(compilers()[0])) as found:
        assert found or b"\x7fELF" in compilers()[0].compiled(older, 90, Instance("bf16", 1, 2).options)


def assert_does_nothing_slow(kernel: Kernel) -> None:
    assert len(kernel.instructions) > 1000
    assert not [i for i in kernel.instructions if i.name in GENERIC | LOCAL]
    divisions = [i for i in kernel.instructions if is_integer_division(i)]
    assert divisions and not [i for i in divisions if not begins_a_sweep(*i.lines[0])]


def begins_a_sweep(path: str, line: int) -> bool:
    """Whether it is in a function that does, or the loop over sweeps."""
    lines = sources()[f"cuda/kernels/{Path(path).name}"].splitlines()
    if "run_sweep(" in lines[line - 1]:
        return True
    function = next(text for text in reversed(lines[:line]) if text.startswith(("__device__", "PCF_DEVICE")))
    return " place_sites(" in function or " place_in_rings(" in function


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
