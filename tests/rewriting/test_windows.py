"""Convolutions of maps that are padded, cropped or shifted."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.rewriting.backend import Backend
from tests.tiers import few


class Layer(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any], kernel: tuple[int, int], **how: Any) -> None:
        super().__init__()
        self.conv, self.link = nn.Conv2d(4, 4, kernel, **how), nn.Conv2d(4, 4, 1)
        mask = torch.ones(kernel)
        mask[-1, -1] = 0
        self.register_buffer("mask", mask)
        self.forward_of = forward

    def forward(self, x: Tensor) -> Any:
        return self.forward_of(self, 1 * x)  # a map that nobody else knows


def down(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :, :-1]


def source_written(m: Any, x: Tensor) -> Tensor:
    y = x * 1
    z = m.conv(F.pad(y, (1, 0)))
    y.detach().add_(1)
    return z


def padded_map_written(m: Any, x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 0))
    padded[:, :, 0] = 1
    return m.conv(padded)


def read_besides(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return y[:, :, :6] * y.mean()


def crop_written(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)[:, :, :6]
    y.mul_(2)
    return m.link(y)


def masked(m: Any, x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 0, 1, 0)), m.conv.weight * m.mask, m.conv.bias)


# what a layer does, its kernel, how it is built, and how many of its convolutions are of windows; x is [2, 4, 6, 5]
LAYERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, int], dict[str, Any], int]] = {
    "padded above": (lambda m, x: m.conv(F.pad(x, (1, 1, 2, 0))), (3, 3), {}, 1),
    "padded to the left": (lambda m, x: m.conv(F.pad(x, (2, 0))), (1, 3), {}, 1),
    "padded twice": (lambda m, x: m.conv(F.pad(F.pad(x, (1, 0)), (1, 0, 1, 0))), (2, 3), {}, 1),
    "padded, and by itself": (lambda m, x: m.conv(F.pad(x, (0, 0, 1, 0))), (2, 3), {"padding": (0, 1)}, 1),
    "padded with ones": (lambda m, x: m.conv(F.pad(x, (2, 0), value=1.0)), (1, 3), {}, 0),
    "reflected": (lambda m, x: m.conv(F.pad(x, (2, 0, 0, 0), mode="reflect")), (1, 3), {}, 0),
    "padded by less than nothing": (lambda m, x: m.conv(F.pad(x, (-1, 1, 2, -2))), (3, 3), {}, 1),
    "that, and by itself": (lambda m, x: m.conv(F.pad(x, (-1, 1, 2, -2))), (3, 3), {"padding": 1}, 0),
    "cropped below": (lambda m, x: m.conv(x)[:, :, :6] * 2, (2, 3), {"padding": (1, 1)}, 1),
    "cropped to the right": (lambda m, x: m.conv(x)[..., :5] * 2, (1, 3), {"padding": (0, 2)}, 1),
    "cropped at both ends": (lambda m, x: m.conv(x)[:, :, 1:-2, 2:4] * 2, (3, 3), {"padding": 2}, 1),
    "cropped by steps": (lambda m, x: m.conv(x)[:, :, ::2] * 2, (3, 3), {"padding": 1}, 0),
    "cropped and returned": (lambda m, x: m.conv(x)[:, :, :6], (2, 3), {"padding": (1, 1)}, 0),
    "some channels": (lambda m, x: m.conv(x)[:, :2] * 2, (3, 3), {"padding": 1}, 0),
    "shifted down": (lambda m, x: m.link(down(x)), (1, 1), {}, 1),
    "shifted after": (lambda m, x: down(m.conv(x)) * 2, (3, 3), {"padding": 1}, 0),
    "shifted between": (lambda m, x: m.link(down(m.conv(x)[:, :, :6])), (2, 3), {"padding": (1, 1)}, 2),
    "shifted, and reads what was cut": (lambda m, x: m.conv(down(x)), (3, 3), {"padding": 1}, 0),
    "cropped, and reads what was cut": (lambda m, x: m.conv(x[:, :, 1:]), (3, 3), {"padding": 1}, 0),
    "dilated, and reads what was cut": (
        lambda m, x: m.conv(F.pad(x[:, :, :-1, :-1], (2, 0, 2, 0))),
        (2, 2),
        {"dilation": 2, "padding": (0, 1)},
        0,
    ),
    "cropped before": (lambda m, x: m.conv(x[:, :, 1:, :-1]), (3, 3), {}, 1),
    "cut and padded again": (lambda m, x: m.conv(F.pad(x[:, :, :-1], (0, 0, 0, 1))), (3, 3), {}, 0),
    "dilated": (lambda m, x: m.conv(F.pad(x, (4, 0, 2, 0))), (2, 3), {"dilation": 2}, 1),
    "a stride": (lambda m, x: m.conv(F.pad(x, (2, 0))), (1, 3), {"stride": 2}, 0),
    "source written": (source_written, (1, 2), {}, 0),
    "padded map written": (padded_map_written, (1, 2), {}, 0),
    "read besides": (read_besides, (2, 3), {"padding": (1, 1)}, 0),
    "crop written": (crop_written, (2, 3), {"padding": (1, 1)}, 0),
    "masked": (masked, (2, 3), {}, 1),
}


@pytest.mark.parametrize("last", few([False, True], 1), ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_windows(name: str, last: bool) -> None:
    forward, kernel, how, windows = LAYERS[name]
    plain = Layer(forward, kernel, **how)
    exact, fast, backend = copy.deepcopy(plain).double(), copy.deepcopy(plain), Backend()
    fast.compile(backend=backend)
    x = torch.randn(2, 4, 6, 5)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    results = []
    for model, given in ((fast, x), (exact, x.double())):
        leaf = given.requires_grad_()
        y = model(leaf)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert results[0][0].stride() == plain(x).stride()
    for a, b in zip(*results, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    found = sum(times for (what, _), times in backend.report.rewritten.items() if "of a window" in what)
    assert found == windows, str(backend.report)


def padded_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        padded = F.pad(x, (1, 1, 1, 1))
    return m.conv(padded)


def cropped_without_gradients(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.no_grad():
        return y[:, :, 1:] * 2


LOOKALIKES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "padded without gradients": padded_without_gradients,
    "cropped without gradients": cropped_without_gradients,
    "padded with constants": lambda m, x: m.conv(torch.constant_pad_nd(x, (1, 1, 1, 1), 2.0)),
    "padded with constants by name": lambda m, x: m.conv(torch.constant_pad_nd(x, (1, 1), value=2.0)),
    "channels padded": lambda m, x: m.conv(F.pad(x[:, :3], (1, 1, 1, 1, 0, 1))),
    "some images": lambda m, x: m.conv(x)[:1, :, 1:] * 2,
    "images cropped before": lambda m, x: m.conv(x[1:, :, 1:]),
    "a row": lambda m, x: m.conv(x)[:, :, 1] * 2,
}


def test_what_only_looks_like_a_window_is_left() -> None:
    layer, backend = Layer(lambda m, x: [form(m, x) for form in LOOKALIKES.values()], (3, 3)), Backend()
    found = []
    for model in (torch.compile(layer, backend=backend), layer):
        x = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        results = model(x)
        gradients = torch.autograd.grad(sum(y.square().sum() for y in results if y.requires_grad), x)
        found.append(dict(zip([*LOOKALIKES, "gradients"], [*results, *gradients], strict=True)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert not backend.report.rewritten, str(backend.report)


WHY = {
    "shifted, and reads what was cut": "it reads what was cut off",
    "source written": "something writes into its map",
    "padded map written": "something writes into its map",
    "sizes that vary": "the height or width of what it is padded or cropped from varies",
}


@pytest.mark.parametrize("name", WHY)
def test_the_report_says_why_a_window_is_left(name: str) -> None:
    forward, kernel, how, _ = LAYERS["padded to the left" if name == "sizes that vary" else name]
    layer, backend = Layer(forward, kernel, **how), Backend()
    plain = copy.deepcopy(layer)
    layer.compile(backend=backend, dynamic=name == "sizes that vary")
    x = torch.randn(2, 4, 6, 5)
    torch.testing.assert_close(layer(x), plain(x))
    reasons = [what.partition(": ")[2] for what, _ in backend.report.left]
    assert len(reasons) == 1 and reasons[0].startswith(WHY[name]), str(backend.report)
