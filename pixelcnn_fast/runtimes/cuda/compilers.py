"""Compiles kernels, for GPUs that need not be there, with NVRTC or nvcc."""

from __future__ import annotations

import ctypes
import glob
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

from pixelcnn_fast.cores import usable
from pixelcnn_fast.errors import RuntimeUnavailable

SOURCE = "cuda/kernels/kernel.cu"  # what is compiled


class Compiler(ABC):
    """str() gives its name and version, and raises RuntimeUnavailable where it does not work."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def identity(self) -> str:
        """Tells it from other versions, without loading it."""

    @abstractmethod
    def architectures(self) -> list[int]:
        """That it knows, as 10 * major + minor, rising."""

    @abstractmethod
    def compiled(self, sources: Mapping[str, str], architecture: int, options: Sequence[str] = ()) -> bytes:
        """Compiles ``SOURCE``, one of ``sources``, which it includes -> the cubin. Raises RuntimeUnavailable."""

    def compiled_each(
        self, sources: Mapping[str, str], wanted: Sequence[tuple[int, Sequence[str]]]
    ) -> Generator[tuple[int, bytes], None, None]:
        """Of each (architecture, options) that is wanted: its index and its cubin, as they are done."""
        for index, (architecture, options) in enumerate(wanted):
            yield index, self.compiled(sources, architecture, options)


class Nvrtc(Compiler):
    # Functions of no side, which the planner shares, are the device's.
    FLAGS = ("-std=c++17", "-default-device")

    def __reduce__(self) -> tuple[type[Nvrtc], tuple[Path]]:
        return type(self), (self.path,)  # each process loads the library

    @property
    def identity(self) -> str:
        """With the versions of what it needs, since its own name has the major version only."""
        versions = "".join(path.name.partition(".so")[2] for path in sorted(self._builtins()))
        return f"{self.path.name}{versions}-{self.path.stat().st_size}-{_digest(self.FLAGS)}"

    def _builtins(self) -> Iterable[Path]:
        return self.path.parent.glob("libnvrtc-builtins.so*")

    def __str__(self) -> str:
        return f"NVRTC {'.'.join(map(str, self.version))}"

    @cached_property
    def _loaded(self) -> ctypes.CDLL:
        try:
            for builtins in self._builtins():  # which it looks for elsewhere
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(self.path))
        except OSError as error:
            raise RuntimeUnavailable(f"NVRTC does not load: {error}") from error

    def _call(self, name: str, *arguments: object) -> None:
        try:
            status = getattr(self._loaded, name)(*arguments)
        except AttributeError as error:
            raise RuntimeUnavailable(f"{self.path} is no NVRTC: {error}") from error
        if status:
            text = self._loaded.nvrtcGetErrorString
            text.restype = ctypes.c_char_p
            raise RuntimeUnavailable(f"{name}: {text(status).decode()}")

    @cached_property
    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def architectures(self) -> list[int]:
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return sorted(found)

    def compiled(self, sources: Mapping[str, str], architecture: int, options: Sequence[str] = ()) -> bytes:
        included = {name: text for name, text in sources.items() if name != SOURCE}
        headers = len(included), _strings(included.values()), _strings(included)
        program = ctypes.c_void_p()
        created = ctypes.byref(program), sources[SOURCE].encode(), SOURCE.encode(), *headers
        self._call("nvrtcCreateProgram", *created)
        try:
            flags = [f"--gpu-architecture=sm_{architecture}", *self.FLAGS, *options]
            try:
                self._call("nvrtcCompileProgram", program, len(flags), _strings(flags))
            except RuntimeUnavailable as error:
                why = _first_error(self._text(program, "nvrtcGetProgramLog")) or error.why
                raise RuntimeUnavailable(f"{self} can't compile the kernel: {why}") from error
            return self._text(program, "nvrtcGetCUBIN")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def compiled_each(
        self, sources: Mapping[str, str], wanted: Sequence[tuple[int, Sequence[str]]]
    ) -> Generator[tuple[int, bytes], None, None]:
        """In processes, as its threads wait for each other. They end with the iterator."""
        count = max(1, min(usable(), len(wanted)))
        context = multiprocessing.get_context("spawn")
        reader, writer = context.Pipe(duplex=False)
        with reader, writer, ProcessPoolExecutor(count, context, _end_with, (reader,)) as processes:
            try:
                with _no_interrupt():  # which is for this process alone
                    futures = [processes.submit(self.compiled, sources, *each) for each in wanted]
                for done in as_completed(futures):
                    yield futures.index(done), done.result()
            except BrokenProcessPool as error:
                raise RuntimeUnavailable(
                    f"the system has ended a process that compiled: is there memory for {count} of them, each some "
                    "700 MB?"
                ) from error
            finally:
                writer.close()

    def _text(self, program: ctypes.c_void_p, name: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        self._call(name, program, found)
        return found.raw


class Nvcc(Compiler):
    FLAGS = ("-cubin", "-std=c++17", "-O3", "--expt-relaxed-constexpr")

    @property
    def identity(self) -> str:
        return f"nvcc-{self.version}-{_digest(self.FLAGS)}"

    def __str__(self) -> str:
        return f"nvcc {self.version}"

    @cached_property
    def version(self) -> str:
        found = re.search(r"release [\d.]+, V([\d.]+)", self._run("--version"))
        if found is None:
            raise RuntimeUnavailable(f"{self.path} does not say its version: is it nvcc?")
        return found[1]

    def architectures(self) -> list[int]:
        return sorted(int(arch) for arch in re.findall(r"compute_(\d+)$", self._run("--list-gpu-arch"), re.M))

    def compiled(self, sources: Mapping[str, str], architecture: int, options: Sequence[str] = ()) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in sources.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            cubin = Path(folder, "cubin")
            flags = [*self.FLAGS, f"-arch=sm_{architecture}", f"-I{folder}", *options]
            self._run(*flags, "-o", str(cubin), str(Path(folder, SOURCE)), TMPDIR=folder)
            return cubin.read_bytes()

    def _run(self, *arguments: str, **environment: str) -> str:
        try:
            command, environment = [str(self.path), *arguments], os.environ | environment
            done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise RuntimeUnavailable(f"{self.path} can't be run: {error}") from error
        if done.returncode:
            said = _first_error((done.stdout + done.stderr).encode()) or f"status {done.returncode}"
            asked = len(arguments) == 1
            what = f"does not answer {arguments[0]} (is it nvcc?)" if asked else "can't compile the kernel"
            raise RuntimeUnavailable(f"{self.path} {what}: {said}")
        return done.stdout


def _end_with(other_end: Connection) -> None:
    """Ends this process when the other end of a pipe is closed, or its process gone."""

    def wait() -> None:
        with suppress(EOFError, OSError):
            other_end.recv()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the context ends, and never reaches processes from within."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _strings(texts: Iterable[str]) -> ctypes.Array[ctypes.c_char_p]:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)


def _digest(flags: Sequence[str]) -> str:
    return f"{zlib.crc32(' '.join(flags).encode()):08x}"


def _first_error(log: bytes) -> str:
    lines = [line.strip() for line in log.decode(errors="replace").strip("\0").splitlines()]
    return next((line for line in lines if "error" in line.lower() or "fatal" in line.lower()), "")


@cache
def compilers() -> list[Compiler]:
    """Each NVRTC, and nvcc, where they are found. Loads nothing."""
    return [*nvrtcs(), *filter(None, [nvcc()])]


def compiler() -> Compiler | None:
    """The first of them that works; if none does, the first."""
    for found in compilers():
        with suppress(RuntimeUnavailable):
            if found.architectures():
                return found
    return next(iter(compilers()), None)


def nvrtc() -> Nvrtc | None:
    return next(iter(nvrtcs()), None)


def nvrtcs() -> list[Nvrtc]:
    """That of PyTorch's version of CUDA, then others, the newest first."""
    each = (sorted(glob.glob(pattern), key=_version, reverse=True) for pattern in _libraries())
    found = (Nvrtc(Path(path).resolve()) for path in chain.from_iterable(each))
    return [*{one.path: one for one in found}.values()]


