"""What is measured on a GPU, rehearsed on the CPU: everything but the clock, on small networks and batches."""

import pytest
import torch
from gpu import layers, sampling
from gpu.stage import printed_figures

from pixelcnn_fast import ops
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.errors import CheckFailed
from pixelcnn_fast.models import GatedPixelCNN, PixelRNN
from tests.needs import needs_native
from tests.tiers import thorough

DEFAULT, FAMILIES = sampling.DEFAULT, sampling.FAMILIES


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    def seconds(call, repeats):
        call()
        return 0.5

    small = random_model(hidden_channels=8, n_residual=1)
    families = {
        "gated": (GatedPixelCNN, {"input_channels": 1, "hidden_channels": 8, "dilations": (1,)}, 6),
        "rows": (PixelRNN, {"kind": "row_lstm", "hidden_channels": 8, "n_layers": 1}, 6),
    }
    for name, value in {
        "DEVICE": "cpu",
        "RUNTIME": "cpu",
        "BATCHES": (1, 2),
        "DEFAULT": {1: "one image", 2: "two"},
        "FAMILIES": families,
        "default_model": lambda: small,
        "in_graph": lambda forward: forward,
        "wall_seconds": seconds,
        "stream_seconds": seconds,
        "kernel_seconds": lambda call, name: 0.25 if call() is not None else None,
    }.items():
        monkeypatch.setattr(sampling, name, value)
    monkeypatch.setattr(layers, "DEVICE", "cpu")
    monkeypatch.setattr(layers, "BATCH", 4)
    monkeypatch.setattr(layers, "BACKEND", "compiled")
    monkeypatch.setattr(layers, "stream_seconds", seconds)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def printed(capsys: pytest.CaptureFixture[str]) -> dict:
    return printed_figures(capsys.readouterr().out)


def test_targets_have_the_budgets_names():
    budget = pytest.importorskip("cuda_budget", reason="no benchmarks/cuda_budget.py")
    names = {*DEFAULT.values(), *FAMILIES}
    assert names < {row.name for row in budget.ROWS}


@needs_native
def test_ours(capsys):
    sampling.ours()
    assert printed(capsys) == {
        "pixelcnn_fast, bf16": {"1": 0.5, "2": 0.5},
        "pixelcnn_fast, float32": {"1": 0.5, "2": 0.5},
        "targets": {"one image": "500 ms, kernels alone 250 ms", "two": "500 ms, kernels alone 250 ms"},
    }


@needs_native
def test_wrong_images_are_not_timed(monkeypatch, capsys):
    judged = sampling.judged
    monkeypatch.setattr(
        sampling, "judged", lambda model, images, *a, **k: judged(model, images ^ 64, *a, **k)
    )
    with pytest.raises(CheckFailed, match="1 images are wrong"):
        sampling.ours()
    assert printed(capsys) == {}


@needs_native
def test_families(capsys):
    sampling.families()
    assert printed(capsys)["families"] == dict.fromkeys(("gated", "rows"), "500 ms, kernels alone 250 ms")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_the_runtime_refuses_is_said(monkeypatch, capsys):
    monkeypatch.setattr(sampling, "RUNTIME", "cuda")
    sampling.families()
    assert all("not available" in why for why in printed(capsys)["families"].values())


@thorough
def test_what_there_is_without_the_library(capsys):
    sampling.naive()
    assert printed(capsys) == {
        "naive, bf16": {"1": 512.0, "2": 512.0},
        "naive, bf16, CUDA graph": {"1": 512.0, "2": 512.0},
        "cached PyTorch, float32": {"1": 8.0},
    }


def test_the_naive_network_is_plain_pytorch():
    ((_, forward),) = sampling.naive_forwards((2,))
    assert forward().dtype == torch.bfloat16 and forward().shape == (2, 3, 32, 32, 256)
    (plain, _) = forward.__defaults__ or ()
    assert {type(m).__module__.split(".")[0:3:2][-1] for m in plain.modules()} <= {"reference", "modules"}


@needs_native
def test_one():
    sampling.one()


@needs_native
def test_layers(capsys):
    assert layers.main() == 0
    found = printed(capsys)
    assert found.keys() == layers.LAYERS.keys()
    assert all(times == dict.fromkeys(times, 500.0) and len(times) >= 2 for times in found.values()), found


@needs_native
def test_a_layer_that_is_wrong_has_failed_and_leaves_the_others(monkeypatch, capsys):
    right = ops.gated_activation
    monkeypatch.setattr(ops, "gated_activation", lambda x: -right(x))
    monkeypatch.setattr(
        layers, "LAYERS", {n: layers.LAYERS[n] for n in ("gated_activation", "categorical_nll")}
    )
    assert layers.main() == 1
    found = printed(capsys)
    assert found["gated_activation"]["pixelcnn_fast"].startswith("failed: CheckFailed: differs by")
    assert found["gated_activation"]["plain"] == found["categorical_nll"]["pixelcnn_fast"] == 500.0
