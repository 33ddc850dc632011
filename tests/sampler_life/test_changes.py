"""A sampler whose model has changed says so."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from pixelcnn_fast import Sampler
from tests.capture.test_weights import trained_on
from tests.sampler_life.common import SHAPE, STALE, noise, silence
from tests.system.networks import pixelcnn


def fused(kind: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], None]:
    def train(model: nn.Module) -> None:
        parameters = [p.requires_grad_() for p in model.parameters()]
        optimizer = kind(parameters, lr=1e-3, fused=True)
        model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)).square().mean().backward()
        optimizer.step()

    return train


def swapped(model: nn.Module) -> None:
    """As an average of the weights is put in for an evaluation."""
    for x, y in zip(model.parameters(), trained_on(model).parameters(), strict=True):
        x.data = y.data


def copied(model: nn.Module) -> None:
    for x, y in zip(model.parameters(), trained_on(model).parameters(), strict=True):
        x.data.copy_(y.data)


def one_bias(model: nn.Module) -> None:
    model.get_parameter("conv_out.bias").data.add_(1e-3)


def statistics(model: nn.Module) -> None:
    model.train()
    model(torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8))
    model.eval()


def transposed(model: nn.Module) -> None:
    """In the same memory, and its first elements are what they were."""
    weight = next(p for p in model.parameters() if p.dim() == 4 and p.shape[0] == p.shape[1] and p.shape[2] > 1)
    weight.data = weight.data.transpose(0, 1)


def exchanged(model: nn.Module) -> None:
    """As ``Module.to`` does if torch.__future__.set_swap_module_params_on_conversion(True) was called."""
    bias = model.get_parameter("conv_out.bias").requires_grad_()
    graph = bias.sum()  # which may hold the parameter, but nothing else may
    torch.utils.swap_tensors(bias, nn.Parameter(bias.detach() + 1))
    del graph


def replaced(model: nn.Module) -> None:
    model.get_submodule("conv_out").bias = nn.Parameter(model.get_parameter("conv_out.bias") + 1)


CHANGES = {
    "fused Adam": fused(torch.optim.Adam),
    "fused AdamW": fused(torch.optim.AdamW),
    "fused SGD": fused(torch.optim.SGD),
    "fused Adagrad": fused(torch.optim.Adagrad),
    "swapped": swapped,
    "copied": copied,
    "one bias": one_bias,
    "statistics": statistics,
    "transposed": transposed,
    "exchanged": exchanged,
    "replaced": replaced,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sampler_whose_model_has_changed_says_so_once(name: str) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    with silence():
        before = sampler.sample(3, noise=noise())
    CHANGES[name](model)
    with pytest.warns(UserWarning, match=STALE + r".*sampler\.refresh\(\)") as told:
        assert torch.equal(sampler.sample(3, noise=noise()), before)
    assert told[0].filename == __file__
    with silence():
        assert torch.equal(sampler.sample(3, noise=noise()), before)
        sampler.logits(before)
        sampler.refresh()
        now = sampler.sample(3, noise=noise())
    assert torch.equal(now, Sampler(model, SHAPE).sample(3, noise=noise()))
    one_bias(model)
    with pytest.warns(UserWarning, match=STALE) as told:
        sampler.complete(before, torch.ones(5, 6, dtype=torch.bool))
    assert told[0].filename == __file__


def loaded(model: nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def moved(model: nn.Module) -> None:
    for x in model.parameters():
        x.data = x.data.clone()


@pytest.mark.parametrize("change", [loaded, moved, nn.Module.train, nn.Module.requires_grad_])
def test_what_changes_no_weight_is_not_told(change: Callable[[nn.Module], None]) -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    change(model)
    with silence():
        sampler.sample(1)
        sampler.sample(1)
    one_bias(model)
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(1)


class WithGaps(nn.Module):
    """Of the memory that its weights are in, they fill little."""

    levels = 5

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 5, (1, 2))
        self.conv.weight = nn.Parameter(torch.randn(5, 1, 1, 500)[..., ::250])
        self.register_buffer("shift", torch.randn(1).expand(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(nn.functional.pad(x.to(self.conv.weight), (2, 0)))[..., :-1]
        return h + self.get_buffer("shift")[:, None, None]


@pytest.mark.parametrize("name", ["conv.weight", "shift"])
def test_tensors_with_gaps(name: str) -> None:
    model = WithGaps()
    sampler = Sampler(model, SHAPE)
    with silence():
        sampler.sample(1)
    changed = model.get_parameter(name) if "." in name else model.get_buffer(name)
    changed.data.select(0, 0).add_(1)
    with pytest.warns(UserWarning, match=STALE):
        sampler.sample(1)


def test_a_model_that_is_gone_leaves_no_memory_behind() -> None:
    model = pixelcnn()
    sampler = Sampler(model, SHAPE)
    sampler.sample(1)
    memory = StorageWeakRef(model.get_parameter("conv_out.weight").untyped_storage())
    assert not memory.expired()
    del model
    gc.collect()
    assert memory.expired()
    with silence():
        sampler.sample(1)
