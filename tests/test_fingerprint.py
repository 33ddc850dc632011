"""A fingerprint tells things apart, and nothing else."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.heads import Categorical
from pixelcnn_fast.image_forms import ImageForm
from pixelcnn_fast.runtimes import RuntimeName
from tests.processes import sampler
from tests.system.networks import ABOVE, Masked, Written, pixelcnn
from tests.tiers import thorough


class Other(Categorical):
    """It has the same settings."""


def test_tensors() -> None:
    a = torch.arange(6.0)
    assert fingerprint(a) == fingerprint(a.clone()) == fingerprint(torch.stack([a, a], 1)[:, 0])
    others = [a + 1, a.view(2, 3), a.double(), a.view(torch.int32), a[:5], "a"]
    assert len({fingerprint(x) for x in [a, *others]}) == 1 + len(others)
    assert fingerprint(torch.tensor(True)) != fingerprint(torch.tensor(False))
    large, other = torch.zeros(2, 2000)  # whose texts are abbreviated
    other[1000] = 1
    assert fingerprint(large) != fingerprint(other) and fingerprint(large.numpy()) != fingerprint(
        other.numpy()
    )
    assert fingerprint(torch.zeros(0)) != fingerprint()
    assert fingerprint(torch.zeros(2, dtype=torch.bfloat16)) != fingerprint(
        torch.zeros(2, dtype=torch.float16)
    )


def test_parts_are_kept_apart() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


def test_samplers() -> None:
    build = sampler.__wrapped__
    assert build().fingerprint() == build().fingerprint() != build(seed=1).fingerprint()
    model = pixelcnn()

    def told(
        shape: tuple[int, int, int] = (1, 4, 4), runtime: RuntimeName = "reference", **arguments: Any
    ) -> str:
        return Sampler(model, shape, runtime=runtime, **arguments).fingerprint()

    one = told()
    assert one == Sampler(model, (1, 4, 4)).fingerprint() == told(runtime="eager")  # it decides no image
    assert one not in (told((1, 4, 5)), told(precision="bf16", runtime="auto"), told(head=Other()))
    assert one != told(head=Categorical(probabilities=True))


@dataclass(frozen=True)
class Holding(Categorical):
    function: Callable[[float], float] = abs


def multiplied(by: float) -> Callable[[float], float]:
    return lambda x: x * by


def test_what_a_head_holds_is_told_apart_by_what_it_is() -> None:
    """Not by where it is, which another process puts elsewhere."""
    model, held = pixelcnn(), [multiplied(1), partial(pow, 2), nn.PReLU(init=0.5)]
    others = [multiplied(2), partial(pow, 3), nn.PReLU(init=0.25)]

    def told(functions: list[Any]) -> list[str]:
        heads = [Holding(function=function) for function in functions]
        return [Sampler(model, (1, 4, 4), head=head, runtime="reference").fingerprint() for head in heads]

    found = told(held)
    assert found == told([multiplied(1), *copy.deepcopy(held[1:])])
    assert len({*found, *told(others)}) == len(held + others)


SCALE = torch.ones(4, 1, 1)


@pytest.mark.filterwarnings("ignore:the model's forward reads what the model does not hold")
def test_a_global_tensor_counts_as_it_is_drawn_from() -> None:
    model = Written(lambda net, x: net.net(x) * SCALE, net=pixelcnn(), levels=256)
    built = Sampler(model, (1, 4, 4))
    before = built.fingerprint()
    SCALE.mul_(3)
    assert built.fingerprint() == before != Sampler(model, (1, 4, 4)).fingerprint()


PRINTS = """
import torch
from pixelcnn_fast import Sampler, models
model = models.GatedPixelCNN(1, 6, [1, 2], levels=5).eval()
for x in model.parameters():
    x.data = (torch.arange(x.numel()) % 61 - 30).view_as(x) / 32  # exactly
print(Sampler(model, (1, 4, 4)).fingerprint())
"""


@thorough
def test_processors_agree() -> None:
    """Though they round otherwise."""
    found = {
        subprocess.check_output(
            [sys.executable, "-c", PRINTS], env=os.environ | {"ATEN_CPU_CAPABILITY": capability}
        )
        for capability in ("default", "avx2", "avx512")
    }
    assert len(found) == 1


def test_samplers_of_equal_weights() -> None:
    """Whose images come in another form, or go through other layers."""

    def of(image_form: ImageForm, activation: nn.Module) -> str:
        torch.manual_seed(0)
        model = nn.Sequential(Masked(1, 4, ABOVE), activation, nn.Conv2d(4, 256, 1))
        return Sampler(model, (1, 4, 4), image_form=image_form).fingerprint()

    one = of("unit", nn.ReLU())
    assert one == of("unit", nn.ReLU())
    assert len({one, of("centred", nn.ReLU()), of("unit", nn.Tanh())}) == 3
