"""CONTRIBUTING.md sends people to files that exist, and what its lists ask for is there."""

import inspect
import re

import pytest

from pixelcnn_fast import heads, ops
from pixelcnn_fast.heads import Head
from tests.docs import DOCS

ROOT = DOCS.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
# Names may be relative to a folder that the same row or section names.
FOLDERS = ("", "pixelcnn_fast", "tests", "tests/capture", "tests/ops", "csrc/cpu/ops", "pixelcnn_fast/passes")
OPS = [path.parent.name for path in (ROOT / "pixelcnn_fast/ops").glob("*/op.py")]


def test_files_and_folders_exist() -> None:
    named = re.findall(r"`([\w./<>]+(?:/|\.(?:py|h|cpp|md|txt)))`", PAGE)
    assert len(named) > 40
    for name in named:
        for op in ("masked_conv2d", "categorical_nll"):
            path = name.replace("<op>", op).replace("heads/<name>", "heads/bernoulli")
            assert any((ROOT / folder / path).exists() for folder in FOLDERS), name


NAMED = re.findall(r"<!-- files that name (\w+) -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
MOST = {"silu": 5, "top_p": 7, "Bernoulli": 2, "gated_activation": 10}  # files of the first table


def first_cells(table: str) -> list[str]:
    rows = [row.split("|")[1] for row in table.strip().splitlines() if row.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize(("witness", "tables"), NAMED)
def test_what_names_a_witness_are_the_files_of_its_table(witness: str, tables: str) -> None:
    """So the tables are the files that one touches to add another of its kind."""
    listed = [x.replace("<op>", witness).replace("<name>", witness.lower()) for x in first_cells(tables)]
    folders = ("pixelcnn_fast", "csrc", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    sources = {str(p.relative_to(ROOT)): p for p in paths if p.suffix in (".py", ".h", ".cpp", ".cu")}
    word = re.compile(rf"\b{witness}\b")
    naming = {name for name, path in sources.items() if word.search(f"{name}\n{path.read_text()}")}
    naming = {name for name in naming if not name.endswith(f"{witness}/__init__.py")}  # it is empty
    assert naming == set(listed)
    assert len(first_cells(tables.split("\n\n")[0])) <= MOST[witness]


def test_each_kind_has_a_witness() -> None:
    assert {witness for witness, _ in NAMED} == MOST.keys()


def test_what_has_no_witness_takes_few_files() -> None:
    tables = re.findall(r"<!-- files of ([\w ]+): at most (\d+) -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert [name for name, *_ in tables] == ["an instruction", "a field", "a native head"]
    for name, most, table in tables:
        files = [
            cell for row in table.splitlines()[2:] for cell in re.findall(r"`([\w./]+)`", row.split("|")[1])
        ]
        assert 0 < len(files) <= int(most), name


@pytest.mark.parametrize("op", OPS)
def test_every_operator_has_all_its_parts(op: str) -> None:
    assert op in ops.__all__
    if op in ("row_lstm", "diagonal_lstm"):
        pytest.skip("both are recurrences, to C++ and Triton")
    has_kernels = op != "masked_conv_block"  # which those of masked_conv2d compute, too
    for file in ("reference.py", "op.py", *(["triton.py"] if has_kernels else [])):
        assert (ROOT / "pixelcnn_fast/ops" / op / file).exists()
    assert (ROOT / f"tests/ops/test_{op}.py").exists()
    users = {
        "a Triton test": (ROOT / "tests/ops").glob("test_triton_*.py"),
        "the benchmark": [ROOT / "benchmarks/test_ops_bench.py"],
        **({"the bindings": [ROOT / "csrc/cpu/ops/layers_bindings.cpp"]} if has_kernels else {}),
    }
    for user, files in users.items():
        assert any(re.search(rf"\b{op}\b", file.read_text()) for file in files), f"{user} does not use {op}"


def all_heads(head: type[Head] = Head) -> list[type[Head]]:
    found = [each for below in head.__subclasses__() for each in (below, *all_heads(below))]
    return [each for each in found if each.__module__.startswith("pixelcnn_fast.heads.")]


@pytest.mark.parametrize("head", [head for head in all_heads() if not inspect.isabstract(head)])
def test_every_head_is_exported_and_tested(head: type[Head]) -> None:
    assert head.__name__ in heads.__all__
    assert f"{head.__name__}(" in "".join(
        file.read_text() for file in (ROOT / "tests/heads").glob("test_*.py")
    )
