"""The generated parts of supported_calls.md: the tables of calls, grouped as a user looks for them.

Capture's own tables have the names of the calls that PyTorch makes of a user's. So each call that a user may write has
an example here; tests capture and sample a model around each of them, and check that together they reach all names in
capture's tables. What is refused, and what to do instead, is in
pixelcnn_fast/capture/lower/advice.py, which messages quote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelcnn_fast import ops
from pixelcnn_fast.capture.lower import advice

Example = Callable[[Tensor], Tensor]


class Row(NamedTuple):
    """A row of a table: calls, by name, with an example each, and what limits all of them."""

    examples: dict[str, Example]
    limits: str = ""


def named(
    module: Any, names: str, *args: Any, around: Callable[[Example], Example] | None = None
) -> dict[str, Example]:
    """Calls that are their own examples: functions of a module, or methods. around: what is done around each."""

    def example(call: Callable[..., Tensor]) -> Example:
        return lambda x: call(x, *args)

    examples = {name: example(getattr(module, name)) for name in names.split()}
    return {name: around(call) for name, call in examples.items()} if around else examples


# Constants for features [N, 4, 5, 5] in float64.
STATES = torch.linspace(-1, 1, 16 * 4 * 2, dtype=torch.float64).view(16, 4, 2)  # a recurrence's weight
VECTOR = torch.arange(4, dtype=torch.float64) / 4 + 0.5
PLANES = VECTOR.view(4, 1, 1)
MATRIX = torch.arange(16, dtype=torch.float64).view(4, 4) / 16
ABOVE = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).view(3, 1).expand(4, 4, 3, 3)  # a kernel's mask
SQUARE = ABOVE[:, :, :2, :2] + MATRIX[..., None, None] / 4
FIRST, ORDER = torch.tensor([1, 0]), torch.tensor([3, 0, 2, 1])
EVEN = torch.tensor([True, False, True, False]).view(4, 1, 1)
TRIANGLE = torch.ones(5, 5, dtype=torch.bool).triu()
attended = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
LATER = torch.ones(25, 25, dtype=torch.bool).triu(1)


def channels_last(call: Example) -> Example:
    return lambda x: call(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def over_pixels(call: Example) -> Example:
    """A call on [N, 1, H * W, C]."""
    return channels_last(lambda x: call(x.flatten(1, 2)[:, None]).view(x.shape))


def by_pixel(call: Example) -> Example:
    """A call on [N * H * W, C]."""
    return channels_last(lambda x: call(x.reshape(-1, 4)).view(x.shape))


def changed(change: Callable[[Tensor], Any]) -> Example:
    """A change in place."""

    def call(x: Tensor) -> Tensor:
        x = x.clone()
        change(x)
        return x

    return call


def assigned(index: Any, value: Any) -> Example:
    return changed(lambda x: x.__setitem__(index, value))


def reordered(split: Callable[[Tensor], Any]) -> Example:
    return lambda x: torch.cat(list(split(x))[::-1], 1)


def wider(call: Example) -> Example:
    """A call that makes four channels of two."""
    return lambda x: call(x[:, :2])


def positive(call: Example) -> Example:
    return lambda x: call(x * x + 1)


def beside(call: Example) -> Example:
    """A call whose result has one channel, or none."""
    return lambda x: x + call(x).view(-1, 1, 5, 5)


def by_row(call: Example) -> Example:
    """A call on [N * H, C, W], with a zero to the left."""
    return lambda x: (
        call(F.pad(x.transpose(1, 2).flatten(0, 1), (1, 0)))
        .unflatten(0, (-1, 5))
        .transpose(1, 2)
        .view(x.shape)
    )


def by_column(call: Example) -> Example:
    """A call on [N * W, C, H], with a zero above."""
    return lambda x: by_row(call)(x.mT).mT


def after_a_start_row(x: Tensor) -> Tensor:
    shifted = torch.cat([PLANES.expand(len(x), 4, 1, 5), x[:, :, :-1]], 2)
    return F.conv2d(F.pad(shifted, (2, 2, 4, 0)), MATRIX[..., None, None].expand(4, 4, 5, 5))


def locally_masked(x: Tensor) -> Tensor:
    """A 3×3 convolution whose kernel has a mask of its own at each pixel: neighbours that are not drawn later."""
    number = torch.arange(1.0, 26).view(1, 1, 5, 5)
    is_drawn = F.unfold(number, 3, padding=1)[0] <= number.flatten()  # or lies outside the image
    windows = F.unfold(x, 3, padding=1).view(-1, 9, 25) * is_drawn
    return (MATRIX.repeat(1, 9) @ windows.view(len(x), -1, 25)).view(x.shape)


def guided(x: Tensor) -> Tensor:
    h = F.conv2d(torch.cat([x + PLANES, x]), SQUARE[:, :, :1, :1])
    with_label, without = F.linear(torch.tanh(h).permute(0, 2, 3, 1), MATRIX).permute(0, 3, 1, 2).chunk(2)
    return 2 * with_label - without


def without_batch(x: Tensor) -> Tensor:
    return F.conv2d(x.squeeze(), SQUARE[:, :, :1, :1]).view(x.shape)


@lru_cache
def kept(images: int) -> Tensor:
    return PLANES.repeat(images, 1, 1, 1)


def around(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(F.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 0)), ABOVE[:, :, :2], padding=0)


def in_cells(to_cells: Example, back: Example) -> Example:
    """A call that makes a pixel of each 2×2 pixels, of which the last one is (0, 0), and one that makes 2×2 of it."""
    return lambda x: back(to_cells(F.pad(x, (1, 0, 1, 0))))[:, :, :5, :5]


def by_cell(x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    return x.view(n, c, height // 2, 2, width // 2, 2)


def enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2) + F.interpolate(x, scale_factor=2, mode="nearest-exact")


ALL_IMAGES = slice(None)

FEATURES: dict[str, list[Row]] = {
    "layers": [
        Row(
            {
                "conv2d": lambda x: F.conv2d(x, ABOVE, padding=1),
                "conv_transpose2d": in_cells(
                    lambda x: F.conv2d(x, SQUARE, stride=2), lambda x: F.conv_transpose2d(x, SQUARE, stride=2)
                ),
            },
            "On `[N, C, H, W]`. Any kernel size, stride, dilation, number of groups and zero padding; a result with "
            "more pixels than the image must be cropped before the next convolution reads it.",
        ),
        Row(
            {
                "conv1d": by_row(lambda x: F.conv1d(x, SQUARE[..., 0])),
                "conv1d(columns)": by_column(lambda x: F.conv1d(x, SQUARE[..., 0])),
            },
            "On `[N * H, C, W]` or `[N * W, C, H]`: along rows, or along columns.",
        ),
        Row(
            {
                "avg_pool2d": in_cells(lambda x: F.avg_pool2d(x, 2), enlarged),
                "x.view(n, c, h, 2, w, 2).mean((3, 5))": in_cells(
                    lambda x: by_cell(x).mean((3, 5)), enlarged
                ),
                "x.view(n, c, h, 2, w, 2).amax((3, 5))": in_cells(
                    lambda x: by_cell(x).amax((3, 5)), enlarged
                ),
                "x[:, :, 1::2, 1::2]": in_cells(lambda x: x[:, :, 1::2, 1::2], enlarged),
                "interpolate": in_cells(lambda x: F.conv2d(x, SQUARE, stride=2), enlarged),
                "pixel_unshuffle": in_cells(
                    lambda x: F.pixel_unshuffle(x, 2), lambda x: F.pixel_shuffle(x, 2)
                ),
                "pixel_shuffle": in_cells(
                    lambda x: F.conv2d(x, SQUARE.repeat(4, 1, 1, 1), stride=2),
                    lambda x: F.pixel_shuffle(x, 2),
                ),
            },
            "`interpolate` with the nearest pixel, by a whole factor, up to as many pixels as the image has; "
            "`avg_pool2d` whose windows all have as many pixels. `mean`, `sum`, `amax` and the like take the pixels of "
            "each cell along both axes at once.",
        ),
        Row(
            {
                "linear": channels_last(lambda x: F.linear(x, MATRIX, VECTOR)),
                "matmul": channels_last(lambda x: torch.matmul(x, MATRIX)),
                "inner": channels_last(lambda x: torch.inner(x, MATRIX)),
                "tensordot": lambda x: torch.tensordot(x, MATRIX, dims=([1], [0])).permute(0, 3, 1, 2),
                "einsum": lambda x: torch.einsum("nchw,co->nohw", x, MATRIX),
                "mm": by_pixel(lambda x: torch.mm(x, MATRIX)),
                "addmm": by_pixel(lambda x: torch.addmm(VECTOR, x, MATRIX, beta=0.5, alpha=2)),
                "bmm": lambda x: torch.bmm(MATRIX.expand(len(x), 4, 4), x.flatten(2)).view(x.shape),
                "baddbmm": lambda x: torch.baddbmm(PLANES[0], MATRIX.expand(len(x), 4, 4), x.flatten(2)).view(
                    x.shape
                ),
                "mv": beside(lambda x: torch.mv(x.permute(0, 2, 3, 1).reshape(-1, 4), VECTOR)),
                "outer": lambda x: torch.outer(x.flatten(), VECTOR[:1]).view(x.shape),
            },
            "Features times a constant matrix, or a weighted sum of the channels of a pixel. Sums over pixels are "
            "[attention](#attention). Pixels may have one axis together, as in `[N * H * W, C]`.",
        ),
        Row(
            {"unfold": lambda x: (ABOVE.flatten(1) @ F.unfold(x, 3, padding=1)).view(x.shape)},
            "With stride 1, so that the windows are as many as the pixels.",
        ),
    ],
    "attention": [
        Row(
            {
                "scaled_dot_product_attention": over_pixels(
                    lambda x: F.scaled_dot_product_attention(x, x + 1, 2 * x, is_causal=True)
                ),
                "multi_head_attention_forward": over_pixels(
                    lambda x: attended(x[:, 0], x[:, 0], x[:, 0], attn_mask=LATER)[0][:, None]
                ),
            },
            "Or written as products, of `[…, pixels, features]` with all pixels of an image, of its rows, of its "
            "columns or of blocks, for any number of heads, each pixel once: scores, times and plus constants, masked "
            "by -inf, by -1e4 or less in their place, as `masked_fill` and `where` put it, or by -1e9 or less that is "
            "added to them; `softmax`; times constants; times values. A softmax may be written out, with the largest "
            "score subtracted and an ε beside the total. What a mask takes out "
            "after the softmax has counted before. Keys and values may be those of a condition.",
        ),
        Row(
            {"matmul(pixels)": over_pixels(lambda x: LATER.mT.to(x) @ x)},
            "With a constant matrix over all pixels of an image, or of each row or column; one for all, or one for "
            "each head. Or over the flattened image and any number of hidden units, as a MADE's masked linear layers "
            "are, if no colour sees another of its own pixel.",
        ),
    ],
    "own": [
        Row(
            {
                "masked_conv2d": lambda x: ops.masked_conv2d(x, ABOVE + 1, VECTOR, ABOVE),
                "masked_conv_block": lambda x: ops.masked_conv_block(
                    x, ABOVE + 1, VECTOR, ABOVE, VECTOR, VECTOR, None, x, "elu"
                ),
                "row_lstm": lambda x: ops.row_lstm(x.repeat(1, 4, 1, 1), STATES[..., :1].repeat(1, 1, 3)),
                "diagonal_lstm": lambda x: ops.diagonal_lstm(x.repeat(1, 4, 1, 1), STATES),
                "concat_elu": wider(ops.concat_elu),
                "gated_activation": wider(lambda x: ops.gated_activation(torch.cat([x, -x, 2 * x, x], 1))),
            }
        )
    ],
    "norms": [
        Row(
            {"batch_norm": lambda x: F.batch_norm(x, VECTOR, VECTOR, VECTOR, VECTOR)},
            "In eval mode, with running statistics.",
        ),
        Row(
            {
                "layer_norm": channels_last(lambda x: F.layer_norm(x, (4,), VECTOR, VECTOR)),
                "rms_norm": channels_last(lambda x: F.rms_norm(x, (4,), VECTOR)),
                "group_norm": by_pixel(lambda x: F.group_norm(x, 2, VECTOR, VECTOR)),
            },
            "Over the channels of a pixel, which must be the last axes: `layer_norm(x.permute(0, 2, 3, 1), …)`; for "
            "`group_norm`, those of `[N * H * W, C]`.",
        ),
        Row(
            {
                "normalize": lambda x: F.normalize(x, dim=1),
                "cosine_similarity": beside(lambda x: F.cosine_similarity(x, x + 1, dim=1)),
                "pairwise_distance": beside(
                    lambda x: F.pairwise_distance(x.movedim(1, -1), PLANES.flatten())
                ),
            },
            "Over the channels of a pixel, with `p` of 1 or 2.",
        ),
        Row(
            named(F, "dropout dropout2d alpha_dropout feature_alpha_dropout", 0.5, False),
            "In eval mode, or with `p=0`.",
        ),
    ],
    "activations": [
        Row(named(F, "relu relu6 leaky_relu elu selu celu")),
        Row(named(F, "gelu silu mish hardswish sigmoid hardsigmoid logsigmoid")),
        Row(named(F, "tanh hardtanh tanhshrink softsign softshrink")),
        Row(named(F, "softplus"), "With the default `threshold` of 20; any `beta`."),
        Row({"rrelu": lambda x: F.rrelu(x, training=False)}, "In eval mode."),
        Row(
            {
                "prelu": lambda x: F.prelu(x, VECTOR),
                "glu": wider(lambda x: F.glu(torch.cat([x, -x, 2 * x, x], 1), 1)),
            }
        ),
    ],
    "arithmetic": [
        Row(
            {
                "add": lambda x: torch.add(x, x + PLANES, alpha=2),
                "sub": lambda x: torch.sub(1, x, alpha=2) - PLANES,
                "rsub": lambda x: torch.rsub(x, 1),
                "subtract": lambda x: torch.subtract(x, 0.5),
                "mul": lambda x: torch.mul(x, x * PLANES),
                "multiply": lambda x: torch.multiply(x, -0.5),
                **named(torch, "neg negative positive"),
            }
        ),
        Row(
            {
                "div": positive(lambda x: torch.div(PLANES, x)),
                "divide": lambda x: torch.divide(x, 2),
                "true_divide": lambda x: torch.true_divide(x, PLANES),
            },
            "Without `rounding_mode`.",
        ),
        Row(
            {
                "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
                "addcdiv": positive(lambda x: torch.addcdiv(x, x, x + 1, value=0.5)),
                "lerp": lambda x: torch.lerp(x, x * x, 0.3),
            }
        ),
        Row(
            {
                **named(torch, "abs square exp erf erfc"),
                **named(torch, "sqrt rsqrt reciprocal log", around=positive),
                "logit": lambda x: torch.logit(torch.sigmoid(2 * x) * 0.5),
            }
        ),
        Row(
            {
                "pow": lambda x: torch.pow(x, 3) + torch.pow(2, x),
                "float_power": positive(lambda x: torch.float_power(x, 0.5)),
                "exp2": torch.exp2,
            },
            "With a number as the exponent, or a positive number as the base.",
        ),
        Row(
            {
                "clamp": lambda x: torch.clamp(x, -0.1, 0.1),
                "clip": lambda x: torch.clip(x, max=0.1),
                "clamp_min": lambda x: torch.clamp_min(x, PLANES),
                "clamp_max": lambda x: torch.clamp_max(x, 0.1),
                "maximum": lambda x: torch.maximum(x, -x),
                "minimum": lambda x: torch.minimum(x, PLANES),
            }
        ),
    ],
    "reductions": [
        Row(
            {
                "mean": lambda x: x - torch.mean(x, 1, keepdim=True),
                "sum": lambda x: torch.stack([x, 2 * x]).sum(0),
                "var": lambda x: x + torch.var(x, 1, keepdim=True),
                "std": lambda x: torch.stack([x, 2 * x, x * x]).std(0),
                "var_mean": lambda x: x + sum(torch.var_mean(x, (1,), keepdim=True, correction=0)),
                "std_mean": beside(lambda x: torch.std_mean(x, 1)[0]),
                "norm": beside(lambda x: torch.norm(x, dim=1)),
                "vector_norm": beside(lambda x: torch.linalg.vector_norm(x, 1, dim=1)),
                "vecdot": beside(lambda x: torch.linalg.vecdot(x.movedim(1, -1), VECTOR)),
            },
            "Over axes that are named by `dim=`: the channels of a pixel, or an axis along which maps were stacked. "
            "Norms with an order of 1 or 2.",
        ),
        Row(
            {
                "amax": lambda x: x - torch.amax(x, 1, keepdim=True),
                "amin": lambda x: x.view(-1, 2, 2, 5, 5).amin(1).repeat(1, 2, 1, 1),
                "max": lambda x: x - torch.max(x, 1, keepdim=True).values,
                "min": beside(lambda x: torch.min(x, 1)[0]),
                "prod": beside(lambda x: torch.prod(x, 1)),
                "logsumexp": lambda x: x - torch.logsumexp(x, 1, keepdim=True),
                "softmax(features)": lambda x: x * F.softmax(x, 1),
                "log_softmax(features)": beside(lambda x: F.log_softmax(x, 1)[:, 1]),
            },
            "Likewise, over up to 64 elements.",
        ),
        Row(
            {
                "cumsum": lambda x: torch.cumsum(x, 1),
                "diff": lambda x: x + F.pad(torch.diff(x, dim=1), (0, 0, 0, 0, 1, 0)),
            },
            "Over the channels of a pixel; `cumsum` along rows or columns, too.",
        ),
    ],
    "movements": [
        Row(
            {
                "view": lambda x: x.view(-1, 2, 2, 5, 5).view(x.shape),
                "reshape": lambda x: x.reshape(len(x), -1).reshape(x.shape),
                "view_as": lambda x: x.flatten().view_as(x),
                "reshape_as": lambda x: x.flatten().reshape_as(x),
                "flatten": lambda x: x.flatten(1).view(x.shape),
                "ravel": lambda x: x.ravel().view(x.shape),
                "unflatten": lambda x: x.flatten(1).unflatten(1, x.shape[1:]),
                "squeeze": lambda x: x[:, None].squeeze(1),
                "unsqueeze": lambda x: x.unsqueeze(0)[0],
            }
        ),
        Row(
            {
                "permute": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
                "transpose": lambda x: x.transpose(1, 3).transpose(1, 3),
                "swapaxes": lambda x: x.swapaxes(1, 2).swapaxes(1, 2),
                "swapdims": lambda x: x.swapdims(2, 3).swapdims(2, 3),
                "movedim": lambda x: x.movedim(1, 3).movedim(3, 1),
                "moveaxis": lambda x: x.moveaxis(1, 2).moveaxis(2, 1),
                "t": lambda x: x.flatten(1).t().t().view(x.shape),
                "x.T": lambda x: x.flatten(1).T.T.view(x.shape),
                "x.mT": lambda x: x.mT.mT,
                "rot90": lambda x: x.rot90(1, (2, 3)).rot90(3, (2, 3)),
            }
        ),
        Row(
            {
                "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
                "expand_as": lambda x: x[:, :1].expand_as(x),
                "broadcast_to": lambda x: torch.broadcast_to(x[:, :1], x.shape),
                "repeat": wider(lambda x: x.repeat(1, 2, 1, 1)),
                "repeat_interleave": wider(lambda x: x.repeat_interleave(2, 1)),
                "tile": wider(lambda x: x.tile((1, 2, 1, 1))),
            }
        ),
        Row(
            {
                "chunk": reordered(lambda x: x.chunk(2, 1)),
                "split": reordered(lambda x: x.split([1, 3], 1)),
                "split_with_sizes": reordered(lambda x: x.split_with_sizes([1, 3], 1)),
                "tensor_split": reordered(lambda x: x.tensor_split(2, 1)),
                "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
                "narrow": reordered(lambda x: [x.narrow(1, 0, 1), x.narrow(1, 1, 3)]),
                "select": lambda x: torch.stack([x.select(1, i) for i in (3, 0, 0, 1)], 1),
                "diagonal": lambda x: (
                    x.view(-1, 2, 2, 5, 5).diagonal(0, 1, 2).movedim(-1, 1).repeat(1, 2, 1, 1)
                ),
                "x.unfold": lambda x: F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)[..., 0, 0],
            }
        ),
        Row(
            {
                "x[…]": lambda x: x[:, [3, 0, 0, 1]],
                "index_select": lambda x: x.index_select(1, ORDER),
                "gather": lambda x: x.gather(1, ORDER.view(4, 1, 1).expand(x.shape)),
                "take_along_dim": lambda x: x.take_along_dim(ORDER.view(1, 4, 1, 1), 1),
            },
            "The indices must be constant.",
        ),
        Row(
            {
                "cat": lambda x: torch.cat([x[:, :2], PLANES[:2].expand(len(x), 2, 5, 5)], 1),
                "concat": reordered(lambda x: [torch.concat([x[:, :2], x[:, 2:]], 1)]),
                "concatenate": reordered(lambda x: [torch.concatenate([x[:, :2], x[:, 2:]], 1)]),
                "stack": lambda x: torch.stack([x, x + 1])[1],
                "hstack": lambda x: torch.hstack([x[:, 2:], x[:, :2]]),
                "vstack": lambda x: torch.vstack([x, x])[: len(x)],
            },
            "Feature maps, constants and what depends on the condition, in any mixture.",
        ),
        Row({"pad": lambda x: F.pad(x, (0, 0, 1, 0), value=0.5)[:, :, :-1]}, "With zeros or another number."),
        Row(
            {"pad(circular)": around},
            "Along columns, of rows above only: in its own row, the first pixel would see the last one.",
        ),
        Row(
            {
                "roll": lambda x: x.roll(1, 1),
                "flip": lambda x: x.flip(1),
                "tril": lambda x: x.tril(),
                "triu": lambda x: x.triu(),
                "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
            },
            "Pixels may be rearranged, if a convolution does not read them before they are back in their places.",
        ),
        Row({**named(Tensor, "clone contiguous detach"), "x.data": lambda x: x.data}),
    ],
    "writes": [
        Row(
            {
                "x[…] = y": assigned((ALL_IMAGES, FIRST), 0.5),
                "copy_": changed(lambda x: x[:, :2].copy_(x[:, 2:])),
                "fill_": changed(lambda x: x[:, :, 0].fill_(2.0)),
                "zero_": changed(lambda x: x[:, 1].zero_()),
                "x.data = y": changed(lambda x: setattr(x, "data", 2 * x)),
            }
        ),
        Row(
            {
                "index_fill": lambda x: x.index_fill(1, FIRST, 0.5),
                "index_copy": lambda x: x.index_copy(1, FIRST, 2 * x[:, :2]),
                "index_put": lambda x: x.index_put((torch.arange(len(x))[:, None], FIRST), 2 * x[:, :2]),
                "scatter": lambda x: x.scatter(1, ORDER[:2].view(2, 1, 1).expand(len(x), 2, 5, 5), 0.5),
                "select_scatter": lambda x: x.select_scatter(x[:, 0], 1, 2),
                "slice_scatter": lambda x: x.slice_scatter(x[:, :2], 1, 2),
            },
            "The indices must be constant.",
        ),
        Row(
            {
                "where": lambda x: torch.where(TRIANGLE, x, 0.5),
                "masked_fill": lambda x: x.masked_fill(EVEN, -1e9),
            },
            "The mask must be a constant, or depend on one level of the image or on the condition.",
        ),
    ],
    "styles": [
        Row({"cat([row, x[:, :, :-1]], 2)": after_a_start_row}),
        Row({"unfold(x, 3).view(N * C, 9, -1) * masks": locally_masked}),
        Row({"cat([x + label, x])": guided}),
        Row({"x.squeeze()": without_batch}),
        Row({"kept(len(x))": lambda x: x + kept(len(x))}),
    ],
    "types": [
        Row(
            {
                **named(Tensor, "double"),
                "to": lambda x: x.to(torch.float64),
                "type": lambda x: x.type(torch.float64),
                "type_as": lambda x: x.type_as(x),
            },
            "To a type that holds every value: all levels of an image, and floating point at no lower precision "
            "than the model's own.",
        ),
        Row(
            {
                "zeros_like": lambda x: x + torch.zeros_like(x),
                "ones_like": lambda x: x + torch.ones_like(x),
                "full_like": lambda x: x + torch.full_like(x, 0.5),
                "empty_like": lambda x: torch.empty_like(x).copy_(x),
                "new_zeros": lambda x: x + x.new_zeros(4, 1, 1),
                "new_ones": lambda x: x + x.new_ones(5),
                "new_full": lambda x: x + x.new_full((4, 1, 1), 0.5),
                "new_empty": lambda x: x.new_empty(x.shape).copy_(x),
                "new_empty_strided": lambda x: x.new_empty_strided(x.shape, x.stride()).copy_(x),
                "new_tensor": lambda x: x + x.new_tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
            },
            "The result is a constant, whatever it is made like.",
        ),
    ],
}

# Constants for levels [N, 1, 5, 5], three of them, in uint8.
WEIGHT = torch.arange(3, dtype=torch.float64).view(3, 1).exp()
ONE = torch.ones((), dtype=torch.uint8)


def of_codes(call: Example) -> Example:
    """A call on codes, int64 [N, 5, 5], whose result has an axis of features at the end."""
    return lambda levels: call(levels[:, 0].long()).permute(0, 3, 1, 2)


def scaled(call: Example) -> Example:
    return lambda levels: call(0.7 * levels.double() - 0.5)


LEVELS: list[Row] = [
    Row(
        {
            "embedding": of_codes(lambda codes: F.embedding(codes, WEIGHT)),
            "one_hot": of_codes(lambda codes: F.one_hot(codes, 3)[..., 1:2]),
            "weight[levels]": of_codes(lambda codes: WEIGHT[codes]),
            "weight.index_select": lambda x: WEIGHT[:, 0].index_select(0, x.flatten().long()).view(x.shape),
            "scatter_": lambda x: torch.zeros(len(x), 3, 5, 5).scatter_(1, x.long(), 1.0)[:, 1:2],
        },
        "`embedding` without `max_norm`, `one_hot` with `num_classes` given, and `scatter_` into zeros.",
    ),
    Row(
        {
            **named(torch, "eq ne gt ge lt le", 1),
            **named(torch, "logical_and logical_or", ONE),
            **named(torch, "logical_not"),
        }
    ),
    Row(
        {
            **named(torch, "floor_divide remainder fmod bitwise_and bitwise_or bitwise_xor", 2),
            **named(torch, "bitwise_left_shift bitwise_right_shift", ONE),
            **named(torch, "bitwise_not"),
        }
    ),
    Row(
        named(torch, "round floor ceil trunc frac sign sin cos log1p expm1", around=scaled),
        "And any other pointwise function, whether it has a step or not.",
    ),
    Row(
        {
            **named(Tensor, "long int short float half bfloat16"),
            "bool": lambda x: x.clamp(max=1).bool(),
        },
        "From floating point to integers, no two levels may become one.",
    ),
]

ENDS: list[Row] = [
    Row(
        {
            "softmax": lambda x: F.softmax(x, 1),
            "log_softmax": lambda x: F.log_softmax(x, 1),
            "softmin": lambda x: F.softmin(x, 1),
        },
        "As the last call, over the levels, with the axis named by `dim=`. `log` may follow a softmax, and `exp` a "
        "log-softmax. Elsewhere, over up to 64 channels of a pixel; over more, write it out: "
        "`e = x.exp(); e / e.sum(1, keepdim=True)`.",
    ),
]

GROUPS: dict[str, list[Row]] = {**FEATURES, "levels": LEVELS, "ends": ENDS}


def table(rows: list[Row]) -> str:
    if not any(row.limits for row in rows):
        return "\n".join(f"- {_spelled(row.examples)}" for row in rows)
    lines = ["| Calls | Limits |", "|---|---|"]
    lines += [f"| {_spelled(row.examples)} | {row.limits} |" for row in rows]
    return "\n".join(lines)


def refusals() -> str:
    lines = ["| Calls | Why | Instead |", "|---|---|---|"]
    lines += [f"| {_spelled(row.names)} | {row.why} | {row.instead} |" for row in advice.REFUSED]
    return "\n".join(lines)


def _spelled(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def parts() -> dict[str, str]:
    """The generated parts of the page, by the names of their markers."""
    return {**{group: table(rows) for group, rows in GROUPS.items()}, "refused": refusals()}
