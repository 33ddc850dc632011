"""PixelSNAIL: causal convolutions and attention to all earlier pixels, for codes and grey images."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast.models.hub import OnHub
from pixelcnn_fast.models.inputs import as_codes, as_logits, check_labels, config_of
from pixelcnn_fast.nn import ShiftedConv2d
from pixelcnn_fast.nn.settings import check_bool, check_sizes
from pixelcnn_fast.nn.shifted_conv2d import initialise, shifted
from pixelcnn_fast.ops import gated_activation

COORDINATES = 2  # of a pixel
pointwise = partial(ShiftedConv2d, kernel_size=(1, 1))


class GatedBlock(nn.Module):
    """x + a * sigmoid(b), where a and b are the halves of two convolutions' result, with an ELU before each.

    x: [N, channels, H, W]; attended: another map, [N, n_attended, H, W]; labels: [N] integers;
    condition: features of a coarser map, [N, n_condition, h, w] -> [N, channels, H, W].
    convolution: makes them; by default, they are 1x1.
    """

    def __init__(
        self, channels: int, hidden: int, dropout: float, convolution: partial[ShiftedConv2d] = pointwise,
        n_attended: int = 0, n_condition: int = 0, n_classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = convolution(channels, hidden)
        self.aux_conv = pointwise(n_attended, hidden) if n_attended else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(hidden, 2 * channels, scale=0.1)
        self.condition = pointwise(n_condition, 2 * channels, scale=0.1, bias=False) if n_condition else None
        self.label = None
        if n_classes is not None:
            self.label = nn.Embedding(n_classes, 2 * channels)
            nn.init.normal_(self.label.weight, std=0.05)

    def forward(
        self,
        x: Tensor,
        attended: Tensor | None = None,
        labels: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        y = self.conv1(F.elu(x))
        if self.aux_conv is not None and attended is not None:
            y = y + self.aux_conv(F.elu(attended))
        y = self.conv2(self.dropout(F.elu(y)))
        given = None if self.label is None else self.label(labels).to(y.dtype)  # as autocast needs it
        if self.condition is not None:
            # Projected while it is coarse, which gives the same for less.
            projected = F.interpolate(self.condition(condition), y.shape[2:])
            given = projected if given is None else projected + given[:, :, None, None]
        return x + gated_activation(y, given, linear=True)


class CausalAttention(nn.Module):
    """Attention of several heads: each pixel's query meets the keys of all earlier ones.

    of_query: [N, query_channels, H, W]; of_key: [N, key_channels, H, W], of keys and values
    -> [N, channels, H, W], zero at the first pixel, which has none before it. In training,
    ``dropout`` leaves out weights.
    """

    def __init__(
        self, query_channels: int, key_channels: int, channels: int, n_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.query = pointwise(query_channels, channels)
        self.key, self.value = pointwise(key_channels, channels), pointwise(key_channels, channels)
        self.n_heads, self.dropout = n_heads, dropout

    def forward(self, of_query: Tensor, of_key: Tensor) -> Tensor:
        maps = self.query(of_query), self.key(of_key), self.value(of_key)
        query, key, value = (x.flatten(2).unflatten(1, (self.n_heads, -1)).mT for x in maps)
        pixels = query.shape[2]
        before = torch.ones(pixels, pixels, dtype=torch.bool, device=query.device).tril(-1)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, before, dropout)
        return found.mT.reshape(maps[0].shape)


class Stage(nn.Module):
    """Causal convolutions, and then attention or, without it, a convolution that reads where the pixel lies."""

    def __init__(
        self, channels: int, n_res_blocks: int, attention: bool, n_heads: int, dropout: float,
        block: partial[GatedBlock],
    ) -> None:  # fmt: skip
        super().__init__()
        self.resblocks = nn.ModuleList(block(channels, channels, dropout) for _ in range(n_res_blocks))
        self.out: nn.Module | None = None
        if not attention:
            self.out = pointwise(channels + COORDINATES, channels)
            return
        of_query, of_key, attended = channels + COORDINATES, 2 * channels + COORDINATES, channels // 2
        self.key_resblock = GatedBlock(of_key, channels, dropout)
        self.query_resblock = GatedBlock(of_query, channels, dropout)
        self.causal_attention = CausalAttention(of_query, of_key, attended, n_heads, dropout)
        self.out_resblock = GatedBlock(channels, channels, dropout, n_attended=attended)

    def forward(self, x: Tensor, places: Tensor, labels: Tensor | None, condition: Tensor | None) -> Tensor:
        y = x
        for block in self.resblocks:
            y = block(y, None, labels, condition)
        placed = torch.cat([y, places], dim=1)
        if self.out is not None:
            found: Tensor = self.out(placed)
            return found
        keys = self.key_resblock(torch.cat([x, placed], dim=1))
        found = self.out_resblock(y, self.causal_attention(self.query_resblock(placed), keys))
        return found


class PixelSNAIL(OnHub):
    """PixelSNAIL: p(image) as a product over pixels in raster order, for maps of codes and grey images.

    images: [N, 1, H, W] or [N, H, W], integers 0...levels-1; labels: [N] integers, needed with
    ``n_classes``; condition: a coarser map of codes, [N, h, w] or [N, 1, h, w], integers
    0...condition_levels-1, with h and w divisors of H and W, needed with ``condition_levels``
    -> logits [N, 1, H, W, levels].
    n_blocks: stages, of n_res_blocks gated blocks of kernel_size (odd, 3 or more) and, with
    ``attention``, of n_heads heads, which divide channels / 2; n_out_res_blocks: gated 1x1
    blocks before the logits; n_cond_res_blocks: gated 3x3 blocks that read the coarser map.
    Height and width may be any; coordinates in -1/2...1/2 tell a pixel where it lies. Keys do not know their own
    pixel, as in the public code: near the left border, a pixel does not see the end of the row above.
    Raises ValueError for settings that do not fit, a wrong shape or dtype, and missing, unexpected
    or out-of-range labels or conditions. Source: Chen et al. 2018, "PixelSNAIL: An Improved
    Autoregressive Generative Model", as a prior of codes in Razavi et al. 2019, "Generating Diverse
    High-Fidelity Images with VQ-VAE-2", and its public PyTorch code (``models.pixelsnail_port``).
    """

    logits_layout = "N,C,H,W,L"  # where H = W = L, the shape does not tell
    input_channels = 1
    many_levels = "int64"

    def __init__(
        self, levels: int, channels: int = 256, kernel_size: int = 5, n_blocks: int = 4, n_res_blocks: int = 4,
        n_heads: int = 8, dropout: float = 0.1, attention: bool = True, n_out_res_blocks: int = 0,
        condition_levels: int | None = None, n_cond_res_blocks: int = 3, n_classes: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config_of(locals())
        check_sizes(2, levels=levels)
        check_sizes(channels=channels, n_blocks=n_blocks, n_res_blocks=n_res_blocks, n_heads=n_heads)
        check_sizes(0, n_out_res_blocks=n_out_res_blocks, n_cond_res_blocks=n_cond_res_blocks)
        check_sizes(3, kernel_size=kernel_size)
        check_bool(attention=attention)
        given = dict(condition_levels=condition_levels, n_classes=n_classes)
        check_sizes(**{name: count for name, count in given.items() if count is not None})
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number")
        if attention and channels % (2 * n_heads):
            raise ValueError(
                f"channels is {channels}: half of it is divided among n_heads = {n_heads} heads, so take a "
                f"multiple of {2 * n_heads}"
            )
        self.levels, self.n_classes, self.condition_levels = levels, n_classes, condition_levels
        half = kernel_size // 2
        self.above = ShiftedConv2d(levels, channels, (half, kernel_size))
        self.left = ShiftedConv2d(levels, channels, (half + 1, half), right=0)
        causal = partial(ShiftedConv2d, kernel_size=(kernel_size, kernel_size), strict=True)
        n_condition = channels if condition_levels is not None else 0
        block = partial(GatedBlock, convolution=causal, n_condition=n_condition, n_classes=n_classes)
        self.blocks = nn.ModuleList(
            Stage(channels, n_res_blocks, attention, n_heads, dropout, block) for _ in range(n_blocks)
        )
        self.cond_resnet = None
        if condition_levels is not None:
            around = partial(ShiftedConv2d, kernel_size=(3, 3), below=1)
            self.cond_resnet = nn.Sequential(around(condition_levels, channels))
            for _ in range(n_cond_res_blocks):
                self.cond_resnet.append(GatedBlock(channels, channels, dropout, around))
        out = [GatedBlock(channels, channels, dropout) for _ in range(n_out_res_blocks)]
        self.out = nn.Sequential(*out, nn.ELU(), pointwise(channels, levels))

    def forward(
        self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        codes = as_codes(images, "images", self.levels)
        check_labels(labels, len(codes), self.n_classes)
        coarse = self._coarse(condition, codes)
        x = self._one_hot(codes, self.levels)
        x = shifted(self.above(x), 1, 0) + shifted(self.left(x), 0, 1)
        places = _coordinates(x)
        features = None if self.cond_resnet is None else self.cond_resnet(coarse)
        for block in self.blocks:
            x = block(x, places, labels, features)
        return as_logits(self.out(x), 1, self.levels)

    def initialise_from(
        self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> None:
        """Sets scales and biases before training, as ``PixelCNNpp.initialise_from`` does, by images, labels and
        a condition as ``forward`` takes them. Raises ValueError without any images, and as that does."""
        if not len(as_codes(images, "images", self.levels)):
            raise ValueError("there are no images to initialise from: give a batch as in training")
        initialise(self, images, labels, condition)

    def _coarse(self, condition: Tensor | None, codes: Tensor) -> Tensor | None:
        """What the coarser map's layers read."""
        if self.condition_levels is None:
            if condition is not None:
                raise ValueError("a condition was given to a model without one (condition_levels=None)")
            return None
        n, height, width = codes.shape
        if condition is None:
            raise ValueError(
                f"this model has a coarser map of codes as its condition: pass condition [{n}, h, w]"
            )
        coarse = as_codes(condition, "the condition's codes", self.condition_levels)
        h, w = coarse.shape[1:]
        if len(coarse) != n or not h or not w or height % h or width % w:
            raise ValueError(
                f"the condition is {list(condition.shape)}, expected [{n}, h, w] with h and w divisors of "
                f"{height} and {width}"
            )
        return self._one_hot(coarse, self.condition_levels)

    def _one_hot(self, codes: Tensor, levels: int) -> Tensor:
        return F.one_hot(codes, levels).movedim(-1, 1).to(self.above.weight_v.dtype)


def _coordinates(x: Tensor) -> Tensor:
    """Where each pixel lies, [N, 2, H, W]: its row and its column, from -1/2 on."""
    n, _, height, width = x.shape
    rows, columns = (torch.arange(size, dtype=torch.float64) / size - 0.5 for size in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).to(x).expand(n, -1, -1, -1)
