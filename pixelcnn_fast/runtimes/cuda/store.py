"""Keeps compiled kernels on disk, each compiled by one process while others wait."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, TypeVar

from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.files import replacing
from pixelcnn_fast.telling import tell

try:
    import fcntl
except ImportError:  # no POSIX: each process compiles for itself
    fcntl = None  # type: ignore[assignment]  # asked for before each use

T = TypeVar("T")
SUFFIX = ".kernel"


def cache_folder() -> Path:
    """PIXELCNN_FAST_CACHE, or pixelcnn_fast where caches belong; without a home, among
    temporary files. Raises RuntimeUnavailable if the variable names a user's home that
    there is not."""
    if named := os.environ.get("PIXELCNN_FAST_CACHE"):
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            raise RuntimeUnavailable(f"PIXELCNN_FAST_CACHE={named} can't be used: {error}") from error
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pixelcnn_fast"
    except RuntimeError:
        return _temporary_folder()


def why_not_kept(folder: Path) -> str | None:
    """Why kernels can't be kept in a folder, which need not be there yet; None if they can."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} can't be written"


@cache
def _temporary_folder() -> Path:
    """This user's, as the next process finds it, or a new one where another has taken that."""
    user = getattr(os, "getuid", int)()
    found = Path(tempfile.gettempdir(), f"pixelcnn_fast-{user}")
    with suppress(OSError):
        found.mkdir(mode=0o700, exist_ok=True)
        if found.lstat().st_uid == user:
            return found
    return Path(tempfile.mkdtemp(prefix="pixelcnn_fast-"))


class Store:
    """Kernels of ``sources``, a digest. A file is a line of JSON on the rest, and a cubin."""

    def __init__(self, folder: Path, sources: str) -> None:
        self.folder, self._sources = folder, sources

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def get(self, name: str, strict: bool = False) -> bytes | None:
        """None if it is not there, or of no use; if ``strict``, RuntimeUnavailable for the latter."""
        path = self.path(name)
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, "it is not a file")  # a pipe would be waited for
            line, _, cubin = path.read_bytes().partition(b"\n")
        except OSError as error:
            if strict and not isinstance(error, FileNotFoundError):
                raise RuntimeUnavailable(f"{path} can't be read: {error.strerror}") from error
            return None
        if (why := self._why_not(line, name, cubin)) is None:
            return cubin
        if strict:
            raise RuntimeUnavailable(
                f"{path} {why}: compile it again, with `python -m pixelcnn_fast compile`"
            )
        return None

    def _why_not(self, line: bytes, name: str, cubin: bytes) -> str | None:
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            about = json.loads(line)
            if about["sha256"] == hashlib.sha256(cubin).hexdigest():
                if about["kernel"] != name:
                    return f"is the kernel {about['kernel']} under another name"
                is_same = about["sources"] == self._sources
                return None if is_same else "was compiled from other sources than this version's"
        return "is damaged"

    def put(self, name: str, cubin: bytes) -> None:
        """Raises OSError if it can't be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        about = {"kernel": name, "sources": self._sources, "sha256": hashlib.sha256(cubin).hexdigest()}
        with replacing(self.path(name)) as file:
            file.write(json.dumps(about).encode() + b"\n" + cubin)

    def get_or_make(self, name: str, make: Callable[[], bytes]) -> bytes:
        """A kernel, made now if it is not there. If it can't be kept, that costs a warning."""
        if (found := self.get(name)) is not None:
            return found
        with ExitStack() as held:
            with suppress(OSError):  # without a lock, each writes the file, whole
                self._lock(name, held)
            if (found := self.get(name)) is not None:  # somebody else has made it meanwhile
                return found
            _say(f"compiling the CUDA kernel {name}, once, in some 10 s")
            lock = held.pop_all()  # until it is made, even if nobody waits
            made, lost = _in_background(lambda: self._made(name, make, lock))
        if lost is not None:
            tell(
                f"a compiled CUDA kernel can't be kept, and will be compiled again by the next process: {lost}; "
                "PIXELCNN_FAST_CACHE names another folder"
            )
        return made

    def _made(self, name: str, make: Callable[[], bytes], lock: ExitStack) -> tuple[bytes, OSError | None]:
        with lock:
            made = make()
            try:
                self.put(name, made)
            except OSError as error:
                return made, error
            return made, None

    def _lock(self, name: str, held: ExitStack) -> None:
        """Gives the lock, until ``held`` is closed, to one thread of one process; others wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = held.enter_context(_opened(self.path(name).with_suffix(".lock")))
        waits = False
        while fcntl is not None and self.get(name) is None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Closing does not unlock it where a process that was forked meanwhile has the file open, too.
                held.callback(fcntl.flock, file, fcntl.LOCK_UN)
                return
            except BlockingIOError:
                if not waits:
                    _say(f"waiting for another process, or thread, that compiles the CUDA kernel {name}")
                waits = True
                time.sleep(0.05)


def _opened(lock: Path) -> IO[bytes]:
    if lock.exists() and not lock.is_file():
        raise OSError(errno.EINVAL, "it is not a file")  # a pipe would be waited for
    try:
        return lock.open("ab")
    except PermissionError:  # another user's
        return lock.open("rb")


def _say(what: str) -> None:
    if sys.stderr is not None:  # else it would go to stdout
        with suppress(OSError, ValueError):  # nobody listens
            print(f"pixelcnn_fast: {what}", file=sys.stderr, flush=True)


def _in_background(make: Callable[[], T]) -> T:
    """What it returns, or raises; meanwhile this thread hears Ctrl-C."""
    made: Future[T] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    thread = threading.Thread(target=run, name="compiles a CUDA kernel", daemon=True)
    end_in_peace = partial(_let_end, thread)
    atexit.register(end_in_peace)
    thread.start()
    while not wait([made], 0.2).done:
        pass
    atexit.unregister(end_in_peace)
    return made.result()


def _let_end(thread: threading.Thread) -> None:
    """Compiling crashes a process that ends, so it waits, and ends at another Ctrl-C."""
    if thread.is_alive():
        _say("a CUDA kernel is still being compiled, and is kept for the next time; Ctrl-C gives that up")
    try:
        thread.join()
    except KeyboardInterrupt:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # nobody listens
                stream.flush()
        os._exit(130)
