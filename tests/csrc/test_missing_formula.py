"""A kind of step without a formula: nothing compiles, for the CPU or for CUDA, and the package does not import."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.csrc.emulated import configured, skip_without_tools
from tests.tiers import thorough

pytestmark = thorough

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, with one more kind in the table and nowhere else."""
    copy = tmp_path_factory.mktemp("source")
    for folder in ("csrc", "tests/csrc", "pixelcnn_fast/program", "pixelcnn_fast/heads"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "CMakeLists.txt", copy)
    (copy / "pixelcnn_fast" / "__init__.py").touch()
    table = copy / "pixelcnn_fast" / "program" / "steps.py"
    text = table.read_text()
    assert text.count('    StepKind("relu", ') == 1
    table.write_text(text.replace('    StepKind("relu", ', '    StepKind("cube"),\n    StepKind("relu", '))
    return copy


def build(source: Path, folder: Path, target: str, *settings: str) -> str:
    """The output of a build that is expected to fail."""
    skip_without_tools()
    cmake = configured(source, folder, *settings)
    done = subprocess.run([cmake, "--build", str(folder), "--target", target], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout


def assert_names_the_kind(output: str) -> None:
    errors = [line for line in output.splitlines() if "error: " in line]
    assert errors and all("cube" in line and "not handled in switch" in line for line in errors)


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize("target", ["kernels_sse2", "cuda_planner"])
def test_it_does_not_compile(source, tmp_path, target):
    """The planner has CUDA's formulas."""
    assert_names_the_kind(build(source, tmp_path, target))


def test_the_package_does_not_import(source):
    done = subprocess.run(
        [sys.executable, "-c", "import pixelcnn_fast.program.formulas"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "ImportError" in done.stderr and "cube" in done.stderr
