"""Writing files so that each is there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished"
LEFT_BEHIND = 60  # seconds after which an unfinished file was left behind by a killed process


@contextmanager
def replacing(
    path: str | os.PathLike[str], through_links: bool = True, replaces: bool = True
) -> Iterator[BinaryIO]:
    """A new file, which takes the place of ``path`` when the context ends without an error, and not before.

    What is no regular file but, say, a pipe, is written directly. through_links: whether
    links are followed, else replaced. replaces: whether a file may be there already, else
    FileExistsError is raised at the end.
    """
    path = Path(os.path.realpath(path)) if through_links else Path(path)
    unfinished = _unfinished(path)
    try:
        if through_links and path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        with unfinished.open("xb") as file:  # "x": somebody may have put a file there
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not replaces:
            try:
                os.link(unfinished, path)
            except OSError:  # the name is taken, or there are no links
                with path.open("xb") as file:
                    file.write(unfinished.read_bytes())
            return
        if path.is_file() and not path.is_symlink():
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # for example if the disk is full
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Writes a text as UTF-8, as ``replacing`` does."""
    with replacing(path) as file:
        file.write(text.encode())


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises OSError, before any work, if ``replacing`` could not write there."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} can't be written")
    if not path.exists() or path.is_file():
        unfinished = _unfinished(path)
        unfinished.touch(exist_ok=False)
        unfinished.unlink()


def remove_if_left_behind(unfinished: Path) -> None:
    """Removes an unfinished file unless a process may still be writing it."""
    with suppress(FileNotFoundError):
        if time.time() - unfinished.stat().st_mtime > LEFT_BEHIND or _writer_is_dead(unfinished):
            unfinished.unlink()


def _unfinished(path: Path) -> Path:
    """A name beside ``path`` that nobody else has or can foresee."""
    return path.with_name(
        f"{path.name}.{secrets.token_hex(4)}.{socket.gethostname()}-{os.getpid()}{UNFINISHED}"
    )


def _writer_is_dead(unfinished: Path) -> bool:
    host, _, process = unfinished.stem.rpartition("-")
    if not (os.name == "posix" and host.endswith(f".{socket.gethostname()}") and process.isdecimal()):
        return False
    try:
        os.kill(int(process), 0)
    except OSError as error:  # or a PermissionError, if the process is another user's
        return isinstance(error, ProcessLookupError)
    return False
