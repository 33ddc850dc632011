"""How the CUDA runtime hands jobs to the device and takes their results, with a stub in place of the kernels."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import NonFiniteLogits, RuntimeUnavailable
from pixelcnn_fast.program.schema import WAITED_IN_VAIN
from pixelcnn_fast.runtimes.cuda import driver, kernels
from pixelcnn_fast.runtimes.cuda.driver import Launch
from pixelcnn_fast.runtimes.cuda.kernels import Instance
from pixelcnn_fast.runtimes.cuda.runtime import (
    CudaRuntime,
    Launched,
    Limits,
    largest_cluster,
    why_not_cuda,
)
from pixelcnn_fast.runtimes.job import Job
from tests.copies import Copy, pretended_devices
from tests.needs import needs_native
from tests.system.foreign import NETWORKS
from tests.system.networks import pixelcnn

pytestmark = needs_native
SHAPE = (1, 2, 3)
NAN_AT_THE_LAST_PIXEL = (5 << 40 | 1 << 29 | 70000 << 5 | 2) + 1  # the draw from channel 1 on, lane 2
events: list[str] = []


class Kernels:
    """Levels are 256 times the noise, logits are not written, log-probabilities are the noise; ``errors`` has the error
    word of each launch, -1 if it has none. Planner and kernel, in one."""

    def __init__(self, errors: dict[int, int] | None = None) -> None:
        self.errors = errors or {}
        self.facts = {
            "most_images": 4,
            "rows": 1,
            "tiles": 1,
            "cluster": 1,
            "turns": 1,
            "sweeps": [],
            "threads": 256,
            "shared_bytes": 0,
        }
        self.launches = 0

    def get(self, instance: Instance) -> Kernels:
        return self

    def workspace_bytes(self, images: int) -> int:
        return images

    def blocks(self, images: int) -> int:
        return images

    def constants(self) -> bytes:
        return b"0"

    def parameters(self, job: Any, constants: int, workspace: int, error: int) -> Any:
        return job, error

    def clusters_at_once(self, how: Launch) -> int:
        return 0

    def launch(self, how: Launch, parameters: Any, stream: int) -> None:
        job, error = parameters
        events.append(f"launched {self.launches}")
        size = how.blocks * 6
        noise = (ctypes.c_double * size).from_address(job.noise)
        levels = (ctypes.c_int32 * size).from_address(job.values)
        levels[:] = [int(256 * u) for u in noise]
        if job.log_probability:
            ctypes.memmove(job.log_probability, noise, 8 * size)
        ctypes.c_int64.from_address(error).value = self.errors.get(self.launches, -1)
        self.launches += 1


def runtime(kernels: Kernels) -> CudaRuntime:
    sampler = Sampler(pixelcnn(), SHAPE)
    captured = sampler._engine.require_compiled()
    limits = Limits(1 << 16, 2)
    found = CudaRuntime(
        captured.program_for("cuda"), captured.conditions, sampler.head, kernels=kernels, limits=limits
    )
    found._samplers, found._planned = {}, lambda shape: kernels  # type: ignore[method-assign]  # a stub
    return found


def job(number: int = 0, n: int = 2) -> Job:
    generator = torch.Generator().manual_seed(number)
    return Job(
        values=torch.zeros(n, *SHAPE, dtype=torch.int32),
        noise=torch.rand(n, *SHAPE, dtype=torch.float64, generator=generator),
        log_probability=torch.zeros(n, *SHAPE, dtype=torch.float64),
    )


def jobs() -> Iterator[Job]:
    for number in range(3):
        events.append(f"asked for {number}")
        yield job(number)


def is_as_stubbed(found: Job) -> bool:
    assert found.log_probability is not None
    return torch.equal(found.values, (256 * found.noise).int()) and torch.equal(
        found.log_probability, found.noise
    )


def test_the_next_job_is_launched_before_the_last_is_stored() -> None:
    events.clear()
    for number, finished in enumerate(runtime(Kernels()).run_each(jobs())):
        events.append(f"finished {number}")
        assert is_as_stubbed(finished) and torch.equal(finished.noise, job(number).noise)
    assert events == [
        *("asked for 0", "launched 0", "asked for 1", "launched 1", "finished 0"),
        *("asked for 2", "launched 2", "finished 1", "finished 2"),
    ]


def test_one_job() -> None:
    one, none = job(), job(n=0)
    stubbed = runtime(kernels := Kernels())
    stubbed.run(one)
    stubbed.run(none)
    assert is_as_stubbed(one) and kernels.launches == 1


def test_the_error_word_is_that_of_its_own_job() -> None:
    """The second of three jobs fails: the first is finished, and its values are kept."""
    finished = []
    with pytest.raises(NonFiniteLogits) as failed:
        for each in runtime(Kernels({1: NAN_AT_THE_LAST_PIXEL})).run_each(jobs()):
            finished.append(each)
    assert failed.value.location == (70000, 3, 1, 2)  # image, channel, row, column
    assert len(finished) == 1 and is_as_stubbed(finished[0])


def test_threads_that_wait_in_vain_are_no_nan() -> None:
    with pytest.raises(RuntimeError, match="waited in vain.*please report"):
        runtime(Kernels({0: WAITED_IN_VAIN})).run(job())


def test_the_error_word_is_read_when_the_device_has_come_to_it() -> None:
    error = torch.tensor([-1])
    done: Any = SimpleNamespace(synchronize=lambda: error.fill_(NAN_AT_THE_LAST_PIXEL))
    with pytest.raises(NonFiniteLogits):
        runtime(Kernels())._finished(Launched(job(), [], error, done))


def test_rows_are_told_once_they_are_drawn() -> None:
    told: list[object] = []
    done: Any = SimpleNamespace(synchronize=lambda: told.append("done"))
    one = replace(job(), on_row=told.append)
    runtime(Kernels())._finished(Launched(one, [], torch.tensor([-1]), done))
    assert told == ["done", 0, 1]


def test_constants_live_until_the_device_is_done() -> None:
    """Though the runtime may have forgotten the shape meanwhile."""
    stubbed = runtime(Kernels())
    launched = stubbed._launched(job())
    [(_, constants)] = stubbed._constants.items()
    stubbed._constants.clear()
    assert launched.constants is constants


# -- with a GPU that is not there

GPU = torch.device("cuda:0")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    """It launches nothing."""
    found, stream = runtime(Kernels()), SimpleNamespace(record_event=torch.cuda.Event)
    found._program = replace(found._program, device=GPU)
    monkeypatch.setattr(found, "_constants_of", lambda shape: torch.zeros(1, device=GPU))
    monkeypatch.setattr(found, "enqueue", lambda batch: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return found


def test_between_host_and_gpu_nobody_waits(on_gpu: CudaRuntime) -> None:
    with pretended_devices() as copies:
        one = replace(job(), known=torch.zeros(2, *SHAPE, dtype=torch.bool))
        launched = on_gpu._launched(one)
        there = 3 * [Copy("cpu", "cuda", 12)]  # levels, known, noise
        back = [Copy("cuda", "cpu", elements) for elements in (12, 12, 1)]  # levels, log-probabilities, error
        assert copies.made == there + back and copies.pinned_elements == sum(x.elements for x in there + back)
        assert [place for place, _ in launched.results] == [one.values, one.log_probability]
        assert all(found.device.type == "cpu" for _, found in launched.results)
    assert launched.done is not None


def test_what_is_on_the_gpu_stays_there(on_gpu: CudaRuntime) -> None:
    with pretended_devices() as copies:
        values = torch.zeros(2, *SHAPE, dtype=torch.int32, device=GPU)
        noise, scores = (torch.zeros(2, *SHAPE, dtype=torch.float64, device=GPU) for _ in range(2))
        one = Job(values=values, noise=noise, log_probability=scores)
        assert on_gpu.prepared(one).job.noise is noise
        (place, found), (_, their_scores) = on_gpu._launched(one).results
        assert place is found is values and their_scores.device == GPU
    assert copies.made == [Copy("cuda", "cpu", 1)]  # the error word


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Of the GPU: bytes that are free; that PyTorch has reserved, and that are in use of these. An image takes one."""
    found = {"free": 10, "reserved": 30, "used": 4}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found["free"], 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: found["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: found["used"])
    monkeypatch.setattr(CudaRuntime, "_planned", lambda self, shape: Kernels())
    return found


def runtime_on_gpu() -> CudaRuntime:
    sampler = Sampler(pixelcnn(), SHAPE)
    captured = sampler._engine.require_compiled()
    program = replace(captured.program_for("cuda"), device=GPU)
    limits = Limits(1 << 16, 20)
    return CudaRuntime(program, captured.conditions, sampler.head, kernels=Kernels(), limits=limits)


def test_half_of_the_memory_may_be_taken_with_what_pytorch_keeps(memory: dict[str, int]) -> None:
    assert runtime_on_gpu().largest_batch() == (10 + 30 - 4) // 2


def test_a_gpu_without_memory_for_an_image_is_refused(memory: dict[str, int]) -> None:
    memory.update(free=1, reserved=4)
    with pytest.raises(RuntimeUnavailable, match="less than twice that is free"):
        runtime_on_gpu()


def test_which_gpus_have_clusters() -> None:
    """Those for data centres from Hopper on; desktop Blackwells have too few registers."""
    with_clusters = {(9, 0), (10, 0), (10, 3), (11, 0)}
    for capability in with_clusters | {(8, 0), (8, 9), (12, 0), (12, 1)}:
        assert (largest_cluster(capability) > 1) == (capability in with_clusters)


@pytest.mark.parametrize(
    "why, given",
    [
        ("None", {}),
        ("the model is on cpu: use model.cuda", {"device": torch.device("cpu")}),
        ("built for ROCm.*: use 'eager'", {"hip": "6.0"}),
        ("compute capability 7.5, but 8.0 is needed: use 'eager'", {"capability": (7, 5)}),
        ("None", {"capability": (8, 0)}),
        ("the model is torch.float64.*: use model.float", {"dtype": torch.float64}),
        ("no CUDA driver is installed: install", {"driver": 0}),
        ("serves CUDA 11.4, and 11.8 is needed: update", {"driver": 11040}),
        ("no compiler for its kernels: install NVRTC .pip install", {"compilers": []}),
        ("None", {"compilers": [], "ready": "/kernels"}),
    ],
)
def test_why_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch, why: str, given: dict[str, Any]) -> None:
    sampler = Sampler(pixelcnn(), SHAPE)
    of_program = {"device": GPU, **{name: given[name] for name in given if name in ("device", "dtype")}}
    program = replace(sampler._engine.require_compiled().program_for("cuda"), **of_program)
    capability = given.get("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", given.get("hip"))
    monkeypatch.setattr(driver, "version", lambda: given.get("driver", 13000))
    monkeypatch.setattr(kernels, "compilers", lambda: given.get("compilers", ["NVRTC"]))
    monkeypatch.setenv(kernels.READY, given.get("ready", ""))
    assert re.search(why, str(why_not_cuda(program, sampler.head)))


def test_several_grids_are_left_to_eager() -> None:
    sampler = NETWORKS["strides"].sampler(NETWORKS["strides"].model())
    program = sampler._engine.require_compiled().program_for("cuda")
    assert re.search("several grids.*: use 'eager'", str(why_not_cuda(program, sampler.head)))
