"""Where a GPU turns out to be of no use, 'auto' takes another runtime and says why, once; one that is named is kept."""

import pickle
import warnings
from typing import Any

import pytest
import torch

from pixelcnn_fast import Sampler, engine
from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.models import GatedPixelCNN
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.runtimes.eager import EagerRuntime
from tests.refresh.test_weights import trained_on
from tests.system.networks import enlivened, pixelcnn

MODEL = enlivened(GatedPixelCNN(1, 4, (1, 1)))  # which is another program for 'cuda'


class Unbuildable:
    def __init__(self, *_: object) -> None:
        raise RuntimeUnavailable("the plan does not fit")


class Unloadable(EagerRuntime):
    prepared: list[int] = []

    def __init__(self, program, conditions, head, precision) -> None:
        super().__init__(program, conditions, head)

    def prepare(self, images: int) -> None:
        self.prepared.append(images)
        raise RuntimeUnavailable("the kernel does not load")


class Ready(Unloadable):
    def prepare(self, images: int) -> None:
        self.prepared.append(images)


def sampler(monkeypatch: pytest.MonkeyPatch, runtime: type) -> Sampler:
    """Of a machine with a GPU, as it seems. The model is on the CPU, so it does not warn by itself."""
    monkeypatch.setattr(engine, "why_not_cpu", lambda *_: "the model is on cuda:0")
    monkeypatch.setattr(engine, "why_not_cuda", lambda *_: None)
    monkeypatch.setattr(engine, "CudaRuntime", runtime)
    monkeypatch.setattr(engine, "LARGEST_BATCH", {**engine.LARGEST_BATCH, runtime: 2})
    monkeypatch.setattr(engine.Engine, "_is_on_gpu", True)
    Unloadable.prepared.clear()
    return Sampler(MODEL, (1, 3, 4))


def images(found: Sampler, runtime: RuntimeName) -> torch.Tensor:
    return found.sample(3, generator=torch.Generator().manual_seed(1), runtime=runtime, batch_size=2)


@pytest.mark.parametrize(
    "runtime, why", [(Unbuildable, "the plan does not fit"), (Unloadable, "the kernel does not load")]
)
def test_auto_takes_eager_and_says_why(monkeypatch, runtime, why) -> None:
    with pytest.warns(UserWarning, match=f"'auto' takes the runtime 'eager'.*: {why}$") as told:
        found = sampler(monkeypatch, runtime)
        drawn = images(found, "auto")
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(images(found, "auto"), drawn)
        assert torch.equal(images(found, "eager"), drawn)
        assert torch.equal(images(found.refresh(), "auto"), drawn)
    with pytest.raises(RuntimeUnavailable, match=f"^runtime 'cuda' is not available: {why}$"):
        images(found, "cuda")


def test_another_machine_tries_for_itself(monkeypatch) -> None:
    """A pickle does not carry what failed where it was made."""
    found = sampler(monkeypatch, Unloadable)
    with pytest.warns(UserWarning, match="'auto' takes the runtime 'eager'"):
        drawn = images(found, "auto")
    monkeypatch.setattr(engine, "CudaRuntime", Ready)
    assert first_line(found).startswith("program of runtime 'eager'")
    Unloadable.prepared.clear()
    other = pickle.loads(pickle.dumps(found))
    assert torch.equal(images(other, "auto"), drawn) and sorted(Ready.prepared) == [1, 2]


def test_a_refreshed_sampler_tries_again(monkeypatch) -> None:
    """The GPU's memory, for one, may have been full."""
    with pytest.warns(UserWarning, match="'auto' takes the runtime 'eager'"):
        found = sampler(monkeypatch, Unbuildable)
    monkeypatch.setattr(engine, "CudaRuntime", Ready)
    drawn = images(found, "auto")
    assert not Ready.prepared
    assert torch.equal(images(found.refresh(), "auto"), drawn) and sorted(Ready.prepared) == [1, 2]


def first_line(found: Sampler) -> str:
    return str(found.program).splitlines()[0]


def test_the_listing_names_what_auto_stands_for_by_then(monkeypatch) -> None:
    found = sampler(monkeypatch, Unloadable)
    assert first_line(found) == "program of runtime 'cuda', which 'auto' stands for here"
    with pytest.warns(UserWarning, match="'auto' takes the runtime 'eager'"):
        images(found, "auto")
    assert first_line(found) == "program of runtime 'eager', which 'auto' stands for here"


def test_a_runtime_is_given_the_program_that_is_listed(monkeypatch) -> None:
    found = sampler(monkeypatch, Ready)
    runtime, shared = found._engine.prepared("cuda")[0], found._engine.require_compiled().program
    assert isinstance(runtime, Ready) and str(runtime._program) != str(shared)
    assert str(found.program).endswith(str(runtime._program).split("\n", 1)[1])


def test_changed_weights_reach_the_program_of_a_runtime(monkeypatch) -> None:
    found, trained = sampler(monkeypatch, Ready), trained_on(MODEL)
    before, expected = images(found, "cuda"), images(Sampler(trained, (1, 3, 4)), "reference")
    assert torch.equal(images(found.refresh(trained), "cuda"), expected) and not torch.equal(before, expected)


def test_batches_are_made_ready_before_anything_is_drawn(monkeypatch) -> None:
    found = sampler(monkeypatch, Ready)
    assert found.prepare(3, batch_size=2) is found
    assert sorted(Ready.prepared) == [1, 2]


def test_prepare_does_nothing_elsewhere() -> None:
    found = Sampler(pixelcnn(), (1, 3, 4))
    assert found.prepare(3) is found
    size: Any
    n: Any
    for size in (0, 2.5, "3", True):
        with pytest.raises(ValueError, match=f"batch_size is {size!r}: expected an integer of 1 or more"):
            found.prepare(3, batch_size=size)
    for n in (-1, 2.5, "3", None, True):
        with pytest.raises(ValueError, match=f"n is {n!r}: the number of images must be an integer"):
            found.prepare(n)


def test_a_call_that_is_refused_leaves_the_generator_as_it_is() -> None:
    found, generator = Sampler(pixelcnn(), (1, 3, 4)), torch.Generator().manual_seed(1)
    before = generator.get_state()
    with pytest.raises(RuntimeUnavailable):
        found.sample(3, generator=generator, runtime="cuda")
    assert torch.equal(generator.get_state(), before)
