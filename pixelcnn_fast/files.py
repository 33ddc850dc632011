"""Files that are there whole or not at all."""

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
LEFT_BEHIND = 60  # seconds after which an unfinished file is taken for a killed process's


@contextmanager
def replacing(
    path: str | os.PathLike[str], through_links: bool = True, replaces: bool = True
) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of ``path`` when the context ends without an error.

    Until then, and if anything goes wrong, such as a full disk or Ctrl-C, ``path`` is as it was. What is no regular
    file, such as a pipe, is written as it is. through_links: write to where a link leads, and not in its place, as is
    safe where others may write. replaces: whether a file may be there; otherwise FileExistsError is raised in the end.
    """
    path = Path(os.path.realpath(path)) if through_links else Path(path)
    unfinished = _unfinished(path)
    try:
        if through_links and path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        with unfinished.open("xb") as file:  # and no file, or link, that somebody has put there
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not replaces:
            _put_if_free(unfinished, path)
            return
        if path.is_file() and not path.is_symlink():
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # such as of a full disk
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _put_if_free(unfinished: Path, path: Path) -> None:
    """Gives a file its name. Raises FileExistsError if another has it."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("xb") as file:
            file.write(unfinished.read_bytes())


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raises OSError if ``replacing`` could not write there: to find out before the work, not after it."""
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
    """A name that nobody else has, and nobody can foresee."""
    return path.with_name(
        f"{path.name}.{secrets.token_hex(4)}.{socket.gethostname()}-{os.getpid()}{UNFINISHED}"
    )


def _writer_is_dead(unfinished: Path) -> bool:
    """Whether its name is that of a process of this machine that is no more."""
    host, _, process = unfinished.stem.rpartition("-")
    if not (os.name == "posix" and host.endswith(f".{socket.gethostname()}") and process.isdecimal()):
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False
