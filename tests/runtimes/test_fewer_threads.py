"""Where other processes keep the cores busy, threads of the CPU sampler leave in the middle of a run: same images."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, PixelRNN
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes.cpu import CpuRuntime
from tests.needs import needs_native
from tests.system import fuzz
from tests.system.networks import enlivened
from tests.tiers import thorough

pytestmark = needs_native
SHAPE = (3, 6, 7)
MODELS = {
    "PixelCNN": lambda: PixelCNN(hidden_channels=64, n_residual=2),
    "Gated PixelCNN": lambda: GatedPixelCNN(hidden_channels=32, dilations=(1, 2)),
    "Row LSTM": lambda: PixelRNN("row_lstm", hidden_channels=32, n_layers=2),
    "Diagonal BiLSTM": lambda: PixelRNN("diagonal_bilstm", hidden_channels=32, n_layers=2),
}
STEPS = [(0,), (10,), (3, 4, 5), (1, 20)]


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Leaving:
    """A compiled sampler whose threads leave at these column steps. left: how many there were in the end."""

    def __init__(self, compiled, steps: tuple[int, ...]) -> None:
        self._compiled, self._steps, self.left = compiled, list(steps), 0

    def run(self, *job) -> None:
        self.left = self._compiled.run(*job, fewer_at=self._steps)


def where_threads_leave(runtime: CpuRuntime, steps: tuple[int, ...], monkeypatch, draw):
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_sampler", Leaving(runtime._sampler, steps))
        return draw()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_images_of_every_family(name, monkeypatch, four_threads):
    torch.manual_seed(1)
    sampler = Sampler(enlivened(MODELS[name]()), SHAPE)
    runtime = sampler.runtime("cpu")
    assert isinstance(runtime, CpuRuntime)
    given = torch.randint(256, (3, *SHAPE), dtype=torch.uint8)
    known = torch.rand(3, *SHAPE) < 0.4
    for n in (1, 3):
        noise = torch.rand(n, *SHAPE, dtype=torch.float64)

        def draw(n=n, noise=noise):
            drawn, scores = sampler.sample(n, noise=noise, runtime="cpu", log_probability=True)
            completed = sampler.complete(given[:n], known[:n], noise=noise, runtime="cpu")
            return drawn, scores, completed

        expected = draw()
        for steps in STEPS:
            found = where_threads_leave(runtime, steps, monkeypatch, draw)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), (n, steps)


def in_child(work: Callable[[], object]) -> int:
    """-> its process. It ends with status 0 if that is true."""
    child = os.fork()
    if not child:
        try:
            signal.alarm(30)
            os._exit(not work())
        finally:
            os._exit(2)
    return child


@thorough
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system does not pin processes to cores"
)
def test_threads_that_wait_for_a_busy_core_are_left_behind():
    sampler = Sampler(enlivened(MODELS["PixelCNN"]()), (3, 8, 8))

    def spin() -> None:
        os.sched_setaffinity(0, {core})
        while True:
            pass

    def left() -> bool:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(2)
        runtime: Any = sampler.runtime("cpu")
        leaving = runtime._sampler = Leaving(runtime._sampler, ())
        sampler.sample(1, runtime="cpu")
        return leaving.left == 1

    core = min(os.sched_getaffinity(0))
    busy = [in_child(spin) for _ in range(3)]
    try:
        assert os.waitpid(in_child(left), 0)[1] == 0
    finally:
        for child in busy:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class Normed(nn.Module):
    """Its layer norms read what all threads have written."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        later = [MaskedConv2d(channels, channels, 3, "B") for _ in range(4)]
        self.layers = nn.ModuleList([MaskedConv2d(1, channels, 3, "A"), *later])
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.layers)
        self.last = nn.Conv2d(channels, 256, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x).movedim(1, -1)).movedim(-1, 1).relu()
        return self.last(x)


def test_layer_norms_wait_for_all_threads(four_threads):
    torch.manual_seed(1)
    sampler = Sampler(Normed(), (1, 5, 6), image_form="unit")
    noise = torch.rand(1, 1, 5, 6, dtype=torch.float64)
    found = [sampler.sample(1, noise=noise, runtime="cpu", log_probability=True) for _ in range(3)]
    torch.set_num_threads(1)
    expected = sampler.sample(1, noise=noise, runtime="cpu", log_probability=True)
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, expected, strict=True))


@thorough
def test_the_same_images_of_random_networks(monkeypatch, four_threads):
    runs = 0
    compiled_run = CpuRuntime.run

    def run(self: CpuRuntime, job) -> None:
        nonlocal runs
        runs += 1
        where_threads_leave(self, STEPS[runs % len(STEPS)], monkeypatch, lambda: compiled_run(self, job))

    monkeypatch.setattr(CpuRuntime, "run", run)
    for seed in range(16):  # some of them are of numbers that the CPU runtime does not compute with
        fuzz.check(seed)
    assert runs > 10
