"""CONTRIBUTING.md sends people to files that exist, and what its lists ask for is there."""

from __future__ import annotations

import inspect
import re

import pytest

from pixelcnn_fast import heads, ops
from pixelcnn_fast.heads import Head
from tests.docs import DOCS

ROOT = DOCS.parent
# Names may be relative to a folder that the same row or section names.
FOLDERS = ("", "pixelcnn_fast", "tests", "tests/capture", "tests/ops", "csrc/cpu/ops", "pixelcnn_fast/passes")
OPS = [path.parent.name for path in (ROOT / "pixelcnn_fast/ops").glob("*/op.py")]


def test_files_and_folders_exist() -> None:
    named = re.findall(r"`([\w./<>]+(?:/|\.(?:py|h|cpp|md|txt)))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 40
    for name in named:
        for op in ("masked_conv2d", "categorical_nll"):
            path = name.replace("<op>", op).replace("heads/<name>", "heads/bernoulli")
            assert any((ROOT / folder / path).exists() for folder in FOLDERS), name


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
    assert f"{head.__name__}(" in "".join(file.read_text() for file in (ROOT / "tests/heads").glob("test_*.py"))
