"""The smoke test, with emulated kernels in place of a GPU's: right ones pass, and the first wrong sub-pixel is told."""

import dataclasses
import os
import shutil

import pytest
import torch
from gpu import kernels, smoke
from gpu.draws import Compared
from gpu.stage import printed_figures
from torch import nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.runtimes.cuda.kernels import Instance, instances
from pixelcnn_fast.runtimes.cuda.runtime import CLUSTERS, CudaRuntime, Limits
from pixelcnn_fast.runtimes.job import Job
from tests.csrc.emulated import EmulatedKernels
from tests.needs import needs_native
from tests.tiers import thorough, tiered

pytestmark = [needs_native, pytest.mark.skipif(not shutil.which("g++"), reason="no g++")]
CASES = {**smoke.CASES, **smoke.MORE}
FEW = smoke.CASES["bf16"]._replace(images=2)


def emulated(model: nn.Module, shape: smoke.Shape, precision: Precision) -> CudaRuntime:
    sampler = Sampler(model, shape, precision=precision)
    found, limits = sampler._engine.require_compiled(), Limits(227 << 10, 132, max(CLUSTERS))
    return CudaRuntime(
        found.program_for("cuda"), found.conditions, sampler.head, precision, EmulatedKernels(), limits
    )


@pytest.fixture(autouse=True)
def in_emulation(monkeypatch):
    monkeypatch.setattr(smoke, "runtime_of", emulated)


@pytest.mark.parametrize("name", tiered(CASES, lambda name: name in ("one-pixel", "diagonal-bilstm")))
def test_right_kernels_pass(name):
    found = smoke.drawn(CASES[name])
    assert not found.first_wrong and 0 < found.error <= found.limit


@pytest.mark.parametrize(
    ("dy", "dx", "first"),
    [(0, -2, "row 0, column 2"), (-1, 0, "row 1, column 0"), (-2, 1, "row 2, column 0")],
)
def test_a_wrong_weight_is_seen_where_it_is_first_read(monkeypatch, dy, dx, first):
    """The tap that reads the pixel dy rows below and dx columns to the right: not before that is in the image."""

    def spoiled(model: nn.Module, shape: smoke.Shape, precision: Precision) -> CudaRuntime:
        model.get_submodule("conv_in").get_parameter("weight").data[:, :, 2 + dy, 2 + dx] = 3
        return emulated(model, shape, precision)

    monkeypatch.setattr(smoke, "runtime_of", spoiled)
    found = smoke.drawn(FEW)
    assert f"image 0, channel 0, {first}: logit" in found.first_wrong and found.error > found.limit


def test_a_wrong_draw_is_named_by_its_level(monkeypatch):
    run = CudaRuntime.run

    def wrong(self: CudaRuntime, job: Job) -> None:
        noise = job.noise.clone()
        for where in ((1, 2, 3, 4), (0, 1, 4, 0)):
            noise[where] = 1 - noise[where]
        run(self, dataclasses.replace(job, noise=noise))

    monkeypatch.setattr(CudaRuntime, "run", wrong)
    found = smoke.drawn(FEW)
    assert "image 1, channel 2, row 3, column 4: level" in found.first_wrong and found.error <= found.limit


def test_logits_that_were_not_written_are_wrong(monkeypatch):
    def run(self: CudaRuntime, job: Job) -> None:
        job.values.zero_()

    monkeypatch.setattr(CudaRuntime, "run", run)
    assert smoke.drawn(FEW).first_wrong.startswith("image 0, channel 0, row 0, column 0: logit 0 is nan")


def test_a_case_that_another_kernel_draws_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    found = smoke.result(FEW._replace(kernel=Instance("bf16", 2)))
    assert found == "wrong: the kernel is bf16-1x1, not bf16-2x1"


def test_the_cases_that_are_asked_for(monkeypatch, capsys):
    """Or all, and some more. A wrong one leaves the others, and is told."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(smoke, "drawn", lambda case: Compared(0.01, 0.05, ""))
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "0")
    status, found = printed(capsys)
    assert status == 0 and os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert found.keys() == CASES.keys() and found["cluster"] == "not available: the GPU has no clusters"
    assert found["bf16"] == "right, by bf16-1x1: an error of 0.01, where 0.05 is allowed"
    wrong = Compared(0.1, 0.05, "image 0")
    monkeypatch.setattr(
        smoke, "drawn", lambda case: wrong if case == CASES["bf16"] else Compared(0.01, 0.05, "")
    )
    status, found = printed(capsys, "bf16,float32")
    assert status == "bf16: wrong: image 0" and [*found] == ["bf16", "float32"]
    assert found["bf16"] == "wrong: image 0" and found["float32"].startswith("right")


def printed(capsys, *names: str) -> tuple[object, dict]:
    """How it ends, and the figures."""
    with pytest.raises(SystemExit) as ended:
        smoke.main(*names)
    return ended.value.code, printed_figures(capsys.readouterr().out)


def test_kernels_are_compiled_side_by_side(monkeypatch, capsys):
    """First those that the cases need."""
    assert {case.kernel for case in CASES.values()} <= {*instances(("bf16", "fp32"))}
    asked = []
    monkeypatch.setattr(kernels, "compile_each", lambda wanted, *_: asked.append({*wanted}))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for which in ("few", "all"):
        kernels.main(which)
    few, every = asked
    assert few == {case.kernel for case in smoke.CASES.values()} and few < every
    assert every == {*instances(("bf16", "fp32", "fp16"))}


@thorough
def test_what_can_t_be_compiled_is_said(monkeypatch, tmp_path, capsys):
    """By a process that was to compile it. A GPU without clusters has no kernels for them."""
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", str(tmp_path / "missing"))
    kernels.compile_each([Instance("bf16", 1, 8)], (8, 0), 1)
    with pytest.raises(RuntimeUnavailable, match="missing is not a folder"):
        kernels.compile_each([Instance("bf16", 1)], (8, 0), 1)
    assert not capsys.readouterr().out
