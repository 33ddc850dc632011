"""The host's emulation of CUDA itself, by programs that exit 1 where it does not do what it should."""

import shutil

import pytest

from tests.csrc.emulated import ROOT, build, run, skip_without_tools
from tests.tiers import thorough

pytestmark = [pytest.mark.skipif(not shutil.which("g++"), reason="no g++"), thorough]


def test_clusters():
    skip_without_tools()
    run(str(build("check_clusters") / "check_clusters"))


def test_what_the_sanitizers_run_compiles():
    """`make sanitize` builds it with all kernels, which takes long."""
    skip_without_tools()
    steps = build("emulated") / "generated"
    folders = [ROOT / "csrc", ROOT / "tests" / "csrc", ROOT / "tests" / "csrc" / "emulation", steps]
    source = ROOT / "tests" / "csrc" / "check_cuda.cpp"
    run("g++", "-std=c++20", "-fsyntax-only", *(f"-I{folder}" for folder in folders), str(source))
