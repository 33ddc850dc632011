"""The host's emulation of CUDA itself, by programs that exit 1 where it does not do what it should."""

from __future__ import annotations

import shutil

import pytest

from tests.csrc.emulated import build, run, skip_without_tools
from tests.tiers import thorough


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
@thorough
def test_clusters():
    skip_without_tools()
    run(str(build("check_clusters") / "check_clusters"))
