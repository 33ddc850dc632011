"""Signals on the command line: each ends a command, but not before finished work is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pixelcnn_fast.bench.streams import complain

OPTIONAL = [signal.Signals[name] for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """The first signal ends the command by a KeyboardInterrupt. One that comes
    later, or while something is saved, is only answered by a line on stderr; the
    next ends it at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._is_saving = self._was_answered = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within the context, signals are received, if this is the main thread."""
        self.received, self._is_saving, self._was_answered = [], False, False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A signal that is ignored stays so, such as SIGINT in a shell's background job or SIGHUP under nohup.
        optional = [number for number in OPTIONAL if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, *optional)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def status(self) -> int:
        """The exit status of a command that a signal has ended."""
        return 128 + (self.received[0] if self.received else signal.SIGINT)

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Within the context, something is saved: a signal ends the command after it."""
        received, self._is_saving = len(self.received), True
        try:
            yield
        finally:
            self._is_saving = False
        if len(self.received) > received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: object) -> None:
        self.received.append(number)
        if self._was_answered or not (self._is_saving or len(self.received) > 1):
            raise KeyboardInterrupt
        self._was_answered = True
        if self._is_saving:
            complain("what is finished is being saved; once more to give that up")
        else:
            complain("it is about to end; once more to end it at once")


interrupts = Interrupts()
