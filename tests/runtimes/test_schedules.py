"""The CPU sampler draws the same images by every schedule, to the bit, and where threads leave in the middle of a run,
as they do if other processes keep the cores busy."""

import gc
import os
import random
import signal
import threading
from collections.abc import Callable
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, cores, native
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN, PixelRNN
from pixelcnn_fast.nn import MaskedConv2d
from pixelcnn_fast.runtimes.cpu import CpuRuntime
from tests.needs import needs_native
from tests.system import fuzz
from tests.system.networks import Filtered, attending, enlivened, streamed
from tests.tiers import few, thorough

pytestmark = needs_native
SHAPE = (3, 6, 7)
MODELS = {
    "PixelCNN": lambda: PixelCNN(hidden_channels=64, n_residual=2),
    "Gated PixelCNN": lambda: GatedPixelCNN(hidden_channels=32, dilations=(1, 2)),
    "Row LSTM": lambda: PixelRNN("row_lstm", hidden_channels=32, n_layers=2),
    "Diagonal BiLSTM": lambda: PixelRNN("diagonal_bilstm", hidden_channels=32, n_layers=2),
    "attention": lambda: attending(3),
    "streamed": lambda: streamed(3),
    "filtered": Filtered,
}
STEPS = [(0,), (10,), (3, 4, 5), (1, 20)]


@pytest.fixture
def with_threads(monkeypatch):
    """Sets how many threads a sampler has."""
    before = torch.get_num_threads()

    def set_to(threads: int) -> None:
        monkeypatch.setattr(cores, "usable", lambda: threads)
        torch.set_num_threads(threads)

    yield set_to
    torch.set_num_threads(before)


@pytest.fixture
def four_threads(with_threads):
    with_threads(4)


class Scheduled:
    """A compiled sampler that runs by what ``pick`` takes of all its schedules. left: how
    many threads there were in the end."""

    def __init__(self, compiled, pick: Callable[[list], Any]) -> None:
        self._compiled, self._pick, self.left = compiled, pick, 0

    def run(self, job, threads: int, on_row: Callable[[int], None]) -> None:
        how = self._pick(self._compiled.schedules(job.images, threads))
        self.left = self._compiled.run(job, how, on_row)

    def together(self, images: int, threads: int) -> int:
        return images


def leaving(steps: tuple[int, ...]) -> Callable[[list], Any]:
    """Threads leave at these column steps."""

    def pick(schedules: list) -> Any:
        schedules[0].fewer_at = list(steps)
        return schedules[0]

    return pick


def scheduled(runtime: CpuRuntime, pick: Callable[[list], Any], monkeypatch, draw):
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_sampler", Scheduled(runtime._sampler, pick))
        return draw()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_images_of_every_family(name, monkeypatch, four_threads):
    torch.manual_seed(1)
    shape = (1, 6, 8) if name == "filtered" else SHAPE  # columns in pairs
    sampler = Sampler(enlivened(MODELS[name]()), shape)
    runtime = sampler.runtime("cpu")
    assert isinstance(runtime, CpuRuntime)
    given = torch.randint(256, (3, *shape), dtype=torch.uint8)
    known = torch.rand(3, *shape) < 0.4
    for n in (1, 3):
        noise = torch.rand(n, *shape, dtype=torch.float64)

        def draw(n=n, noise=noise):
            drawn, scores = sampler.sample(n, noise=noise, runtime="cpu", log_probability=True)
            completed = sampler.complete(given[:n], known[:n], noise=noise, runtime="cpu")
            return drawn, scores, completed

        expected = draw()
        count = len(runtime._sampler.schedules(n, 4))
        picks: list[Callable[[list], Any]] = [*map(leaving, STEPS), *map(itemgetter, range(count))]
        for pick in picks:
            found = scheduled(runtime, pick, monkeypatch, draw)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), n


def test_the_machine_is_measured_once():
    first, second = (native.required().machine(2) for _ in range(2))
    assert first.bandwidths == second.bandwidths and first.bandwidths[-1] > 0
    for figure in ("multiply_add", "barrier", "element", "l2"):
        assert getattr(first, figure) == getattr(second, figure) >= 0


