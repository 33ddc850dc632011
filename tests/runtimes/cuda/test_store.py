"""Kernels on disk: whole, of the right sources, made once."""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.runtimes.cuda.compilers import nvrtc
from pixelcnn_fast.runtimes.cuda.store import Store, _temporary_folder, cache_folder
from tests.needs import needs_native
from tests.tiers import thorough

CUBIN = bytes(range(256)) * 3  # with newlines in it


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kernels", "digest")


def test_what_was_put_there_is_found(store: Store) -> None:
    assert store.get("walk") is None
    store.put("walk", CUBIN)
    assert store.get("walk") == store.get("walk", strict=True) == CUBIN


@pytest.mark.parametrize("keep", [0, 1, 60, 200, -1])
def test_what_is_damaged_is_made_again(store: Store, keep: int) -> None:
    store.put("walk", CUBIN)
    path = store.path("walk")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RuntimeUnavailable, match=f"{path} is damaged"):
        store.get("walk", strict=True)
    assert store.get_or_make("walk", lambda: b"again") == b"again" == store.get("walk")


@pytest.mark.parametrize("content", [b"[]\n", b"{}\n", b"1\n", b"\xff\n", b"[" * 100_000])
def test_what_is_no_kernel_at_all_is_damaged(store: Store, content: bytes) -> None:
    store.folder.mkdir()
    store.path("walk").write_bytes(content)
    assert store.get("walk") is None
    with pytest.raises(RuntimeUnavailable, match=f"{store.path('walk')} is damaged"):
        store.get("walk", strict=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(store: Store) -> None:
    store.folder.mkdir()
    os.mkfifo(store.path("walk"))
    who_waits_is_answered = threading.Thread(target=store.path("walk").write_bytes, args=(b"",), daemon=True)
    who_waits_is_answered.start()
    assert store.get("walk") is None
    with pytest.raises(RuntimeUnavailable, match=f"{store.path('walk')} can't be read: it is not a file"):
        store.get("walk", strict=True)
    os.mkfifo(store.path("step").with_suffix(".lock"))
    assert store.get_or_make("step", lambda: CUBIN) == CUBIN == store.get("step")


def test_a_kernel_of_other_sources_is_refused_by_name(store: Store) -> None:
    store.put("walk", CUBIN)
    other = Store(store.folder, "another digest")
    assert other.get("walk") is None
    with pytest.raises(RuntimeUnavailable, match=f"{store.path('walk')} was compiled from other sources"):
        other.get("walk", strict=True)


def test_a_kernel_under_another_name_is_refused(store: Store) -> None:
    store.put("walk", CUBIN)
    store.path("walk").rename(store.path("run"))
    assert store.get("run") is None
    with pytest.raises(
        RuntimeUnavailable, match=f"{store.path('run')} is the kernel walk under another name"
    ):
        store.get("run", strict=True)


@pytest.mark.parametrize("whose", ["one's own", "another user's"])
def test_threads_make_it_once(store: Store, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the lock is a file that may only be read."""
    made: list[bytes] = []
    if whose == "another user's":
        store.folder.mkdir()
        store.path("walk").with_suffix(".lock").touch()
        opened = Path.open

        def only_read(path: Path, mode: str = "r") -> IO:
            if path.suffix == ".lock" and mode != "rb":
                raise PermissionError(13, "Permission denied")
            return opened(path, mode)

        monkeypatch.setattr(Path, "open", only_read)

    def make() -> bytes:
        time.sleep(0.2)
        made.append(CUBIN)
        return CUBIN

    with ThreadPoolExecutor(4) as threads:
        assert [*threads.map(lambda _: store.get_or_make("walk", make), range(4))] == 4 * [CUBIN]
    assert len(made) == 1


def _make_in_process(folder: Path, made: Path) -> None:
    def make() -> bytes:
        time.sleep(0.3)
        with made.open("ab") as file:
            file.write(b".")
        return CUBIN

    assert Store(folder, "digest").get_or_make("walk", make) == CUBIN


def test_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    folders = tmp_path / "kernels", tmp_path / "made"
    processes = [context.Process(target=_make_in_process, args=folders) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == 3 * [0]
    assert folders[1].read_bytes() == b"."


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_that_was_forked_meanwhile_keeps_nobody_waiting(store: Store) -> None:
    children = []

    def make() -> bytes:
        if (child := os.fork()) == 0:
            time.sleep(20)
            os._exit(0)
        children.append(child)
        return CUBIN

    store.get_or_make("walk", make)
    store.path("walk").unlink()
    began = time.monotonic()
    try:
        assert store.get_or_make("walk", lambda: b"again") == b"again"
        assert time.monotonic() - began < 10
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_what_can_t_be_kept_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="can't be kept.*PIXELCNN_FAST_CACHE"):
        assert Store(tmp_path / "file" / "folder", "digest").get_or_make("walk", lambda: CUBIN) == CUBIN


def test_a_full_disk_costs_a_warning(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left"):
        assert store.get_or_make("walk", lambda: CUBIN) == CUBIN
    assert [path.name for path in store.folder.iterdir()] == ["walk.lock"]


def test_an_error_is_raised_and_nothing_kept(store: Store) -> None:
    def fail() -> bytes:
        raise RuntimeUnavailable("no such GPU")

    for _ in range(2):  # the lock is free again
        with pytest.raises(RuntimeUnavailable, match="no such GPU"):
            store.get_or_make("walk", fail)
    assert store.get("walk") is None


def test_ctrl_c_is_heard_meanwhile(store: Store) -> None:
    done = threading.Event()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            store.get_or_make("walk", lambda: bytes(done.wait(20)))
        assert time.monotonic() - began < 10
    finally:
        done.set()
        timer.join()


def test_it_says_what_takes_so_long(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.get_or_make("walk", lambda: CUBIN)
    assert "compiling the CUDA kernel walk" in capsys.readouterr().err
    store.get_or_make("walk", lambda: CUBIN)
    assert capsys.readouterr().err == ""


INTERRUPTED = """
import os, threading
from pixelcnn_fast.runtimes.cuda import kernels
threading.Timer(1.5, os.kill, (os.getpid(), 2)).start()
try:
    kernels.cubin(kernels.Instance("bf16", 1), (9, 0))
except KeyboardInterrupt:
    print("interrupted")
"""


@thorough
@needs_native
@pytest.mark.skipif(nvrtc() is None, reason="no NVRTC")
def test_an_interrupted_process_ends_in_peace(tmp_path: Path) -> None:
    """Though a compiler is at work in it, which is no time to end."""
    environment = os.environ | {"PIXELCNN_FAST_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "interrupted\n" and done.returncode == 0, done.stderr


TOLD_TWICE = """
import os, sys, threading, time
from pathlib import Path
from pixelcnn_fast.runtimes.cuda.store import Store
def compiles():
    for after in (0.2, 0.7):
        timer = threading.Timer(after, os.kill, (os.getpid(), 2))
        timer.daemon = True
        timer.start()
    time.sleep(60)
try:
    Store(Path(sys.argv[1]), "digest").get_or_make("walk", compiles)
except KeyboardInterrupt:
    print("interrupted")
"""


@thorough
def test_a_process_that_is_interrupted_again_is_gone_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TOLD_TWICE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.returncode) == ("interrupted\n", 130)
    assert "compiling the CUDA kernel walk" in done.stderr and "Ctrl-C gives that up" in done.stderr
    assert done.stderr.count("\n") == 2


def test_what_is_made_after_an_interrupt_is_kept(store: Store) -> None:
    """It is nearly done, and nobody likes to wait for it twice: who asks again waits for the same one."""
    done, timer = threading.Event(), threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        store.get_or_make("walk", lambda: CUBIN if done.wait(20) else b"")
    threading.Timer(0.3, done.set).start()
    assert store.get_or_make("walk", lambda: b"another") == CUBIN


def test_nobody_needs_to_listen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    assert store.get_or_make("walk", lambda: CUBIN) == CUBIN


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIXELCNN_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/pixelcnn_fast")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/pixelcnn_fast").expanduser()
    monkeypatch.setenv("PIXELCNN_FAST_CACHE", "~/mine")
    assert cache_folder() == Path("~/mine").expanduser()
    monkeypatch.setenv("PIXELCNN_FAST_CACHE", "~nobody-of-that-name/mine")
    with pytest.raises(
        RuntimeUnavailable, match="PIXELCNN_FAST_CACHE=~nobody-of-that-name/mine can't be used"
    ):
        cache_folder()


def test_without_a_home_it_is_among_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder that no other user has made: whoever can write there can plant kernels."""
    for name in ("PIXELCNN_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _temporary_folder.cache_clear()
    user = os.getuid()
    assert cache_folder() == cache_folder() == tmp_path / f"pixelcnn_fast-{user}"
    assert cache_folder().stat().st_mode & 0o077 == 0
    _temporary_folder.cache_clear()
    (tmp_path / f"pixelcnn_fast-{user}").rename(tmp_path / f"pixelcnn_fast-{user + 1}")
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    taken = cache_folder()
    assert taken == cache_folder() and taken.parent == tmp_path and taken.name != f"pixelcnn_fast-{user + 1}"
    _temporary_folder.cache_clear()
