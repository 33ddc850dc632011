"""Checkpoints of the priors of VQ-VAE-2 codes, by tensors that are named, shaped and used as theirs are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast import checkpoint
from pixelcnn_fast.models import PixelSNAIL
from tests.tolerances import assert_identical_up_to_rounding

CODES, CHANNELS, HEADS, SIZE = 7, 16, 8, (8, 4)
TOP: dict[str, Any] = dict(channels=CHANNELS, kernel_size=5, n_blocks=2, n_res_blocks=1, n_out_res_blocks=1)
BOTTOM: dict[str, Any] = dict(
    channels=CHANNELS, kernel_size=3, n_blocks=1, n_res_blocks=2, attention=False, condition_levels=CODES,
    n_cond_res_blocks=2,
)  # fmt: skip


class Theirs:
    """A prior there, whose weights come into being where its forward first uses them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.state = config, dict[str, Tensor]()
        self.generator = torch.Generator().manual_seed(0)
        self.size = config["kernel_size"]

    def new(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            self.state[name] = torch.randn(shape, generator=self.generator, dtype=torch.float64) / 2
        return self.state[name]

    def weight(self, name: str, *shape: int) -> Tensor:
        g = self.new(f"{name}.weight_g", shape[0], *[1] * (len(shape) - 1))
        return torch._weight_norm(self.new(f"{name}.weight_v", *shape), g, 0)

    def conv(self, name: str, x: Tensor, out: int, size: int = 1, bias: bool = True) -> Tensor:
        weight = self.weight(f"{name}.conv", out, x.shape[1], size, size)
        return F.conv2d(x, weight, self.new(f"{name}.conv.bias", out) if bias else None, padding=size // 2)

    def causal(self, name: str, x: Tensor, out: int, size: int) -> Tensor:
        weight_v = self.new(f"{name}.conv.conv.weight_v", out, x.shape[1], size, size)
        weight_v[:, :, -1, size // 2 :] = 0  # in place, as theirs does
        return self.padded(name, x, out, (size, size), (size // 2, size // 2, size - 1, 0))

    def padded(self, name: str, x: Tensor, out: int, kernel: tuple[int, int], pad: tuple[int, ...]) -> Tensor:
        weight = self.weight(f"{name}.conv.conv", out, x.shape[1], *kernel)
        return F.conv2d(F.pad(x, pad), weight, self.new(f"{name}.conv.conv.bias", out))

    def block(
        self, name: str, x: Tensor, out: int = CHANNELS, size: int = 1, is_causal: bool = False,
        aux: Tensor | None = None, condition: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        conv = self.causal if is_causal else self.conv
        y = conv(f"{name}.conv1", F.elu(x), out, size)
        if aux is not None:
            y = y + self.conv(f"{name}.aux_conv", F.elu(aux), out)
        y = conv(f"{name}.conv2", F.elu(y), 2 * x.shape[1], size)
        if condition is not None:
            y = y + self.conv(f"{name}.condition", condition, 2 * x.shape[1], bias=False)
        return F.glu(y, 1) + x

    def attention(self, name: str, query: Tensor, key: Tensor) -> Tensor:
        def flat(part: str, x: Tensor) -> Tensor:
            linear = F.linear(
                x.flatten(2).mT,
                self.weight(f"{name}.{part}", CHANNELS // 2, x.shape[1]),
                self.new(f"{name}.{part}.bias", CHANNELS // 2),
            )
            return linear.view(*linear.shape[:2], HEADS, -1).transpose(1, 2)

        q, k, v = flat("query", query), flat("key", key), flat("value", key)
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(torch.ones(32, 32).triu().bool(), -1e4)
        start = (torch.arange(32) > 0)[:, None]
        return (scores.softmax(-1) * start @ v).transpose(1, 2).flatten(2).mT.view(len(q), -1, *SIZE)

    def __call__(self, codes: Tensor, coarse: Tensor) -> Tensor:
        config, half = self.config, self.size // 2
        x = F.one_hot(codes, CODES).permute(0, 3, 1, 2).double()
        above = self.padded("horizontal", x, CHANNELS, (half, self.size), (half, half, half - 1, 0))
        left = self.padded("vertical", x, CHANNELS, (half + 1, half), (half - 1, 0, half, 0))
        x = F.pad(above, (0, 0, 1, -1)) + F.pad(left, (1, -1))
        axes = [(torch.arange(n, dtype=torch.float64) - n / 2) / n for n in SIZE]
        background = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        self.state["background"] = background
        background = background.expand(len(x), -1, -1, -1)
        condition = None
        if "condition_levels" in config:
            condition = F.one_hot(coarse, CODES).permute(0, 3, 1, 2).double()
            condition = self.conv("cond_resnet.blocks.0", condition, CHANNELS, 3)
            for k in range(config["n_cond_res_blocks"]):
                condition = self.block(f"cond_resnet.blocks.{k + 1}", condition, size=3)
            condition = F.interpolate(condition, scale_factor=2)
        for k in range(config["n_blocks"]):
            name, y = f"blocks.{k}", x
            for i in range(config["n_res_blocks"]):
                y = self.block(f"{name}.resblocks.{i}", y, CHANNELS, self.size, True, condition=condition)
            placed = torch.cat([y, background], 1)
            if not config.get("attention", True):
                x = self.conv(f"{name}.out", placed, CHANNELS)
                continue
            key = self.block(f"{name}.key_resblock", torch.cat([x, placed], 1))
            query = self.block(f"{name}.query_resblock", placed)
            attended = self.attention(f"{name}.causal_attention", query, key)
            x = self.block(f"{name}.out_resblock", y, aux=attended)
        n_out = config.get("n_out_res_blocks", 0)
        for k in range(n_out):
            x = self.block(f"out.{k}", x)
        return self.conv(f"out.{n_out + 1}", F.elu(x), CODES)


@pytest.mark.parametrize("config", [TOP, BOTTOM], ids=["top", "bottom"])
@pytest.mark.parametrize("is_later", [False, True], ids=["as saved", "named as later versions of PyTorch do"])
def test_gives_what_theirs_gives(config: dict[str, Any], is_later: bool, tmp_path: Path) -> None:
    theirs, path = Theirs(config), tmp_path / "pixelsnail_top_420.pt"
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(CODES, (2, *SIZE), generator=generator)
    coarse = torch.randint(CODES, (2, SIZE[0] // 2, SIZE[1] // 2), generator=generator)
    expected, state = theirs(codes, coarse), theirs.state
    if is_later:
        parts = {
            "weight_g": "parametrizations.weight.original0",
            "weight_v": "parametrizations.weight.original1",
        }
        names = {key: key.rpartition(".") for key in state}
        state = {f"{a}{b}{parts.get(c, c)}": state[key] for key, (a, b, c) in names.items()}
    torch.save(state if is_later else {"model": state, "args": argparse.Namespace(hier="top")}, path)
    loaded = checkpoint.load_port(path)
    assert isinstance(loaded, PixelSNAIL) and not loaded.training
    assert loaded.config == PixelSNAIL(CODES, **config).config
    taken = [None, coarse] if "condition_levels" in config else []
    assert_identical_up_to_rounding(loaded(codes, *taken)[:, 0].movedim(-1, 1), expected)
    checkpoint.save(loaded, tmp_path / "ours.safetensors")
    again = checkpoint.load(tmp_path / "ours.safetensors")
    assert torch.equal(again(codes, *taken), loaded(codes, *taken))


def test_others_are_refused(tmp_path: Path) -> None:
    theirs, path = Theirs(TOP), tmp_path / "pixelsnail.pt"
    theirs(torch.zeros(1, *SIZE).long(), torch.zeros(1))
    state = theirs.state
    without = {key: x for key, x in state.items() if "vertical" not in key}
    others: list[tuple[dict[str, Tensor], str]] = [
        (without, r"3 missing \['left.bias'"),
        ({key: x for key, x in state.items() if "resblocks" not in key}, "no state dict of the port's PixelSNAIL"),
        (state | {"horizontal.conv.conv.weight_v": torch.zeros(8, 7, 2, 5)}, "above.weight_v is"),
        (state | {"horizontal.conv.conv.bias": torch.zeros(())}, "no state dict of the port's PixelSNAIL"),
        (state | {"horizontal.conv.conv.bias": torch.zeros(8).to_sparse()}, "it is no state dict"),
        (state | {"out.2.conv.bias": torch.full((7,), torch.nan)}, "out.2.bias holds NaN"),
    ]  # fmt: skip
    for stored, message in others:
        torch.save({"model": stored}, path)
        with pytest.raises(ValueError, match=message):
            checkpoint.load_port(path)
