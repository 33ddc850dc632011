"""Prints what commands say, although streams may be closed."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def say(*lines: object, end: str = "\n") -> None:
    """Prints to stdout. A reader that is gone (``| head``) is no error; a full disk raises OSError."""
    try:
        with suppress(BrokenPipeError):
            _write(lines, sys.stdout, end)
    except OSError as error:
        raise OSError(f"standard output: {error.strerror or error}") from error


def complain(*lines: object, end: str = "\n") -> None:
    """Prints to stderr, if that can be done: there is no other place to say that it can't."""
    with suppress(OSError):
        _write(lines, sys.stderr, end)


def watched(asked: bool = False) -> bool:
    """Whether to show a progress bar: someone sees it, or has asked for it, and there is a stream."""
    return sys.stderr is not None and (asked or sys.stderr.isatty())


def _write(lines: tuple[object, ...], stream: TextIO | None, end: str) -> None:
    if stream is None:  # it was closed before the start
        return
    encoding = stream.encoding or "utf-8"
    # Names of files may be odd.
    text = "".join(f"{line}{end}" for line in lines).encode(encoding, "backslashreplace")
    try:
        stream.write(text.decode(encoding))
        stream.flush()  # here, where an error can be caught
    except OSError:
        # The buffer goes nowhere, or Python would try to write it again when it ends.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        raise
