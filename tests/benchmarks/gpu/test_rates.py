"""The program that measures a GPU's rates: it compiles for every architecture, and measures what its names say."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu import rates
from gpu.stage import environment, printed_figures

from tests.tiers import thorough

ROOT = Path(__file__).parents[3]
NVCC = shutil.which("nvcc", path=environment(ROOT, sys.executable)["PATH"])
pytestmark = [pytest.mark.skipif(NVCC is None, reason="no nvcc"), thorough]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDACXX", NVCC or "")
        yield rates.compiled(tmp_path_factory.mktemp("rates"), "sm_80")


@pytest.mark.parametrize("architecture", ["sm_90", "sm_100", "sm_120"])
def test_it_compiles_without_spills_or_warnings(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDACXX", NVCC or "")
    assert rates.compiled(tmp_path, architecture).is_file()


def test_the_loops_hold_what_they_measure(program):
    """By the machine code: as many loads on their way as the name says, and nothing but products in their loop."""
    code = code_of(program)
    for depth in (8, 16):
        found = only(code, f"stream_registersILi{depth}E")
        assert len(re.findall(r"LDG\.E\S*\.128", found)) == 2 * depth and "HMMA.16816.F32.BF16" in found
    for depth in (8, 16, 32):
        copy, wait = "LDGSTS.E.BYPASS.128", f"DEPBAR.LE SB0, {depth - 1:#x}"
        steps = re.findall(f"{re.escape(copy)}|{re.escape(wait)}", only(code, f"stream_sharedILi{depth}E"))
        assert steps == [copy] * depth + [wait, copy] * depth
    assert not re.search(r"\bLD\.E|LDL|STL", "".join(code.values()))
    for chains in (1, 8):
        assert only(code, f"multiplyILi{chains}E").count("HMMA.16816.F32.BF16") >= chains
    assert "LDG.E.64.STRONG" not in only(code, "chaseILb1E") and "LDG.E.64.STRONG" in only(code, "chaseILb0E")
    assert only(code, "4meet").count("BAR.SYNC") > 8 and only(code, "chase_shared").count("LDS R") > 8


def test_what_blocks_send_each_other_follows_the_wait_for_what_they_got(tmp_path, monkeypatch):
    """No load is between the two. And numbers are sent eight in a row."""
    monkeypatch.setenv("CUDACXX", NVCC or "")
    code = code_of(rates.compiled(tmp_path, "sm_90"))
    wait = r"SYNCS\.PHASECHK\S*TRYWAIT"
    for message, name in {1: r"SYNCS\.ARRIVE\S*RED", 2: "STAS"}.items():
        steps = re.findall(rf"{wait}|{name}|LD[SG]\.", only(code, f"exchangeILNS_7MessageE{message}E"))
        kinds = ["wait" if re.match(wait, step) else step[:4] for step in steps]
        assert kinds == [kinds[0], *["wait", kinds[0]] * 8, "wait"]
    assert not re.search(r"STAS|RED", only(code, "exchangeILNS_7MessageE0E"))
    assert only(code, "5flood").count("STAS") == 9
    met = re.findall(rf"{wait}|SYNCS\.ARRIVE|LD[SG]\.", only(code, "meet_at_mbarrier"))
    assert [step.split(".")[1] for step in met] == ["ARRIVE", "PHASECHK"] * 8


def code_of(program: Path) -> dict[str, str]:
    """Function -> its machine code."""
    cuobjdump = shutil.which("cuobjdump", path=os.pathsep.join([*triton_tools(), os.environ["PATH"]]))
    if cuobjdump is None:
        pytest.skip("no cuobjdump")
    text = subprocess.run([cuobjdump, "-sass", program], capture_output=True, text=True, check=True).stdout
    return {m[1]: m[2] for m in re.finditer(r"Function : (\S+)(.*?)(?=Function :|\Z)", text, re.S)}


def triton_tools() -> list[str]:
    triton = pytest.importorskip("triton", reason="cuobjdump comes with triton")
    return [str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin")]


def only(code: dict[str, str], name: str) -> str:
    (found,) = (text for function, text in code.items() if name in function)
    return found


def test_what_is_assumed_is_measured():
    sources = [rates.SOURCE, *rates.SOURCE.parent.glob("rates_*.h")]
    measured = {name for source in sources for name in re.findall(r'"([^"\n]+)"', source.read_text())}
    assert rates.ASSUMED.keys() <= measured


def test_the_simulators_rates_are_shown_beside(monkeypatch):
    latency = {"l1": 38, "shared": 33, "tensor": 33, "barrier": 30, "mbarrier": 30, "cluster": 180}
    row = SimpleNamespace(
        multiprocessors=132,
        l2_bytes=64,
        l2_bytes_shared=37,
        l2_latency=265,
        tensor=8,
        clock=1.755,
        dram_bytes=3e12,
        cluster_bytes=14,
        latency=latency,
    )
    monkeypatch.setitem(sys.modules, "sass_simulator", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sass_simulator.rates", SimpleNamespace(RATES={"90": row}))
    assert (
        rates.assumed(9, 0)["DRAM, read, TB/s"] == 3.0 and rates.assumed(9, 0).keys() == rates.ASSUMED.keys()
    )
    assert rates.assumed(8, 6) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why(program):
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 1 and "cudaGetDeviceProperties" in done.stderr
    assert printed_figures(done.stdout) == {}
