"""The environment report, and the reasons it gives where the compiled module is missing."""

import importlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pixelcnn_fast import environment, native
from pixelcnn_fast.runtimes.cuda import compilers, kernels
from tests.needs import needs_native
from tests.tiers import thorough


def failing_import(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    monkeypatch.delenv("PIXELCNN_FAST_NATIVE", raising=False)

    def import_module(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.delitem(sys.modules, "pixelcnn_fast._native", raising=False)  # as if it were asked for first


# What Linux calls what each instruction set needs, beyond those before it. Tiles need its permission, too.
FLAGS = {
    "sse2": "sse2",
    "avx2": "avx2 fma",
    "avx512": "avx512f avx512bw avx512dq avx512vl",
    "avx512_bf16": "avx512_bf16",
}
CPUINFO = Path("/proc/cpuinfo")


@needs_native
@pytest.mark.skipif(
    not CPUINFO.exists() or platform.machine() != "x86_64", reason="Linux tells it on x86-64 only"
)
def test_instruction_sets_are_those_that_linux_finds() -> None:
    """Whatever compiled the module: Zig's __builtin_cpu_supports finds none."""
    told = re.search(r"^flags\s*:(.*)", CPUINFO.read_text(), re.MULTILINE)
    assert told
    has = [set(needed.split()) <= set(told[1].split()) for needed in FLAGS.values()]
    expected = [isa for k, isa in enumerate(FLAGS) if all(has[: k + 1])]
    assert [isa for isa in native.required().isas() if isa in FLAGS] == expected


def test_report_names_versions_and_threads() -> None:
    report = environment.report()
    assert torch.__version__ in report
    assert f"{torch.get_num_threads()} (torch.set_num_threads" in report
    titles = [line.partition(" ")[0] for line in report.splitlines() if not line.startswith(" ")]
    assert titles == ["pixelcnn_fast", "compiled", "CUDA", "threads", "runtime", "backend"]


def test_report_tells_the_machine_s_processors_from_those_for_this_process(monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5}, raising=False)
    assert "processors      7, of which this process may use 2\n" in environment.report()


@needs_native
def test_report_tells_the_backends_of_the_devices_apart() -> None:
    rows = environment.report().partition("backend that auto takes for ops\n")[2].splitlines()
    assert [row.partition("  compiled; plain PyTorch for ")[0].strip() for row in rows][:1] == ["on the CPU"]
    assert rows[1].startswith("  on CUDA ") and "compiled" not in rows[1]


def test_report_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    report = environment.report()
    assert "pixelcnn_fast (not installed: runs from a source folder)\n" in report
    assert "triton          not installed: `pip install triton`" in report
    assert "no device: this torch is built without CUDA" in report


def test_switched_off_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELCNN_FAST_NATIVE", "0")
    assert native.native() is None
    assert "unset it" in native.why_not_native()
    report = environment.report()
    assert native.why_not_native() in report and "are part of the compiled module" in report
    assert "on the CPU      eager: the cpu runtime needs the compiled module\n" in report
    with pytest.raises(RuntimeError, match="unset it"):
        native.required()


def test_missing_module_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    failing_import(monkeypatch, ModuleNotFoundError("none", name="pixelcnn_fast._native"))
    monkeypatch.setattr(native, "__file__", str(tmp_path / "pixelcnn_fast" / "native.py"))
    (tmp_path / "pixelcnn_fast").mkdir()
    assert native.native() is None
    assert "PIXELCNN_FAST_NATIVE=0" in native.why_not_native()
    assert "install a C++ compiler" in native.why_not_native()

    (tmp_path / "CMakeLists.txt").touch()
    assert f"`make native` or `pip install -e .` in {tmp_path}" in native.why_not_native()

    (tmp_path / "pixelcnn_fast" / "_native.cpython-27-other.so").touch()
    assert "for another Python than " in native.why_not_native()
    assert "_native.cpython-27-other.so" in native.why_not_native()


def test_module_that_does_not_load_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, ImportError("libstdc++.so.6: version GLIBCXX_9 not found"))
    assert "does not load (libstdc++.so.6: version GLIBCXX_9 not found)" in native.why_not_native()
    assert "eager" in environment.report()


