"""What takes more memory than there is is refused, where the system says how much there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pixelcnn_fast.cli import memory
from pixelcnn_fast.models import PixelCNN, PixelRNN

GIB = 1 << 30


def test_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 3 * GIB)
    memory.check_memory(3 * GIB, "it")
    with pytest.raises(
        ValueError, match=r"^it needs at least 1,024\.0 GiB of memory, and 3\.0 GiB is free: ask"
    ):
        memory.check_memory(1024 * GIB, "it")
    monkeypatch.setattr(memory, "available", lambda: None)
    memory.check_memory(1024 * GIB, "it")


def test_logits_of_a_pixel() -> None:
    assert memory.outputs(PixelCNN(3, 4, 1)) == 3 * 256
    assert memory.outputs(PixelRNN("row_lstm", 2, 4, 1, levels=5)) == 2 * 5


def test_what_is_free_is_read_where_the_system_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    2048 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert memory.available() == 2048 * 1024
    text = "MemTotal:  9000 kB\n"  # as old systems have it
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available() == 5 * 4096

    def fail(name: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", fail)
    assert memory.available() is None
