"""What Ctrl-C and SIGTERM do while a command runs, and while it saves."""

import signal
import threading
from contextlib import nullcontext

import pytest

from pixelcnn_fast.cli.interrupts import Interrupts

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals are for the main thread"
)


def test_one_interrupt_waits_until_all_is_saved_and_two_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    interrupts, reached = Interrupts(), []
    with pytest.raises(KeyboardInterrupt), interrupts.handled(), interrupts.wait():
        signal.raise_signal(signal.SIGINT)
        reached.append("the end of what is saved")
    assert reached and "is being saved; once more" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), interrupts.handled(), interrupts.wait():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it is given up at once")
    assert interrupts.received == [signal.SIGTERM, signal.SIGINT]


def test_the_first_interrupt_ends_the_run_and_the_third_what_follows(capsys):
    interrupts = Interrupts()
    for _ in range(2):  # the second command knows nothing of the first
        with interrupts.handled():
            for ends in (True, False, True):
                try:
                    signal.raise_signal(signal.SIGINT)
                    assert not ends
                except KeyboardInterrupt:
                    assert ends
        assert capsys.readouterr().err.count("it is about to end; once more") == 1


def test_what_can_t_be_saved_is_not_waited_for() -> None:
    interrupts, reached = Interrupts(), []
    with pytest.raises(KeyboardInterrupt), interrupts.handled():
        with pytest.raises(OSError, match="full"), interrupts.wait():
            raise OSError("full")
        signal.raise_signal(signal.SIGINT)
        reached.append("what follows")
    assert not reached


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_ends_a_command_unless_that_is_ignored(ignored: bool) -> None:
    """As under nohup."""
    interrupts = Interrupts()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with nullcontext() if ignored else pytest.raises(KeyboardInterrupt), interrupts.handled():
            signal.raise_signal(signal.SIGHUP)
        assert interrupts.received == ([] if ignored else [signal.SIGHUP])
        assert ignored or interrupts.status == 129
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_in_the_background_goes_on_ignoring_ctrl_c() -> None:
    """So a shell starts it."""
    interrupts, before = Interrupts(), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.handled():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
