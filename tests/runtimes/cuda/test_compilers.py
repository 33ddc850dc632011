"""What compiles kernels: found where it may be, asked for what it knows, and quoted where it fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.runtimes.cuda import compilers
from pixelcnn_fast.runtimes.cuda.compilers import SOURCE, Compiler, Nvcc, Nvrtc
from tests.tiers import few, thorough

SMALL = {
    SOURCE: '#include "a/number.h"\nextern "C" __global__ void small(int* x) { *x = number() + NUMBER; }\n',
    "a/number.h": "constexpr int number() { return 7; }\n",
}


@pytest.fixture(params=few(["nvrtc", "nvcc"], 1))
def compiler(request: pytest.FixtureRequest) -> Compiler:
    found = getattr(compilers, request.param)()
    if found is None:
        pytest.skip(f"no {request.param}")
    return found


def test_a_kernel_compiles_to_machine_code(compiler: Compiler) -> None:
    assert {80, 90} <= set(compiler.architectures())
    cubin = compiler.compiled(SMALL, 90, ["-DNUMBER=3"])
    assert cubin.startswith(b"\x7fELF") and b"small" in cubin


@thorough
def test_several_are_compiled_once_each(compiler: Compiler) -> None:
    wanted = [(arch, [f"-DNUMBER={number}"]) for arch in (90, 80) for number in (3, 4)]
    found = dict(compiler.compiled_each(SMALL, wanted))
    assert found == {index: compiler.compiled(SMALL, *each) for index, each in enumerate(wanted)}
    assert len(set(found.values())) == 4


class Slow(Nvrtc):
    """Compiles nothing: takes as many seconds as the architecture says, or dies."""

    def compiled(self, sources: Mapping[str, str], architecture: int, options: Sequence[str] = ()) -> bytes:
        if architecture < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(architecture)
        return str(os.getpid()).encode()


def is_there(process: int) -> bool:
    """And no zombie."""
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    return False


def test_what_compiles_ends_with_who_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done comes first, and the others are not waited for."""
    monkeypatch.setattr(compilers, "usable", lambda: 2)
    began, found = time.monotonic(), Slow(tmp_path).compiled_each({}, [(120, ()), (0, ()), (120, ())])
    index, process = next(found)
    assert index == 1 and is_there(int(process))
    found.close()
    assert time.monotonic() - began < 60
    assert not is_there(int(process))


@thorough
def test_a_compiler_that_the_system_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "usable", lambda: 1)
    with pytest.raises(RuntimeUnavailable, match="is there memory for 1 of them"):
        list(Slow(tmp_path).compiled_each({}, [(-1, ())]))


ALONE = """
import pathlib, sys
from tests.runtimes.cuda.test_compilers import Slow
if __name__ == "__main__":
    for _, process in Slow(pathlib.Path()).compiled_each({}, [(0, ()), (120, ())]):
        print(process.decode(), flush=True)
"""


@thorough
def test_what_compiles_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True
    ) as alone:
        assert alone.stdout is not None
        process = int(alone.stdout.readline())
        assert is_there(process)
        alone.kill()
    for _ in range(100):
        if not is_there(process):
            return
        time.sleep(0.1)
    raise AssertionError("it is there still")


def test_the_first_that_works_is_taken(tmp_path, monkeypatch, compiler):
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(compilers, "compilers", lambda: [Nvrtc(broken), compiler])
    assert compilers.compiler() is compiler
    monkeypatch.setattr(compilers, "compilers", lambda: [Nvrtc(broken)])
    assert isinstance(compilers.compiler(), Nvrtc)


def test_an_error_is_quoted(compiler: Compiler) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"{compiler}.*NUMBER|NUMBER.*undefined"):
        compiler.compiled(SMALL, 90)


def test_nvrtc_is_told_from_others_without_being_loaded(tmp_path: Path) -> None:
    one, other = tmp_path / "libnvrtc.so.13", tmp_path / "libnvrtc.so.12"
    one.write_bytes(b"no library"), other.write_bytes(b"no library")
    assert len({Nvrtc(one).identity, Nvrtc(other).identity}) == 2
    before = Nvrtc(one).identity
    one.write_bytes(b"another one")
    assert Nvrtc(one).identity != before
    with pytest.raises(RuntimeUnavailable, match="NVRTC does not load"):
        Nvrtc(one).architectures()


def test_nvcc_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.9, V12.9.41'\n")
    nvcc.chmod(0o755)
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = compilers.nvcc()
    assert found is not None and found.path == nvcc and str(found) == "nvcc 12.9.41"
    monkeypatch.setenv("CUDACXX", str(other := tmp_path / "other"))
    other.write_text("#!/bin/sh\necho 'cicc is not here: a fatal error' >&2; exit 1\n")
    other.chmod(0o755)
    found = compilers.nvcc()
    with pytest.raises(RuntimeUnavailable, match="cicc is not here"):
        str(found)


def test_what_is_no_nvcc_says_so(tmp_path: Path) -> None:
    false = tmp_path / "nvcc"
    false.write_text("#!/bin/sh\necho 'hello'\n")
    false.chmod(0o755)
    with pytest.raises(RuntimeUnavailable, match="is it nvcc"):
        Nvcc(false).identity  # noqa: B018 - it is asked for
    false.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(
        RuntimeUnavailable, match=r"nvcc does not answer --list-gpu-arch \(is it nvcc\?\): status 3"
    ):
        Nvcc(false).architectures()


def test_nvcc_keeps_its_own_temporary_files_where_they_are_removed(tmp_path: Path, monkeypatch) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ntouch "$TMPDIR/left"; echo "$TMPDIR" > "$2"\n'
    )
    nvcc.chmod(0o755)
    folder = Nvcc(nvcc).compiled({"walk.cu": ""}, 90).decode().strip()
    assert folder and not Path(folder).exists()


def test_nvrtc_lies_in_a_package_or_in_a_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of PyTorch's own version of CUDA before others, and then the newest."""
    toolkit, packages = (
        tmp_path / "lib64",
        [tmp_path / "nvidia" / name / "lib" for name in ("cu100", "cuda_nvrtc")],
    )
    files = [packages[0] / "libnvrtc.so.100", packages[1] / "libnvrtc.so.99", packages[1] / "libnvrtc.so.77"]
    for file in [*files, toolkit / "libnvrtc.so"]:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.setattr("torch.version.cuda", "77.1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(compilers, "find_spec", lambda name: None)
    assert compilers.nvrtcs()[0].path == toolkit / "libnvrtc.so"

    class Spec:
        submodule_search_locations = [str(tmp_path / "nvidia")]

    monkeypatch.setattr(compilers, "find_spec", lambda name: Spec)
    own, *others, last = [found.path for found in compilers.nvrtcs() if tmp_path in found.path.parents]
    assert own == files[2] and others == files[:2] and last == toolkit / "libnvrtc.so"


def test_minor_versions_are_told_apart(tmp_path: Path) -> None:
    """Though their libraries have one name, and may have one size."""
    identities = set()
    for version in ("13.0", "13.2"):
        (folder := tmp_path / version).mkdir()
        (folder / f"libnvrtc-builtins.so.{version}").touch()
        (folder / "libnvrtc.so.13").touch()
        identities.add(Nvrtc(folder / "libnvrtc.so.13").identity)
    assert len(identities) == 2
