"""Checkpoints of the common PyTorch port, by a stand-in that is built and names its parts as that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from pixelcnn_fast import checkpoint
from pixelcnn_fast.models import PixelCNN
from tests.tolerances import assert_identical_up_to_rounding

Normalised = Callable[[nn.Module], nn.Module]


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class Held(nn.Module):
    """A convolution or linear layer under a name, as the port holds each."""

    def __init__(self, name: str, layer: nn.Module, kernel: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.name, self.kernel = name, kernel
        self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        layer, (height, width) = self.get_submodule(self.name), self.kernel
        if self.name == "lin_a":
            return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        right = (width - 1) // 2
        if self.name == "conv":
            return layer(F.pad(x, (width - 1 - right, right, height - 1, 0)))
        y = layer(x)
        return y[:, :, : 2 * x.shape[2], right : right + 2 * x.shape[3]]


class Resnet(nn.Module):
    def __init__(self, conv: Callable[..., Held], nin: Callable[..., Held], f: int, skips: int) -> None:
        super().__init__()
        self.conv_input = conv(2 * f, f)
        if skips:
            self.nin_skip = nin(2 * skips * f, f)
        self.conv_out = conv(2 * f, 2 * f)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.conv_input(concat_elu(x))
        if skip is not None:
            y = y + self.nin_skip(concat_elu(skip))
        a, b = self.conv_out(concat_elu(y)).chunk(2, 1)
        return x + a * torch.sigmoid(b)


class Port(nn.Module):
    def __init__(self, normalised: Normalised, colours: int, f: int, n: int, mixtures: int) -> None:
        super().__init__()

        def conv(kernel: tuple[int, int], stride: int = 1) -> Callable[[int, int], Held]:
            return lambda i, o: Held("conv", normalised(nn.Conv2d(i, o, kernel, stride)), kernel)

        def deconv(kernel: tuple[int, int]) -> Held:
            return Held("deconv", normalised(nn.ConvTranspose2d(f, f, kernel, 2, output_padding=1)), kernel)

        def nin(i: int, o: int) -> Held:
            return Held("lin_a", normalised(nn.Linear(i, o)))

        def layers(n: int, skips: int) -> nn.ModuleDict:
            u = nn.ModuleList(Resnet(conv((2, 3)), nin, f, skips) for _ in range(n))
            ul = nn.ModuleList(Resnet(conv((2, 2)), nin, f, skips + 1) for _ in range(n))
            return nn.ModuleDict({"u_stream": u, "ul_stream": ul})

        self.down_layers = nn.ModuleList(layers(n + (i > 0), 1) for i in range(3))
        self.up_layers = nn.ModuleList(layers(n, 0) for _ in range(3))
        self.downsize_u_stream = nn.ModuleList(conv((2, 3), 2)(f, f) for _ in range(2))
        self.downsize_ul_stream = nn.ModuleList(conv((2, 2), 2)(f, f) for _ in range(2))
        self.upsize_u_stream = nn.ModuleList(deconv((2, 3)) for _ in range(2))
        self.upsize_ul_stream = nn.ModuleList(deconv((2, 2)) for _ in range(2))
        self.u_init = conv((2, 3))(colours + 1, f)
        self.ul_init = nn.ModuleList([conv((1, 3))(colours + 1, f), conv((2, 1))(colours + 1, f)])
        self.nin_out = nin(f, (10 if colours == 3 else 3) * mixtures)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1)
        us = [F.pad(self.u_init(x)[:, :, :-1], (0, 0, 1, 0))]
        above, left = self.ul_init[0](x), self.ul_init[1](x)
        uls = [F.pad(above[:, :, :-1], (0, 0, 1, 0)) + F.pad(left[..., :-1], (1, 0))]
        for i, up in enumerate(self.up_layers):
            for u_layer, ul_layer in zip(*up.children(), strict=True):
                us.append(u_layer(us[-1]))
                uls.append(ul_layer(uls[-1], us[-1]))
            if i < 2:
                us.append(self.downsize_u_stream[i](us[-1]))
                uls.append(self.downsize_ul_stream[i](uls[-1]))
        u, ul = us.pop(), uls.pop()
        for i, down in enumerate(self.down_layers):
            for u_layer, ul_layer in zip(*down.children(), strict=True):
                u = u_layer(u, us.pop())
                ul = ul_layer(ul, torch.cat([u, uls.pop()], 1))
            if i < 2:
                u, ul = self.upsize_u_stream[i](u), self.upsize_ul_stream[i](ul)
        return self.nin_out(F.elu(ul))


def port(normalised: Normalised, colours: int = 3) -> Port:
    torch.manual_seed(0)
    model = Port(normalised, colours, 5, 2, 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.double()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("normalised", "prefix", "colours"),
    [(weight_norm, "", 3), (weight_norm, "module.", 1), (parametrizations.weight_norm, "", 3)],
)
def test_gives_what_the_port_gives(normalised: Normalised, prefix: str, colours: int, tmp_path: Path) -> None:
    model, path = port(normalised, colours), tmp_path / "pcnn.pth"
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
    loaded = checkpoint.load_port(path)
    size: dict[str, Any] = dict(input_channels=colours, n_filters=5, n_resnets=2, n_mixtures=3)
    assert loaded.config == size | dict(dropout=0.5, n_classes=None)
    assert not any(module.training for module in loaded.modules())
    images = 2 * torch.rand(2, colours, 8, 12, dtype=torch.float64) - 1
    assert_identical_up_to_rounding(loaded(images), model(images))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pcnn.pth"
    with pytest.raises(FileNotFoundError, match="pcnn.pth: no such file"):
        checkpoint.load_port(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="pcnn.pth: torch.load can't read it"):
        checkpoint.load_port(path)
    state = port(weight_norm).state_dict()
    with pytest.raises(ValueError, match=r"path is a.*Dict, expected that of a file: torch\.save"):
        checkpoint.load_port(state)  # type: ignore[arg-type]  # wrong on purpose
    others: list[tuple[Any, str]] = [
        ({"epoch": 3, "state_dict": state}, "it is no state dict"),
        (PixelCNN(3, 4, 1).state_dict(), "no state dict of the port's PixelCNN, which has 'u_init.weight_v'"),
        (state | {"extra.weight": torch.zeros(3)}, r"1 unexpected \['extra.weight'\]"),
        (state | {"u_init.conv.weight_v": torch.zeros(5, 4, 3, 3)}, "u_init.weight_v is"),
        (state | {"nin_out.lin_a.bias": torch.full((30,), torch.nan)}, "nin_out.bias holds NaN"),
    ]
    for stored, message in others:
        torch.save(stored, path)
        with pytest.raises(ValueError, match=message):
            checkpoint.load_port(path)
