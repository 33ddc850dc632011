"""Runs of modules that are computed in one pass: which ones are, and which stay as they are."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pixelcnn_fast.nn import FusedSequential, MaskedConv2d


class Dimmed(nn.Conv2d):
    """Has a mask of its own, of the weight's shape, and puts it to another use."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(4, 4, 3, padding=1)
        self.register_buffer("mask", torch.zeros_like(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input * (2 + self.mask.sum()))


def test_another_convolution_with_a_mask_does_what_it_does():
    modules = [Dimmed(), nn.BatchNorm2d(4), nn.ReLU(), Dimmed(), nn.Tanh()]
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        assert torch.equal(FusedSequential(*modules).eval()(x), nn.Sequential(*modules).eval()(x))


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("at", range(3))
def test_what_hooks_see_and_change_is_computed_in_steps(at: int, hook: str) -> None:
    modules = [MaskedConv2d(4, 4, 3, "B"), nn.BatchNorm2d(4), nn.ReLU()]
    fused, plain = FusedSequential(*modules).eval(), nn.Sequential(*modules).eval()
    getattr(modules[at], hook)(lambda _, given, *result: result[0] + 1 if result else (given[0] + 1,))
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))


def conv() -> nn.Module:
    return MaskedConv2d(4, 4, 3, "B")


def norm(**settings: bool) -> nn.BatchNorm2d:
    """A batch norm that has seen something."""
    norm = nn.BatchNorm2d(4, eps=0.1, **settings)
    for x in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if x is not None:
            nn.init.uniform_(x, 0.5, 2)
    return norm


RUNS: dict[str, tuple[nn.Module, ...]] = {
    "slope": (conv(), norm(), nn.LeakyReLU(0.3)),
    "alpha": (conv(), nn.ELU(0.3)),
    "others": (conv(), nn.SiLU(), conv(), nn.Sigmoid(), conv(), norm(), nn.Tanh()),
    "norm alone": (conv(), norm()),
    "norm without parameters": (conv(), norm(affine=False), nn.ReLU()),
    "norm of the batch": (conv(), norm(track_running_stats=False), nn.ReLU()),
    "norm before": (norm(), conv(), nn.ReLU(), norm()),
    "norm in training": (conv(), norm().train(), nn.ReLU()),
    "norm after the activation": (conv(), nn.ReLU(), norm()),
    "an activation of another class": (conv(), norm(), nn.Softplus()),
    "alone": (conv(), conv()),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_compute_what_their_modules_do(name: str) -> None:
    fused, plain = (cls(*copy.deepcopy(RUNS[name])) for cls in (FusedSequential, nn.Sequential))
    if name != "norm in training":
        fused.eval(), plain.eval()
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())  # also what norms have seen


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_pass_through_runs(frozen: bool) -> None:
    modules = [conv(), norm(), nn.ReLU()]
    fused, plain = FusedSequential(*modules).eval(), nn.Sequential(*modules).eval()
    fused.requires_grad_(not frozen)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    wanted = [x] if frozen else [x, *fused.parameters()]
    found, expected = (torch.autograd.grad(each(x).square().sum(), wanted) for each in (fused, plain))
    torch.testing.assert_close(found, expected)
