"""While a program is built, Python looks for no garbage, and memory that tensors leave is handed out again."""

import gc
import os
import platform
import resource

import pytest
import torch

from pixelcnn_fast import compiler, housekeeping
from pixelcnn_fast.housekeeping import KEPT, USUAL, freed_memory_kept, gc_paused
from tests.test_compiler import wrapped

PAGES = (64 << 20) // resource.getpagesize()  # of a tensor that glibc gives back at once when it is freed
needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not os.environ.keys().isdisjoint(housekeeping.ITS_SETTINGS),
    reason="the C library is not glibc, or has settings of the user's",
)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_python_looks_for_garbage_afterwards_if_it_did_before(was_enabled):
    before = gc.isenabled()
    try:
        (gc.enable if was_enabled else gc.disable)()
        with pytest.raises(ValueError), gc_paused():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() == was_enabled
    finally:
        (gc.enable if before else gc.disable)()


def pages_taken() -> int:
    """How many the system cleared for a large tensor after one that was freed."""
    torch.ones(64 << 20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_glibc
def test_freed_memory_is_handed_out_again():
    version = tuple(map(int, platform.libc_ver()[1].split(".")))
    if pages_taken() < PAGES / 2:
        pytest.skip("the system clears huge pages, or keeps what is freed")
    with freed_memory_kept():
        found = pages_taken()
    assert found < PAGES / 10 or version < (2, 35)


def test_a_user_s_settings_of_the_c_library_are_left_alone(monkeypatch):
    settings = list[tuple[int, int]]()

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> int:
            settings.append((parameter, value))
            return 1

    monkeypatch.setattr(housekeeping.ctypes, "CDLL", lambda _: Library)
    for setting in housekeeping.ITS_SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    with pytest.raises(ValueError), freed_memory_kept():
        assert settings == [*KEPT]
        raise ValueError
    assert settings == [*KEPT, *USUAL]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with freed_memory_kept():
        pass
    assert settings == [*KEPT, *USUAL]
    monkeypatch.setattr(housekeeping.ctypes, "CDLL", lambda _: object())  # such as musl
    with freed_memory_kept():
        pass


def test_memory_is_kept_while_a_program_is_built(monkeypatch):
    during, check = list[bool](), compiler.check_program
    kept = [False]

    def noted(*args, **kwargs):
        during.append(kept[0])
        return check(*args, **kwargs)

    class Noting:
        def __enter__(self):
            kept[0] = True

        def __exit__(self, *_):
            kept[0] = False

    monkeypatch.setattr(compiler, "freed_memory_kept", Noting)
    monkeypatch.setattr(compiler, "check_program", noted)
    compiler.compile_model(wrapped())
    assert during == [True]
