"""Whether other processes take the cores, and waiting until they don't."""

import os

import pytest

from pixelcnn_fast.bench import quiet

TICKS = 100


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A core whose counters go on while quiet sleeps."""
    monkeypatch.setattr(quiet, "SECONDS", 1.0)
    stat = tmp_path / "stat"
    clock = [0.0]
    own = [0.0]

    class Machine:
        others, ours, stolen = 0.0, 0.0, 0.0  # cores that each takes; others may be a function

        def write(self, user: float = 0, steal: float = 0) -> None:
            ticks, stolen = round(TICKS * user), round(TICKS * steal)
            rows = [
                f"cpu0 {ticks} 0 0 99 99 0 0 {stolen} {ticks} 7",  # all users are guests, which counts nothing twice
                f"cpu1 {round(9 * TICKS * clock[0])} 5 5 5 5 5 5 5 0 0",
            ]
            stat.write_text("\n".join(["cpu 1 2 3", *rows, "", "intr 1 2"]))

    m = Machine()
    used = [0.0, 0.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        own[0] += m.ours * seconds
        others = m.others() if callable(m.others) else m.others
        used[0] += (others + m.ours) * seconds
        used[1] += m.stolen * seconds
        m.write(*used)

    def times() -> os.times_result:
        """Half in user mode and half in the kernel; children, once they have ended, are no work of ours."""
        return os.times_result((own[0] / 2, own[0] / 2, 9 * clock[0], 9 * clock[0], clock[0]))

    m.write()
    monkeypatch.setattr(quiet, "_COUNTERS", stat)
    monkeypatch.setattr(quiet.os, "times", times)
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(quiet.os, "sysconf", lambda name: TICKS)
    monkeypatch.setattr(quiet.time, "sleep", sleep)
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: clock[0])
    return m


def test_own_work_and_cores_that_are_not_ours_do_not_count(machine):
    machine.ours, machine.others = 0.5, 0.25
    assert quiet.taken_cores() == pytest.approx(0.25)
    machine.ours, machine.others = 1.0, 0.0
    assert quiet.taken_cores() == pytest.approx(0.0)


def test_what_a_hypervisor_takes_counts(machine):
    machine.stolen = 0.5
    assert quiet.taken_cores() == pytest.approx(0.5)


def test_waits_until_it_is_quiet_and_says_so(machine, monkeypatch, capsys):
    seconds = iter([1.0, 1.0, 0.0])
    machine.others = lambda: next(seconds)
    monkeypatch.setattr(quiet, "PATIENCE", 15)
    assert quiet.awaited() == 0.0
    assert next(seconds, None) is None
    assert "1.0 cores: waiting" in capsys.readouterr().err


def test_does_not_wait_for_ever(machine, monkeypatch, capsys):
    machine.others = 1.0
    monkeypatch.setattr(quiet, "PATIENCE", 5)
    assert quiet.awaited() == pytest.approx(1.0)
    assert quiet.time.perf_counter() == 5
    machine.others = 0.0
    assert quiet.awaited() == 0.0
    assert capsys.readouterr().err.count("waiting") == 1  # nothing is said where it is quiet


def test_nothing_is_known_where_the_system_does_not_count(machine, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quiet, "_COUNTERS", tmp_path / "nothing")
    assert quiet.awaited() is None
    assert capsys.readouterr().err == ""
