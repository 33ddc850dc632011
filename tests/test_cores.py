"""Where other processes have the cores, PyTorch's threads would wait for each other: then there is one."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import Sampler, check_causal, cores
from pixelcnn_fast.compiler import Compiled
from pixelcnn_fast.errors import ModelFailed
from tests.system.networks import ABOVE, Masked

SHAPE = (1, 4, 4)


class Counting(nn.Module):
    """It notes how many threads PyTorch has when it is called."""

    levels = 5
    threads: list[int] = []  # copies have the same one
    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.conv = Masked(1, 5, ABOVE)

    def forward(self, x: Tensor) -> Tensor:
        self.threads.append(torch.get_num_threads())
        if self.fails:
            raise KeyError("oh")
        return self.conv(x.float())


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    Counting.threads.clear()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("build", [Sampler, check_causal])
def test_a_sampler_is_built_by_as_many_threads_as_cores_allow(taken, build, monkeypatch) -> None:
    monkeypatch.setattr(cores, "are_taken", lambda: taken)
    build(Counting(), SHAPE)
    assert {*Counting.threads} == {1 if taken else 3} and torch.get_num_threads() == 3
    Counting.threads.clear()
    failing = Counting()
    failing.fails = True
    with pytest.raises(ModelFailed):
        build(failing, SHAPE)
    assert {*Counting.threads} == {1 if taken else 3} and torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_weights_are_refreshed_by_one_thread(monkeypatch) -> None:
    sampler, with_weights, found = Sampler(Counting(), SHAPE), Compiled.with_weights, []

    def counted(*arguments):
        found.append(torch.get_num_threads())
        return with_weights(*arguments)

    monkeypatch.setattr(Compiled, "with_weights", counted)
    model = Counting()
    sampler.refresh(model)
    assert found == [1] and torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(
    ("seconds", "taken"),
    [(1e-5, False), (8e-3, True), ([8e-3, *[1e-5] * 2000], False)],
    ids=["quiet", "taken", "one slow call"],
)
def test_cores_are_taken_if_calls_are_slow_again(seconds, taken, monkeypatch) -> None:
    durations = iter(seconds) if isinstance(seconds, list) else (seconds for _ in count())
    clock = [0.0]

    class Shared:
        def add_(self, _: int) -> None:
            clock[0] += next(durations)

    monkeypatch.setattr(cores.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cores.torch, "zeros", lambda n: Shared())
    assert cores.are_taken() is taken
    torch.set_num_threads(1)
    assert not cores.are_taken()