def _version(path: str) -> list[int]:
    """12, 8 of libnvrtc.so.12.8."""
    return [int(number) for number in re.findall(r"\d+", Path(path).name)]


def _libraries() -> Iterator[str]:
    import torch

    versions = [torch.version.cuda.partition(".")[0]] if torch.version.cuda else []
    with suppress(ValueError):  # it may be no package
        spec = find_spec("nvidia")
        for folder in spec.submodule_search_locations or () if spec is not None else ():
            for version in [*versions, "*"]:
                yield f"{glob.escape(folder)}/*/lib/libnvrtc.so.{version}"
    for home in _toolkits():
        yield f"{glob.escape(home)}/lib64/libnvrtc.so"
    yield f"/usr/lib/{platform.machine()}-linux-gnu/libnvrtc.so.*"
    yield "/usr/lib64/libnvrtc.so.*"


def _toolkits() -> list[str]:
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return named or ["/usr/local/cuda"]


def nvcc() -> Nvcc | None:
    """CUDACXX, or, unless it is set, that of CUDA_HOME (/usr/local/cuda), or on the PATH."""
    named = os.environ.get("CUDACXX")
    candidates = [named] if named else [*(f"{home}/bin/nvcc" for home in _toolkits()), "nvcc"]
    return next((Nvcc(Path(path)) for name in candidates if (path := shutil.which(name))), None)
