"""The generated parts of supported_calls.md: the tables of calls, grouped as a user looks for them.

Capture's own tables say which calls exist. What they can't say is written here, once: the group that a call belongs to,
and the limits that its lowering states.
"""

from __future__ import annotations

from typing import NamedTuple

from pixelcnn_fast.capture.decompositions import DECOMPOSITIONS, OWN_OPS

from pixelcnn_fast.capture import lowering


class Row(NamedTuple):
    """A row of a table: calls, separated by spaces, and what limits all of them."""

    calls: str
    limits: str = ""

    @property
    def names(self) -> list[str]:
        return self.calls.split()


class Refused(NamedTuple):
    """Calls that have no place in a program, separated by spaces; why; and what a model can do instead."""

    calls: str
    why: str
    instead: str

    @property
    def names(self) -> list[str]:
        return self.calls.split()


GROUPS: dict[str, list[Row]] = {
    "layers": [
        Row(
            "conv2d",
            "Stride 1, on `[N, C, H, W]`. Any kernel size, dilation, number of groups and zero padding; a result that "
            "is larger than the image must be cropped before the next convolution reads it.",
        ),
        Row("linear", "Acts on the last axis, which must hold the channels of a pixel, as in `[N, H, W, C]`."),
        Row("matmul", "Features, with the channels on the last axis, times a constant matrix: `x @ weight`."),
        Row("embedding", "On the image's levels, without `max_norm`."),
        Row("one_hot", "On the image's levels, with `num_classes` given."),
    ],
    "own": [
        Row("masked_conv2d"),
        Row("masked_conv_block"),
        Row("gated_activation"),
    ],
    "norms": [
        Row("batch_norm", "In eval mode, with running statistics."),
        Row(
            "layer_norm rms_norm",
            "Over the channels of a pixel, which must be the last axes: `layer_norm(x.permute(0, 2, 3, 1), …)`.",
        ),
        Row("dropout dropout2d", "In eval mode, or with `p=0`."),
    ],
    "activations": [
        Row("relu relu6 leaky_relu"),
        Row("elu selu celu"),
        Row("gelu silu mish hardswish"),
        Row("sigmoid hardsigmoid log_sigmoid"),
        Row("tanh hardtanh tanhshrink softsign"),
        Row("softplus", "With the default `threshold` of 20; any `beta`."),
        Row("prelu", "One weight, or one per channel."),
        Row("glu"),
    ],
    "arithmetic": [
        Row("add sub subtract rsub mul multiply neg negative"),
        Row("div divide true_divide rdiv", "Without `rounding_mode`."),
        Row("addcmul lerp"),
        Row("abs square sqrt rsqrt reciprocal"),
        Row("pow", "With an exponent that is a number."),
        Row("exp log"),
        Row("clamp clip clamp_min clamp_max"),
        Row("maximum minimum"),
        Row(
            "mean sum",
            "Over one axis, named by `dim=`: the channels of a pixel, or an axis along which maps were stacked.",
        ),
    ],
    "movements": [
        Row("view reshape view_as reshape_as flatten unflatten squeeze unsqueeze"),
        Row("permute transpose swapaxes swapdims movedim moveaxis t T mT"),
        Row("expand expand_as broadcast_to repeat repeat_interleave tile"),
        Row("chunk split split_with_sizes tensor_split unbind narrow select"),
        Row("getitem index_select", "The indices must not depend on the image or the condition."),
        Row(
            "cat concat concatenate stack hstack vstack",
            "Feature maps, constants and what depends on the condition, in any mixture.",
        ),
        Row("pad constant_pad_nd", "With zeros."),
        Row(
            "roll flip",
            "On channels without limits; on pixels, if what wraps around is overwritten or cut off before a "
            "convolution reads it.",
        ),
        Row(
            "where masked_fill",
            "The mask must be constant, and select whole channels or a rectangle of pixels. For any other mask, "
            "multiply by it.",
        ),
        Row("channel_shuffle"),
        Row("pixel_shuffle pixel_unshuffle", "The next convolution must see the grid of the image again."),
        Row("clone contiguous copy zero detach data"),
    ],
    "types": [
        Row(
            " ".join(lowering.CASTS),
            "To a type that holds every value: all levels of an image, and floating point at no lower precision "
            "than the model's own.",
        ),
        Row(
            "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full new_tensor",
            "The result is a constant, whatever it is made like.",
        ),
        Row(
            "rand_like randn_like",
            "The numbers must not reach the output, which would then not be the model's own.",
        ),
    ],
    "ends": [
        Row(
            "softmax log_softmax softmin",
            "As the last call, over the levels, with the axis named by `dim=`. `log` may follow a softmax, and `exp` a "
            "log-softmax.",
        ),
        Row("logit", "After a sigmoid."),
    ],
}