def test_missing_dependency_is_not_taken_for_a_missing_module(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_import(monkeypatch, ModuleNotFoundError("none", name="numpy"))
    with pytest.raises(ModuleNotFoundError):
        native.native()


@needs_native
@thorough
def test_instruction_set_can_be_named_by_environment_and_an_unknown_one_is_refused() -> None:
    module = native.required()
    refusal = f"available: {', '.join(module.isas())}"
    with pytest.raises(ValueError, match=refusal):
        module.force_isa("mmx")
    assert set(module.isas()) <= set(module.build_info()["isas"])
    code = "from pixelcnn_fast import environment; print(environment.report())"
    for isa, told in {module.isas()[0]: f"in use          {module.isas()[0]} ", "mmx": refusal}.items():
        env = os.environ | {"PIXELCNN_FAST_ISA": isa}
        report = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
        assert told in report
    assert "PIXELCNN_FAST_ISA: instruction set 'mmx'" in report


@needs_native
def test_forced_instruction_set_is_in_use_until_reset() -> None:
    module = native.required()
    default = module.chosen_isa()
    for isa in module.isas():
        module.force_isa(isa)
        assert module.chosen_isa() == isa
    module.force_isa("")
    assert module.chosen_isa() == default


@needs_native
@pytest.mark.parametrize(
    ("is_built", "why", "serves"),
    [
        ("1", None, "cuda"),
        ("1", "there is no compiler", "eager: there is no compiler"),
        (
            "0",
            None,
            "eager: the cpu runtime needs the compiled module",
        ),  # without which kernels are of no use
    ],
)
def test_the_report_names_each_gpu_and_what_serves_it(is_built, why, serves, monkeypatch):
    """Two, which need not be there."""
    monkeypatch.setenv("PIXELCNN_FAST_NATIVE", is_built)
    names = ("name", "major", "minor", "total_memory", "multi_processor_count")
    found = (("First", 9, 0, 80 << 30, 132), ("Second", 8, 6, 24 << 30, 84))
    gpus = [SimpleNamespace(**dict(zip(names, each, strict=True))) for each in found]
    monkeypatch.setattr(kernels, "why_no_kernels", lambda: why)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": gpus.__getitem__,
        "get_device_name": lambda index: gpus[index].name,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(environment, "_backend_rows", dict)  # which asks the device
    report = environment.report()
    assert "torch sees      First, Second\n" in report
    assert "device 0        First, sm_90, 80 GiB, 132 multiprocessors" in report
    assert "device 1        Second, sm_86, 24 GiB, 84 multiprocessors" in report
    assert f"on CUDA         {serves}\n" in report


@pytest.fixture
def nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler of kernels, which need not be there."""
    found = SimpleNamespace(path="/opt/nvcc", __str__=lambda: "")
    monkeypatch.setattr(compilers, "compiler", lambda: found)


@pytest.mark.usefixtures("nvcc")
@needs_native
def test_the_report_names_the_compiler_of_kernels_and_their_folders(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PIXELCNN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", str(tmp_path / "ready"))
    (tmp_path / "ready").mkdir()
    monkeypatch.setenv("PIXELCNN_FAST_CUDA_ARCHS", "90")
    report = environment.report()
    assert "PIXELCNN_FAST_CUDA_ARCHS is set, and has no meaning" in report and "CUDA is set" not in report
    assert "(/opt/nvcc)" in report
    assert f"are kept in {tmp_path}/cache\n" in report and f"{tmp_path}/ready is taken from\n" in report
    monkeypatch.setattr(compilers, "compiler", lambda: None)
    assert "no compiler: install NVRTC" in environment.report()


@pytest.mark.usefixtures("nvcc")
@needs_native
def test_folders_of_kernels_that_will_not_do_are_told(monkeypatch, tmp_path) -> None:
    def reported(**folders: str) -> str:
        for name, folder in folders.items():
            monkeypatch.setenv(f"PIXELCNN_FAST_{name}", folder)
        return environment.report()

    (tmp_path / "file").touch()
    report = reported(CACHE=f"{tmp_path}/file/kernels", KERNELS=f"{tmp_path}/file")
    assert f"are not kept: {tmp_path}/file is not a folder\n" in report
    assert f"no kernel will do: PIXELCNN_FAST_KERNELS={tmp_path}/file is not a folder\n" in report
    (tmp_path / "bf16-1x1-sm_90.kernel").write_bytes(b"half")
    report = reported(CACHE="~nobody-of-that-name/x", KERNELS=str(tmp_path))
    assert "kernels         can't be had: PIXELCNN_FAST_CACHE=~nobody-of-that-name/x can't be used" in report
    assert f"no kernel will do: {tmp_path}/bf16-1x1-sm_90.kernel is damaged" in report
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"are not kept: {tmp_path} can't be written\n" in reported(CACHE=f"{tmp_path}/kernels")


@needs_native
def test_a_compiler_of_kernels_that_does_not_work_is_told(monkeypatch, tmp_path) -> None:
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(compilers, "compiler", lambda: compilers.Nvrtc(broken))
    assert "no compiler that works: NVRTC does not load" in environment.report()
