"""The weights of a compiled program are functions of the model's parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast.compiler import Compiled, compile_model
from pixelcnn_fast.program.instructions import FromLevels
from pixelcnn_fast.refresh.reevaluation import Reevaluation
from pixelcnn_fast.user_model.contents import Contents
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.foreign import NETWORKS
from tests.system.networks import ABOVE, LEFT, Masked, Written, pixelcnn
from tests.tiers import few


def weights_of(program: Compiled) -> list[Tensor]:
    """All numbers that the runtimes take from a program."""
    found: list[Tensor | None] = []
    for phased in program.program.instructions:
        found += [run.weight for run in (*phased.row_runs, *phased.pixel_runs)]
        found += [getattr(phased.instruction, "bias", None)]
        found += [x for step in phased.instruction.steps for x in (step.scale, step.shift)]
        if isinstance(phased.instruction, FromLevels):
            found.append(phased.instruction.table)
    return [x for x in found if x is not None]


def again(program: Compiled, weights: dict[str, Tensor]) -> list[Tensor] | None:
    """The same numbers with other weights."""
    assert program.recorder is not None
    return Reevaluation(weights_of(program), program.recorder)(weights)


def trained_on(model: nn.Module, by: float = 0.1) -> nn.Module:
    """A copy whose parameters and running statistics are others."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for x in model.parameters():
            x.add_(by * torch.randn(x.shape, generator=generator, dtype=x.dtype))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.mul_(1.1)
    return model


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in Contents(model).tensors.items()}


@pytest.mark.parametrize("dtype", few([torch.float64, torch.float32], 1))
@pytest.mark.parametrize(
    "name", ["in-place masks", "weight norm", "cropped shifts", "channels last", "thirds"]
)
def test_weights_can_be_evaluated_again(name: str, dtype: torch.dtype) -> None:
    network = NETWORKS[name]
    model = network.model().to(dtype)

    def built(model: nn.Module) -> Compiled:
        return compile_model(WrappedModel(model, network.shape, **network.settings()))

    other = trained_on(model)
    first, second = built(model), built(other)
    found = again(first, named(other))
    assert found is not None
    assert all(map(torch.equal, found, weights_of(second)))
    assert any(not torch.equal(x, y) for x, y in zip(found, weights_of(first), strict=True))


def test_weights_rounded_for_storage_are_evaluated_again() -> None:
    model = pixelcnn(classes=3)
    first, second = (compile_model(WrappedModel(m, (1, 5, 6)), "bf16") for m in (model, trained_on(model)))
    found = again(first, named(trained_on(model)))
    assert found is not None
    assert all(map(torch.equal, found, weights_of(second)))


def test_a_weight_that_is_zero_no_longer_is_found() -> None:
    """Its tap was dropped, so the program would be another."""
    model = pixelcnn()
    with torch.no_grad():
        model.conv_in.weight[:, :, 0, 0] = 0
    first = compile_model(WrappedModel(model, (1, 5, 6)))
    assert again(first, named(model)) is not None
    with torch.no_grad():
        model.conv_in.weight[0, 0, 0, 0] = 1
    assert again(first, named(model)) is None


def reading(read: Callable[[Any], float | Tensor]) -> Written:
    """Python reads something off its weights."""
    layers = dict(conv_in=Masked(1, 6, [*ABOVE, *LEFT]), conv_out=nn.Conv2d(6, 5, 1))
    return Written(
        lambda net, x: net.conv_out(torch.relu(read(net) * net.conv_in(x.to(net.conv_in.weight.dtype)))),
        gain=torch.tensor(3),
        **layers,
    )


def written_over(net: Any) -> Tensor:
    """Numbers chosen by a mask, part of which is written anew before it is used."""
    bias = net.conv_in.get_parameter("bias").detach()
    mask = bias > bias[0]
    mask[0] = bias[0]  # which is not zero
    return torch.where(mask, 2.0, 3.0)[:, None, None]


@pytest.mark.parametrize(
    "read",
    [
        lambda net: net.conv_in.bias.max().item(),
        lambda net: float(net.conv_in.weight.detach().numpy()[0, 0, 0, 0]),
        lambda net: net.conv_in.bias.tolist()[1],
        lambda net: 2.0 if "0.1" in repr(net.conv_in.bias) else 3.0,
        lambda net: 2.0 if net.conv_in.bias[0] > 0.1 else 3.0,
        lambda net: 2.0 if torch.equal(net.conv_in.bias, net.conv_in.bias.clamp(max=0.2)) else 3.0,
        lambda net: int(net.gain),
        written_over,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_that_python_has_read_must_stay(read, dtype):
    model: Any = reading(read).to(dtype)
    first = compile_model(WrappedModel(model, (1, 4, 5), levels=5))
    same = copy.deepcopy(model)
    with torch.no_grad():
        same.conv_out.weight.add_(1)
    found = again(first, named(same))
    expected = weights_of(compile_model(WrappedModel(same, (1, 4, 5), levels=5)))
    assert found is not None and all(map(torch.equal, found, expected))
    with torch.no_grad():
        same.conv_in.get_parameter("bias").copy_(torch.linspace(0, 1, 6))
        same.conv_in.weight.add_(1)
        same.gain.add_(1)
    assert again(first, named(same)) is None


def on_one_storage(model: nn.Module) -> dict[str, Tensor]:
    """As ``torch.nn.utils.vector_to_parameters`` leaves them."""
    weights = named(model)
    flat = torch.cat([x.double().flatten() for x in weights.values()])
    parts = flat.split([x.numel() for x in weights.values()])
    return {name: part.view(x.shape) for (name, x), part in zip(weights.items(), parts, strict=True)}


@pytest.mark.parametrize(
    "laid_out",
    [
        on_one_storage,
        lambda model: {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in named(model).items()},
        lambda model: named(model.to(memory_format=torch.channels_last)),
    ],
)
def test_weights_may_be_laid_out_in_any_way(laid_out: Callable[[nn.Module], dict[str, Tensor]]) -> None:
    model = pixelcnn()
    other = trained_on(model)
    first, second = (compile_model(WrappedModel(each, (1, 5, 6))) for each in (model, other))
    found = again(first, laid_out(other))
    assert found is not None and all(map(torch.equal, found, weights_of(second)))


def test_parameters_may_share_a_storage() -> None:
    both = torch.rand(12)
    model: Any = Written(
        lambda net, x: net.conv_out(torch.relu(net.a * net.conv_in(x.to(net.a)) + net.b)),
        conv_in=Masked(1, 6, [*ABOVE, *LEFT]),
        conv_out=nn.Conv2d(6, 5, 1),
        a=both[:6].view(6, 1, 1),
        b=both[6:].view(6, 1, 1),
    )
    other = copy.deepcopy(model)
    other.a.mul_(2)
    other.b.mul_(3)
    first, second = (compile_model(WrappedModel(each, (1, 4, 5), levels=5)) for each in (model, other))
    found = again(first, named(other))
    assert found is not None and all(map(torch.equal, found, weights_of(second)))
