"""A kind of step, instruction or head that C++ lacks: nothing compiles; without a formula, nothing imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.csrc.emulated import configured, skip_without_tools
from tests.tiers import thorough

pytestmark = thorough

ROOT = Path(__file__).parents[2]
PLANTED = [
    ("steps.py", "_KINDS = (\n", '    StepKind("cube"),\n'),
    ("schema.py", "INSTRUCTIONS = (\n", '    InstructionTraits("pooling", False, False, on_cuda=False),\n'),
    ("schema.py", "HEADS = (", 'HeadTraits("mixture", single=True, on_cuda=False), '),
]
SAMPLER = "CMakeFiles/cpu.dir/csrc/cpu/sampler/sampler.cpp.o"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, with one more kind in each table and nowhere else."""
    copy = tmp_path_factory.mktemp("source")
    for folder in ("csrc", "tests/csrc", "pixelcnn_fast/program", "pixelcnn_fast/heads"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "CMakeLists.txt", copy)
    (copy / "pixelcnn_fast" / "__init__.py").touch()
    for file, before, row in PLANTED:
        table = copy / "pixelcnn_fast" / "program" / file
        text = table.read_text()
        assert text.count(before) == 1
        table.write_text(text.replace(before, before + row))
    return copy


def build(source: Path, folder: Path, target: str, *settings: str) -> str:
    """The output of a build that is expected to fail."""
    skip_without_tools()
    cmake = configured(source, folder, *settings)
    done = subprocess.run([cmake, "--build", str(folder), "--target", target], capture_output=True, text=True)
    assert done.returncode != 0
    return done.stdout


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@pytest.mark.parametrize(
    ("target", "kinds"),
    [("kernels_sse2", {"cube"}), ("cuda_planner", {"cube"}), (SAMPLER, {"pooling", "mixture"})],
)
def test_it_does_not_compile(source, tmp_path, target, kinds):
    """The planner has CUDA's formulas."""
    output = build(source, tmp_path, target)
    errors = [line for line in output.splitlines() if "error: " in line]
    assert errors and all("not handled in switch" in line for line in errors)
    assert kinds == {kind for kind in ("cube", "pooling", "mixture") for line in errors if kind in line}


def test_the_package_does_not_import(source):
    done = subprocess.run(
        [sys.executable, "-c", "import pixelcnn_fast.program.formulas"],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "ImportError" in done.stderr and "cube" in done.stderr
