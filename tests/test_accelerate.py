from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import Sampler, accelerate
from pixelcnn_fast.likelihood import nll
from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import FusedSequential, raster_mask
from pixelcnn_fast.nn.masked_conv2d import MaskType
from tests.system.networks import enlivened
from tests.tolerances import assert_identical_up_to_rounding


class InPlace(nn.Conv2d):
    """Zeroes its weights whenever it runs."""

    mask: Tensor

    def __init__(self, kind: MaskType, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, padding=size // 2)
        self.register_buffer("mask", raster_mask(size, size, kind).expand_as(self.weight).clone())

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class Functional(nn.Conv2d):
    """Multiplies by the mask of a single kernel, which has another name and is not a buffer."""

    def __init__(self, kind: MaskType, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__(channels_in, channels_out, size, padding="same")
        self.causal = raster_mask(size, size, kind)[None, None].double()

    def forward(self, x):
        return F.conv2d(x, self.weight * self.causal, self.bias, padding=self.padding)


class Scaled(InPlace):
    """Not only a masked convolution."""

    def forward(self, x):
        return 2 * super().forward(x)


class Foreign(nn.Module):
    """Somebody else's network."""

    def __init__(self, masked=InPlace):
        super().__init__()
        self.first = masked("A", 1, 8, 5)
        self.body = nn.Sequential(
            masked("B", 8, 9, 3),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            masked("B", 9, 8, 3),
            nn.ELU(0.5),
            nn.Dropout(0.0),
        )
        self.conv_out = nn.Conv2d(8, 256, 1)

    def forward(self, images):
        x = self.first(images.to(self.first.weight.dtype) / 255)
        x = x + self.body(x)
        n, _, height, width = x.shape
        return self.conv_out(x).view(n, 1, 256, height, width).permute(0, 1, 3, 4, 2)


def models():
    torch.manual_seed(0)
    yield reference.PixelCNN(1, 8, 2, None, 5)
    yield Foreign(InPlace)
    yield Foreign(Functional)


IMAGES = torch.randint(0, 256, (3, 1, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("index", range(3))
def test_same_outputs_in_train_and_eval_mode_and_undone_completely(index):
    model = enlivened(list(models())[index]).double()
    plain = copy.deepcopy(model)
    kinds = {name: (id(module), type(module)) for name, module in model.named_modules()}
    tensors = {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    keys = list(model.state_dict())

    handle = accelerate(model, quiet=True)
    assert len(handle.swapped) >= 3
    assert list(model.state_dict()) == keys
    assert all(isinstance(m, kinds[name][1]) for name, m in model.named_modules())
    for t in (x for x in [*model.named_parameters(), *model.named_buffers()]):
        assert id(t[1]) == tensors[t[0]][0] and torch.equal(t[1], tensors[t[0]][1])
    for training in (False, True):
        assert_identical_up_to_rounding(
            model.train(training)(IMAGES).detach(), plain.train(training)(IMAGES).detach()
        )
        with torch.no_grad():
            assert_identical_up_to_rounding(model(IMAGES), plain(IMAGES))

    handle.undo()
    assert {name: (id(m), type(m)) for name, m in model.named_modules()} == kinds
    assert torch.equal(model(IMAGES), plain(IMAGES))
    handle.undo()


@pytest.mark.parametrize("index", range(3))
def test_training_follows_the_plain_model(index):
    losses: list[list[float]] = []
    for fast in (False, True):
        model = list(models())[index].double()
        if fast:
            accelerate(model, quiet=True)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        losses.append([])
        for _ in range(4):
            loss = nll(model, IMAGES).mean()
            losses[-1].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[0] == pytest.approx(losses[1], rel=1e-9) and losses[0][-1] < losses[0][0]


def test_inference_is_fused_and_hooks_still_run(monkeypatch):
    from pixelcnn_fast.nn import fused

    calls = []
    block = fused.masked_conv_block

    def counted(*args: Any) -> Tensor:
        calls.append(args)
        return block(*args)

    monkeypatch.setattr(fused, "masked_conv_block", counted)
    model = Foreign().double()
    accelerate(model, quiet=True)
    model.train()(IMAGES)
    model.eval()(IMAGES)  # gradients are wanted
    assert not calls
    with torch.no_grad():
        expected = model(IMAGES)
    assert len(calls) == 2
    seen = []
    model.body[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        assert_identical_up_to_rounding(model(IMAGES), expected)
    assert len(calls) == 3 and seen == [1]


def test_says_what_it_did(capsys):
    model = Foreign()
    model.body[3] = Scaled("B", 9, 8, 3)
    model.first.forward = model.first.forward
    handle = accelerate(model)
    text = capsys.readouterr().out
    assert set(handle.swapped) == {"body.0", "body"}
    assert "first: its forward was replaced on the instance" in text
    assert "body.3: Scaled computes something other than a convolution masked by its 'mask'" in text
    assert "conv_out: Conv2d without a mask of its own" in text
    assert str(accelerate(model, quiet=True)) != text and not accelerate(model, quiet=True).swapped
    assert "nothing to swap" in str(accelerate(nn.ReLU(), quiet=True))


def test_only_this_instance_changes_and_a_sampler_takes_it():
    model, other = (enlivened(m).double() for m in (Foreign(Functional), Foreign(Functional)))
    expected = Sampler(model, (1, 6, 5)).logits(IMAGES[..., :6, :5])
    accelerate(model, quiet=True)
    assert type(other.first) is Functional and type(other.body) is nn.Sequential
    assert isinstance(model.body, nn.Sequential) and not isinstance(model.body, FusedSequential)
    assert_identical_up_to_rounding(Sampler(model, (1, 6, 5)).logits(IMAGES[..., :6, :5]), expected)
    assert_identical_up_to_rounding(copy.deepcopy(model)(IMAGES).detach(), model(IMAGES).detach())


@pytest.mark.parametrize("order", [None, "thirds"])
def test_a_plain_gated_network(order):
    torch.manual_seed(0)
    model = reference.GatedPixelCNN(3, 6, [1, 2], channel_order=order, levels=8).double()
    images = torch.randint(0, 8, (2, 3, 6, 5), dtype=torch.uint8)
    expected = model(images).detach()
    handle = accelerate(model, quiet=True)
    blocks = {f"blocks.{k}.{name}" for k in range(2) for name in ("vertical", "horizontal", "out")}
    assert set(handle.swapped) == {*blocks, "conv_hidden", "conv_out"}
    assert handle.left == {f"blocks.{k}.link": "Conv2d without a mask of its own" for k in range(2)}
    assert_identical_up_to_rounding(model(images).detach(), expected)
    handle.undo()
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("old", [True, False])
def test_weight_norm(old):
    norm = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
    model = Foreign(Functional).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm(model.first)
    expected = model.eval()(IMAGES).detach()
    handle = accelerate(model, quiet=True)
    assert ("first" in handle.left) == old and (not old or "old weight_norm" in handle.left["first"])
    assert_identical_up_to_rounding(model(IMAGES).detach(), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_a_convolution_without_bias_under_weight_norm_trains(mode):
    """Its parameters are those of the parametrization, not its own."""

    def built():
        torch.manual_seed(0)
        conv = Functional("A", 1, 4, 3)
        conv.bias = None
        torch.nn.utils.parametrizations.weight_norm(conv)
        return nn.Sequential(conv, nn.ReLU()).double().train(mode)

    model, plain, x = built(), built(), torch.randn(2, 1, 5, 6, dtype=torch.float64)
    assert set(accelerate(model, quiet=True).swapped) == {"", "0"}
    for each in (model, plain):
        each(x).square().mean().backward()
    for own, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert own.grad is not None
        torch.testing.assert_close(own.grad, expected.grad)
