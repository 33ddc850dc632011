"""Whatever ends a run of sampling carries what was finished."""

import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast import NonFiniteLogits, RuntimeUnavailable, Sampler, SamplingInterrupted
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.runtimes.job import Job, Runtime
from tests.heads.test_own_head import Net, Pair
from tests.sampler_life.common import SHAPE, noise
from tests.system.networks import ABOVE, LEFT, Masked, pixelcnn

RUNTIMES: tuple[RuntimeName, ...] = ("cpu", "eager", "reference")


class Conditioned(nn.Module):
    """Its logits are NaN where the label is 1."""

    levels, n_classes = 4, 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.embedding = Masked(1, 4, [*ABOVE, *LEFT]), nn.Embedding(2, 4)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.conv(x.to(self.conv.weight)) + self.embedding(labels)[:, :, None, None]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nan_at_image_200_of_300(runtime: RuntimeName) -> None:
    model = Conditioned()
    sampler = Sampler(model, SHAPE)
    expected = sampler.sample(300, torch.zeros(300, dtype=torch.long), noise=noise(300), log_probability=True)
    model.embedding.weight.data[1] = torch.nan
    sampler.refresh()
    labels = (torch.arange(300) == 200).long()
    with pytest.raises(NonFiniteLogits, match="image 200, channel 0, row 0, column 0") as stopped:
        sampler.sample(300, labels, noise=noise(300), log_probability=True, runtime=runtime, batch_size=50)
    assert kept(stopped.value, expected[0][:200], expected[1][:200]) == 200


def kept(error: BaseException, images: Tensor, log_probabilities: Tensor | None = None) -> int:
    """How many images an error carries, after a comparison with those that are expected."""
    finished = vars(error)
    torch.testing.assert_close(finished["log_probabilities"], log_probabilities)
    assert torch.equal(finished["images"], images) and finished["finished"] == len(images)
    return finished["finished"]


class NotExtended(Exception):
    """It allows no attributes to be set."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("error", [MemoryError, ZeroDivisionError, SystemExit, NotExtended])
def test_any_other_error_keeps_its_type(error: type[BaseException]) -> None:
    """Here, what raises is the user's head."""
    calls = 0

    class Failing(Pair):
        def draw(self, *args: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 60:
                raise error("enough")
            return super().draw(*args)

    sampler = Sampler(Net(), (2, 4, 5), image_form="levels", head=Failing())
    u = torch.rand(9, 2 * sampler.head.uniforms, 4, 5, dtype=torch.float64)[:, : sampler.head.uniforms]
    with pytest.raises(error, match="enough") as stopped:
        sampler.sample(9, noise=u, runtime="eager", batch_size=2)
    calls = 0
    expected = sampler.sample(6, noise=u[:6], runtime="eager", batch_size=2)
    assert kept(stopped.value, expected) == 6


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_ctrl_c_keeps_whole_images(runtime: RuntimeName, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(pixelcnn(), SHAPE)
    expected = sampler.sample(40, noise=noise(40), log_probability=True)
    engine, calls = sampler.runtime(runtime), 0

    class Interrupted(Runtime):
        def run(self, job: Job) -> None:
            nonlocal calls
            calls += 1
            if calls == 3:
                threading.Timer(0, os.kill, (os.getpid(), signal.SIGINT)).start()
                while True:
                    engine.run(job)
            engine.run(job)

    monkeypatch.setitem(sampler._engine._runtimes, runtime, Interrupted())
    with pytest.raises(SamplingInterrupted, match="20 of 40 images are finished") as stopped:
        sampler.sample(40, noise=noise(40), log_probability=True, runtime=runtime, batch_size=10)
    assert kept(stopped.value, expected[0][:20], expected[1][:20]) == 20
    calls = 2
    known = torch.zeros(SHAPE[1:], dtype=torch.bool)
    with pytest.raises(SamplingInterrupted) as stopped:
        sampler.complete(expected[0], known, noise=noise(40), runtime=runtime, batch_size=10)
    assert kept(stopped.value, expected[0][:0]) == 0


@pytest.mark.parametrize("images", [1, 10])  # several rows in flight, and one
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_stops_a_batch_stops_it_soon(runtime, images, monkeypatch):
    """What has not begun is not drawn, on one thread, as others may be rows ahead."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def stopped(y: int) -> None:
        if y == 2:
            raise KeyboardInterrupt

    shape = (1, 20, 6)
    job = Job(
        values=torch.full((images, *shape), -1, dtype=torch.int32),
        noise=torch.rand(images, *shape, dtype=torch.float64),
        on_row=stopped,
    )
    with pytest.raises(KeyboardInterrupt):
        Sampler(pixelcnn(), shape).runtime(runtime).run(job)
    assert (job.values[:, :, 0, 0] >= 0).all() and (job.values[:, :, 10:] == -1).all()


@pytest.mark.parametrize(
    ("runtime", "n", "least"),
    [("cpu", 300, 9), ("eager", 300, 4), ("reference", 20, 5), ("reference", 3, 3), ("reference", 2, 2)],
)
def test_a_default_batch_is_small_enough_that_some_are_finished(runtime, n, least):
    sampler = Sampler(pixelcnn(), (1, 28, 28))
    parts = sampler._engine.batches(n, sampler.runtime(runtime), None)
    assert len(parts) >= least
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))


def test_small_images_of_the_reference_are_drawn_together() -> None:
    sampler = Sampler(pixelcnn(), (1, 4, 7))
    counts = [len(sampler._engine.batches(n, sampler.runtime("reference"), None)) for n in (1, 112, 113)]
    assert counts == [1, 1, 2]


def raises(function: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as stopped:  # any
        function()
    return stopped.value


def test_bad_arguments_carry_nothing() -> None:
    assert "images" not in vars(raises(lambda: Sampler(pixelcnn(), SHAPE).sample(2, temperature=-1)))


@pytest.mark.parametrize("kind", [MemoryError, KeyError])
def test_what_the_model_raises_keeps_its_type(kind: type[Exception]) -> None:
    class Raises(Masked):
        levels, after = 4, 40

        def forward(self, x: Tensor) -> Tensor:
            self.after -= 1
            if self.after < 0:
                raise kind("enough")
            return super().forward(x.to(self.weight))

    sampler = Sampler(Raises(1, 4, [*ABOVE, *LEFT]), (1, 2, 3))
    error = raises(lambda: sampler.sample(50, runtime="reference", batch_size=1))
    assert type(error) is kind and vars(error)["finished"] > 0


@pytest.mark.parametrize("error", [NonFiniteLogits(3, 2, 1, 0), RuntimeUnavailable("no GPU", "cpu")])
def test_other_errors_can_be_pickled(error: Exception) -> None:
    """As what a worker raises is."""
    same = pickle.loads(pickle.dumps(error))
    assert type(same) is type(error) and str(same) == str(error) and vars(same) == vars(error)


def test_an_interruption_can_be_pickled() -> None:
    error = SamplingInterrupted(torch.ones(2, *SHAPE), 3, torch.zeros(2))
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(same) == "sampling was interrupted: 2 of 3 images are finished" and same.finished == 2
        assert torch.equal(same.images, error.images) and same.log_probabilities is not None