def machine(bandwidth: float = 100e9, **figures: float) -> Any:
    """One with two threads that multiplies at 50 G/s and has such a bandwidth beyond 1 MB of weights."""
    found = native.required().Machine()
    for figure, value in {"multiply_add": 2e-11, "barrier": 7e-8, **figures}.items():
        setattr(found, figure, value)
    found.bandwidths = [100e9, 100e9, 100e9, *5 * [bandwidth]]
    return found


def test_the_schedule_fits_the_machine():
    compiled: Any = Sampler(PixelCNN(n_residual=4), (3, 24, 24)).runtime("cpu")

    def best(images: int, bandwidth: float = 100e9, **figures: float) -> Any:
        return compiled._sampler.schedules(images, 2, machine(bandwidth, **figures))[0]

    def sites(schedule) -> int:
        return schedule.images * schedule.rows_in_flight

    fast, slow = best(8), best(8, 5e9)
    assert (fast.groups, slow.groups) == (2, 1)  # one group's threads each go through half of the weights
    assert sites(slow) > sites(fast)  # a weight serves more of them when it comes
    assert best(8, 5e9, element=1e-7).groups == 2  # what another core has written is not worth reading
    assert best(1).threads == 2 and best(1, barrier=1e-4).threads == 1
    assert sites(best(16)) > sites(best(16, l2=2e4, element=1e-8))  # values of fewer sites stay in the cache
    assert best(1, multiply_add=2e-10).cost > 5 * best(1).cost


def test_several_rows_in_flight_take_little_memory():
    """At most twice that of one, or 32 MB."""
    compiled: Any = Sampler(PixelCNN(hidden_channels=256, n_residual=1), (3, 64, 64)).runtime("cpu")
    bytes_of = compiled._sampler.workspace_bytes
    for n in (1, 24):
        schedules = compiled._sampler.schedules(n, 2, machine())
        one_row = max(bytes_of(s) for s in schedules if s.rows_in_flight == 1)
        assert max(map(bytes_of, schedules)) <= max(2 * one_row, 32 << 20)
        assert any(s.rows_in_flight > 1 for s in schedules)


def tried(sampler: Sampler, n: int, draws: int) -> set[tuple[Any, ...]]:
    """The schedules of so many draws."""
    runtime: Any = sampler.runtime("cpu")
    found = set()
    for _ in range(draws):
        chosen = runtime._sampler.chosen(n, runtime._threads)
        found.add((chosen.rows_in_flight, chosen.lag, chosen.chunk))
        sampler.sample(n, runtime="cpu", batch_size=n)
    return found


ENOUGH = 40  # draws, of which eight that nothing disturbs suffice


def test_the_first_draws_try_schedules_and_keep_the_fastest(with_threads):
    with_threads(1)
    sampler = Sampler(PixelCNN(hidden_channels=64, n_residual=2), (3, 16, 16))
    assert len(tried(sampler, 4, ENOUGH)) > 1
    assert len(tried(sampler, 4, 5)) == 1
    with_threads(2)  # which has a choice of its own
    runtime: Any = sampler.runtime("cpu")
    chosen = runtime._sampler.chosen(4, 2)
    assert chosen.groups * chosen.threads == 2


def test_prepare_tries_them_beforehand(with_threads):
    with_threads(1)
    sampler = Sampler(PixelCNN(hidden_channels=64, n_residual=2), (3, 16, 16)).prepare(4, runtime="cpu")
    assert len(tried(sampler, 4, 8)) == 1


def test_a_child_tries_schedules(with_threads):
    """Another thread of its parent was drawing when it was forked."""
    with_threads(1)
    sampler = Sampler(PixelCNN(hidden_channels=64, n_residual=2), (3, 16, 16))
    busy, is_drawing, has_forked = Sampler(MODELS["PixelCNN"](), SHAPE), threading.Event(), threading.Event()
    runtime: Any = busy.runtime("cpu")
    compiled = runtime._sampler

    def wait(row: int) -> None:
        is_drawing.set()
        has_forked.wait(30)

    runtime._sampler = SimpleNamespace(run=lambda job, threads, on_row: compiled.run(job, threads, wait))
    thread = threading.Thread(target=lambda: busy.sample(1, runtime="cpu", batch_size=1))
    thread.start()
    assert is_drawing.wait(30)
    child = in_child(lambda: len(tried(sampler, 4, ENOUGH)) > 1)
    has_forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_no_more_threads_than_cores(monkeypatch, with_threads):
    with_threads(4)
    monkeypatch.setattr(cores, "usable", lambda: 1)
    sampler, threads = Sampler(MODELS["PixelCNN"](), SHAPE), []
    runtime: Any = sampler.runtime("cpu")
    compiled = runtime._sampler

    def run(job: Any, most: int, on_row: Callable[[int], None]) -> None:
        threads.append(most)
        compiled.run(job, most, on_row)

    monkeypatch.setattr(runtime, "_sampler", SimpleNamespace(run=run, chosen=compiled.chosen))
    sampler.sample(2, runtime="cpu", batch_size=2)
    assert threads == [1]