REFUSED: list[Refused] = [
    Refused(
        "max_pool2d avg_pool2d adaptive_avg_pool2d interpolate conv_transpose2d",
        "They compute on a coarser or finer grid than the image's, as a `conv2d` with a stride does.",
        "Not yet possible; planned together with PixelCNN++.",
    ),
    Refused(
        "conv1d conv3d",
        "Only convolutions over the two axes of an image are lowered.",
        "Write the layer as a `conv2d` whose kernel has size 1 along the other axis.",
    ),
    Refused(
        "group_norm instance_norm local_response_norm",
        "The statistics of a whole image include pixels that are not drawn yet, so such a model is not causal; "
        "statistics over neighbouring channels have no step.",
        "`layer_norm` or `rms_norm` over the channels of each pixel, or `batch_norm`.",
    ),
    Refused(
        "scaled_dot_product_attention bmm cumsum",
        "They combine all pixels of an image with weights that depend on the image.",
        "Not yet possible; causal attention is planned.",
    ),
    Refused(
        "einsum tensordot mm addmm",
        "These forms of a matrix product are not lowered, although the product itself is.",
        "`x @ weight`, `linear`, or a 1×1 `conv2d`.",
    ),
    Refused(
        "var std norm normalize logsumexp prod",
        "These reductions have no step.",
        "Write them with `mean`, `sum`, `square`, `sqrt`, `exp` and `log`: the variance over channels is "
        "`(x - x.mean(1, keepdim=True)).square().mean(1, keepdim=True)`.",
    ),
    Refused(
        "max min amax amin argmax argmin sort topk",
        "Ordering elements has no step.",
        "For the larger or smaller of two feature maps, `maximum` or `minimum`.",
    ),
    Refused(
        "gt ge lt le eq ne",
        "A mask that depends on the image has no step.",
        "`where(x > 0, x, a * x)` is `leaky_relu(x, a)`; many others are a `clamp`, `maximum` or `minimum`.",
    ),
    Refused(
        "round floor ceil trunc sign floor_divide remainder",
        "They jump, so float rounding would decide between two results.",
        "Leave them out, or compute them before the model is called.",
    ),
    Refused(
        "sin cos tan erf log1p expm1 log2 log10",
        "These functions have no step.",
        "Use `exp` and `log`, as in `(1 + x).log()`, or one of the activations above; a new step is a small change to "
        "the library.",
    ),
    Refused(
        "threshold rrelu hardshrink softshrink",
        "These activations have no step.",
        "`rrelu` in eval mode is `leaky_relu` with the mean of its slopes; `softshrink(x, a)` is "
        "`relu(x - a) - relu(-x - a)`.",
    ),
    Refused(
        "gather scatter index_add take_along_dim",
        "The elements that they read or write may depend on the image.",
        "With constant indices, `index_select` or `x[:, indices]`.",
    ),
]

SPELLINGS = {"getitem": "x[…]", "T": "x.T", "mT": "x.mT", "data": "x.data"}


def own_ops() -> set[str]:
    """The names of the library's own ops, as in torch.ops.pixelcnn_fast."""
    return {str(op).split(".")[1] for op in OWN_OPS}


def names_in_the_code() -> set[str]:
    """Every call that one of capture's tables names."""
    tables = (lowering.LOWERINGS, lowering.MOVEMENTS, lowering.FRESH, lowering.CASTS, lowering.ARITHMETIC)
    names = set().union(*tables, lowering.LIKE, lowering.JOINS, DECOMPOSITIONS)
    return names | own_ops()


def table(rows: list[Row]) -> str:
    if not any(row.limits for row in rows):
        return "\n".join(f"- {', '.join(map(_spelled, row.names))}" for row in rows)
    lines = ["| Calls | Limits |", "|---|---|"]
    lines += [f"| {', '.join(map(_spelled, row.names))} | {row.limits} |" for row in rows]
    return "\n".join(lines)


def _spelled(name: str) -> str:
    composed = "\\*" if name in DECOMPOSITIONS and name not in own_ops() else ""
    return f"`{SPELLINGS.get(name, name)}`{composed}"


def refusals() -> str:
    lines = ["| Calls | Why | Instead |", "|---|---|---|"]
    for refused in REFUSED:
        names = ", ".join(f"`{name}`" for name in refused.names)
        lines.append(f"| {names} | {refused.why} | {refused.instead} |")
    return "\n".join(lines)


def small_integers() -> str:
    names = ", ".join(f"`{name}`" for name in sorted(lowering.ARITHMETIC))
    return (
        f"On `uint8`, `int8` and `int16` the calls {names} are refused, because they may wrap around: convert the "
        "image to floating point first."
    )


def parts() -> dict[str, str]:
    """The generated parts of the page, by the names of their markers."""
    return {
        **{group: table(rows) for group, rows in GROUPS.items()},
        "refused": refusals(),
        "small integers": small_integers(),
    }
