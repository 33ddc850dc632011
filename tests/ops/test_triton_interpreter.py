"""Runs the Triton tests in Triton's interpreter, which needs no GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import few

MODULES = sorted(
    path
    for path in Path(__file__).parents[1].glob("*/test_triton_*.py")
    if path.stem not in ("test_triton_interpreter", "test_triton_ahead_of_time")
)


@pytest.mark.parametrize("tier", few(["not thorough", "thorough"], 1))
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the modules run in the interpreter anyway"
)
def test_the_kernels_compute_in_the_interpreter_what_plain_torch_computes(tier: str) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", tier, *map(str, MODULES)]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout, done.stdout
