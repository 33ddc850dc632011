"""What takes more memory than there is is refused, where the system says how much there is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelcnn_fast.cli import memory
from tests.tiers import thorough

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


PEAK = """
import sys
from pathlib import Path
from pixelcnn_fast import Sampler
from pixelcnn_fast.cli import memory
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

model = eval(sys.argv[1]).eval()
Sampler(model, (model.input_channels, 8, 8))  # what is loaded once
before = peak()
Sampler(model, (model.input_channels, 160, 160))
print(peak() - before, memory.to_capture(
    model, (model.input_channels, 160, 160), getattr(model, "levels", 256), model.n_classes))
"""


@thorough
@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems count memory in other units, or not at all"
)
@pytest.mark.parametrize(
    "model",
    [
        "PixelCNN(1, 128, 4)",
        "PixelCNN(3, 8, 1)",
        "GatedPixelCNN(1, 48, levels=2)",
        "PixelCNN(1, 32, 2, n_classes=10)",
    ],
)
def test_what_capture_takes_is_known_before(model: str) -> None:
    found = subprocess.run([sys.executable, "-c", PEAK, model], capture_output=True, text=True, check=True)
    taken, known = map(int, found.stdout.split())
    assert taken / 2 < known < taken
