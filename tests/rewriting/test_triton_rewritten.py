"""Graphs that are rewritten, with Triton's kernels behind their ops."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.tiers import thorough
from tests.triton_device import exact_float32, poisoned_memory, triton_device  # noqa: F401

DEVICE = triton_device()
pytestmark = pytest.mark.usefixtures("exact_float32", "poisoned_memory")

from public_networks import Cropped, Stack, Tutorial, masked_in_place  # noqa: E402

from pixelcnn_fast.ops.categorical_nll import op as nll_op  # noqa: E402
from pixelcnn_fast.ops.gated_activation import op as gate_op  # noqa: E402
from pixelcnn_fast.ops.masked_conv2d import op as conv_op  # noqa: E402
from pixelcnn_fast.ops.masked_conv_block import op as block_op  # noqa: E402
from pixelcnn_fast.rewriting.backend import Backend  # noqa: E402

OPS = {"conv": conv_op, "gate": gate_op, "nll": nll_op, "block": block_op}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each op was computed, by Triton: on the CPU, too, in its interpreter."""
    counted: Counter[str] = Counter()

    def choose_for(name: str) -> Callable[..., str]:
        def choose(given: str, device: torch.device, dtype: torch.dtype) -> str:
            counted[name] += 1
            return "triton"

        return choose

    for name, op in OPS.items():
        monkeypatch.setattr(op, "choose", choose_for(name))
    return counted


def step(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The loss, and its gradients."""
    logits = model(images)
    loss = F.cross_entropy(logits, images.long() % logits.shape[1])
    return [loss.detach(), *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# a network, and what is called in training and in inference
NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "tutorial": (lambda: Tutorial(4, (1, 2)), {"conv", "gate", "nll"}, {"conv", "gate"}),
    "crops": (lambda: Cropped(4, 2), {"conv", "nll"}, {"conv"}),
    "masks by where": (lambda: Stack(4, 2, style="where"), {"conv", "nll"}, {"block"}),
    "masked in place": (lambda: masked_in_place(Stack(4, 2)), {"conv", "nll"}, {"block"}),
}


@thorough
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_what_it_did(name: str, calls: Counter[str]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    build, in_training, in_inference = NETWORKS[name]
    model = build().to(DEVICE)
    plain, backend = copy.deepcopy(model), Backend()
    images = torch.randint(0, 256, (2, 1, 6, 7)).float().to(DEVICE)
    compiled: Any = torch.compile(step, backend=backend)
    close(compiled(model, images), step(plain, images))
    assert in_training <= {*calls}, str(backend.report)
    calls.clear()
    model.eval(), plain.eval()
    with torch.no_grad():
        close([torch.compile(model, backend=backend)(images)], [plain(images)])
    assert in_inference <= {*calls}, str(backend.report)