@pytest.mark.skipif(
    not os.path.exists("/sys/kernel/mm/transparent_hugepage"),
    reason="this system has no huge pages to ask for",
)
def test_weights_ask_for_huge_pages():
    compiled = Sampler(PixelCNN(hidden_channels=256, n_residual=4), (3, 8, 8)).runtime("cpu")
    asked = size = 0
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if line.startswith("Size:"):
                size = int(line.split()[1]) << 10
            elif line.startswith("VmFlags:") and " hg" in line:
                asked += size
    assert asked > 8 << 20, compiled


def test_memory_of_weights_is_given_back():
    """Unlike that of values, which the next draw needs again."""
    sampler = Sampler(PixelCNN(hidden_channels=256, n_residual=4), (3, 8, 8))
    sampler.runtime("cpu")
    kept = native.required().Block.kept()
    del sampler
    gc.collect()
    assert native.required().Block.kept() == kept


def test_the_same_images_after_schedules_were_tried():
    model = enlivened(GatedPixelCNN(n_classes=3, condition_channels=2))
    sampler, other = Sampler(model, (3, 16, 16)), Sampler(model, (3, 16, 16))
    labels, condition = torch.tensor([2, 0, 1]), torch.rand(3, 2, 16, 16)
    noise = torch.rand(3, 3, 16, 16, dtype=torch.float64)

    def draw(of: Sampler) -> Tensor:
        return of.sample(3, labels, noise=noise, condition=condition, runtime="cpu")

    compiled: Any = sampler.runtime("cpu")
    assert compiled._sampler.schedules(3, compiled._threads)[0].cost > 1e-3  # else nothing is tried
    sampler.prepare(3, runtime="cpu")
    expected = draw(other)
    for _ in range(3):  # with what is left to be tried
        assert torch.equal(draw(sampler), expected)


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
        watched = runtime._sampler = Scheduled(runtime._sampler, itemgetter(0))
        sampler.sample(1, runtime="cpu")
        return watched.left == 1

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


@pytest.mark.parametrize("seed", few(range(40), 8))
def test_random_networks_by_random_schedules(seed, monkeypatch, four_threads):
    model = fuzz.Fuzzed(seed)
    if model.dtype in (torch.bfloat16, torch.float16):
        pytest.skip("the CPU runtime does not compute with these numbers")
    labels, condition = model.given(5)
    sampler, picking = fuzz.built(model, condition), random.Random(seed)
    runtime = sampler.runtime("cpu")
    assert isinstance(runtime, CpuRuntime)
    noise = torch.rand(5, *sampler.noise_shape, dtype=torch.float64)

    def draw():
        return sampler.sample(
            5, labels, noise=noise, condition=condition, runtime="cpu", log_probability=True
        )

    def pick(schedules: list) -> Any:
        found = picking.choice(schedules)
        found.fewer_at = picking.choice([[], *map(list, STEPS)])
        return found

    expected = draw()
    for _ in range(12):
        found = scheduled(runtime, pick, monkeypatch, draw)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    images = expected[0]
    for _ in range(6):
        of = [picking.randrange(3) for _ in range(5)]  # some are alike where they are known
        known = torch.zeros(model.shape, dtype=torch.bool)
        known[:, : picking.randint(1, model.shape[1])] = True

        def complete(of=of, known=known):
            return sampler.complete(
                images[of], known, labels[of], noise=noise[of], condition=condition[of], runtime="cpu"
            )

        assert torch.equal(scheduled(runtime, pick, monkeypatch, complete), images[of])
