"""Lowers calls over a pixel's channels: products with matrices, norms, sums and other reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.alignment import placed, standard
from pixelcnn_fast.capture.lower.arithmetic import added, combined, multiplied, stepped
from pixelcnn_fast.capture.lower.averages import weighed
from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.calls.attention import scaled_and_shifted, scores
from pixelcnn_fast.capture.lower.calls.pixel_sums import sums_over_pixels, weights_of
from pixelcnn_fast.capture.lower.calls.pixels import convolved
from pixelcnn_fast.capture.lower.calls.pointwise import absolute, softmax_of_log
from pixelcnn_fast.capture.lower.calls.registry import LoweringContext, lowers, lowers_to_formulas
from pixelcnn_fast.capture.lower.final_softmax import final_softmax
from pixelcnn_fast.capture.lower.materialize import gathered, materialised, windowed
from pixelcnn_fast.capture.lower.pairs import OfPairs
from pixelcnn_fast.capture.record.shadow_memory import Map, OfCondition, Unknown, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import View
from pixelcnn_fast.program.operands import Step

MOST_PARTS = 64  # of what is combined one by one
MOST_GROUPS = 256  # of features that are one pixel's


def _by_pixel(
    b: Builder, x: Map, apply: Callable[[Map], Map], otherwise: Callable[[], Map] | None = None
) -> Map:
    """Applies [N, C, h, w] -> [N, D, h, w] to the last axis of x, which holds a pixel's features.
    otherwise: does so where all pixels lie along it."""
    try:
        split, spatial, channels = placed(b.space, windowed(b, x).addresses)
    except Unsupported:
        if otherwise is not None:
            with suppress(Unsupported):
                return otherwise()
        raise
    last, axes = split.dim() - 1, list(range(split.dim()))
    if channels[-1:] != [last] or split.shape[last] < x.shape[-1]:
        if otherwise is not None:
            return otherwise()
        raise Unsupported(
            f"it takes the last axis of shape {list(x.shape)} for features, but pixels lie along it"
        )
    order = [*channels[:-1], *(dim for dim in spatial if dim >= 0), last]
    arranged = split.permute(order)
    groups = arranged.reshape(
        -1, *(split.shape[dim] if dim >= 0 else 1 for dim in spatial), split.shape[last]
    )
    if len(groups) > MOST_GROUPS:
        raise Unsupported(f"it works on {len(groups)} groups of features of a pixel, one by one")
    parts = [apply(b.map(group.permute(0, 3, 1, 2))).addresses.permute(0, 2, 3, 1) for group in groups]
    result = torch.stack(parts).reshape(*arranged.shape[:-1], -1).movedim(axes, order)
    return b.map(result.reshape(*x.shape[:-1], -1))


# -- products


def _product(b: Builder, x: Map, matrix: Tensor, bias: Tensor | None = None) -> Map:
    """x [.., K] times matrix [K, O], plus bias [O]."""
    weight = matrix.T[:, :, None, None]

    def of_pixels() -> Map:
        rows, (height, width) = x.addresses.reshape(-1, len(matrix)), b.space.grid
        is_whole = len(rows) == b.space.images or len(matrix) % (height * width) == 0
        if is_whole or len(matrix) not in b.space.grid:
            return b.map(sums_over_pixels(b, rows, matrix, bias).view(*x.shape[:-1], -1))
        total = b.map(_of_some_pixels(b, rows[:, None], matrix[None]).reshape(*x.shape[:-1], -1))
        return total if bias is None else added(b, total, weights_of(b, bias))

    return _by_pixel(b, x, lambda part: convolved(b, part, weight, bias), of_pixels)


@lowers("linear")
def _linear(t: LoweringContext, x: View, weight: View, bias: View | None = None) -> Map:
    return _product(t.builder, t.map(x), t.constant(weight).T, t.constant(bias))


@lowers("mv")
def _mv(t: LoweringContext, x: View, y: View) -> Map:
    if not t.depends_on_image(x):
        raise Unsupported("only the product of features with a constant vector is supported")
    return t.builder.map(_product(t.builder, t.map(x), t.constant(y)[:, None]).addresses[..., 0])


def _is_given(t: LoweringContext, x: View) -> bool:
    """Whether it depends on the image or the condition."""
    return not t.map(x).kinds.isdisjoint((Value, Unknown, OfCondition))


@lowers("mm", "bmm")
def _matmul(t: LoweringContext, x: View, y: View) -> Map:
    if _is_given(t, x) and _is_given(t, y):
        return scores(t, x, y)
    if not t.depends_on_image(y):
        return _times_matrices(t.builder, t.map(x), t.constant(y))
    turned = t.builder.map(t.map(y).addresses.mT)
    return t.builder.map(_times_matrices(t.builder, turned, t.constant(x).mT).addresses.mT)


@lowers("addmm", "baddbmm")
def _addmm(t: LoweringContext, bias: View, x: View, y: View, *, beta: float = 1, alpha: float = 1) -> Map:
    if (
        beta == alpha == 1
        and (len(bias.size), len(y.size)) == (1, 2)
        and not any(_is_given(t, z) for z in (bias, y))
    ):
        return _product(t.builder, t.map(x), t.constant(y), t.constant(bias))
    result = _matmul(t, x, y)
    if isinstance(result, OfPairs):
        return scaled_and_shifted(t, result, alpha, bias, beta)
    if alpha != 1:
        result = multiplied(t.builder, result, alpha)
    return result if beta == 0 else added(t.builder, result, t.map(bias), beta)


def _times_matrices(b: Builder, x: Map, matrix: Tensor) -> Map:
    """[..., M, K] times [..., K, O]; the matrices of a batch may differ."""
    if matrix.dim() == 2 or bool((matrix == matrix[:1]).all()):
        return _product(b, x, matrix if matrix.dim() == 2 else matrix[0])
    with suppress(Unsupported):
        return b.map(_of_some_pixels(b, x.addresses, matrix))
    rows = zip(x.addresses, matrix, strict=True)
    return b.map(torch.stack([_product(b, b.map(row), each).addresses for row, each in rows]))


def _of_some_pixels(b: Builder, x: Tensor, matrix: Tensor) -> Tensor:
    """Addresses [B, M, K], along whose last axis some pixels lie, such as a row, times matrices [1 or B, K, K]."""
    if matrix.shape[1] != matrix.shape[2]:
        raise Unsupported(f"it makes {matrix.shape[2]} pixels of {matrix.shape[1]}")
    return weighed(b, matrix.mT, x.mT).mT


# -- norms


@lowers(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_batch_norm_no_update"
)
def _batch_norm(
    t: LoweringContext, x: View, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> Map:
    training, eps = any(r is True for r in rest), float(rest[-1])
    if training or mean is None or variance is None:
        raise Unsupported(
            "the batch's own statistics mix pixels and images, as instance_norm does; call model.eval()"
        )
    weight, bias, mean, variance = (t.constant(part) for part in (weight, bias, mean, variance))
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    if t.map(x).source is not None:
        return stepped(t.builder, t.map(x), (scale, shift))
    scale, shift = (t.map(part.view(-1, *(1 for _ in x.size[2:]))) for part in (scale, shift))
    return added(t.builder, multiplied(t.builder, t.map(x), scale), shift)


def _layer_norm(
    b: Builder, x: Map, shape: Sequence[int], weight: Map | None, bias: Map | None, eps: float
) -> Map:
    def normed(part: Map) -> Map:
        value = gathered(b, part)
        height, width = part.shape[2:]  # perhaps fewer than its grid has
        return b.map(b.whole(b.pair("layer_norm", value, value, eps)).addresses[:, :, :height, :width])

    result = b.map(_by_pixel(b, b.map(x.addresses.flatten(-len(shape))), normed).addresses.reshape(x.shape))
    if weight is not None:
        result = multiplied(b, result, weight)
    return result if bias is None else added(b, result, bias)


def _group_norm(
    b: Builder,
    x: Map,
    weight: Map | None,
    bias: Map | None,
    rows: Any,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> list[Map]:
    """[rows, channels], or with axes of one pixel after them: a layer norm over each group."""
    if pixels != 1:
        raise Unsupported("its statistics mix pixels; over one pixel's channels it takes [N * H * W, C]")
    split = b.map(x.addresses.reshape(-1, groups, channels // groups))
    normed = b.map(_layer_norm(b, split, [channels // groups], None, None, eps).addresses.reshape(x.shape))
    for operated, operand in ((multiplied, weight), (added, bias)):
        if operand is not None:
            normed = operated(b, normed, b.map(operand.addresses.view(-1, *(1 for _ in x.shape[2:]))))
    return [normed]


def _norm(b: Builder, x: Map, order: float = 2, dims: Any = None, keepdim: bool = False) -> Map:
    if order not in (1, 2):
        raise Unsupported(f"order {order}; only 1 and 2 are supported")
    x = materialised(b, x)
    if order == 1:
        return _sum(b, absolute(b, x), dims, keepdim)
    return stepped(b, _sum(b, multiplied(b, x, x), dims, keepdim), Step("power", 0.5))


# -- reductions


def _together(x: Map, dims: Any, keepdim: bool) -> tuple[Tensor, list[int]]:
    """-> (addresses, what is reduced along the last axis; the result's shape). dims: None for all."""
    shape = x.shape
    reduced = sorted(d % len(shape) for d in ([dims] if isinstance(dims, int) else dims or range(len(shape))))
    last = x.addresses.movedim(reduced, list(range(-len(reduced), 0))).flatten(-len(reduced))
    return last, [1 if d in reduced else size for d, size in enumerate(shape) if keepdim or d not in reduced]


def _one_by_one(b: Builder, kind: str, elements: Tensor) -> Map:
    return reduce(partial(combined, b, kind), map(b.map, elements.unbind(-1)))


def _sum(
    b: Builder, x: Map, dims: Any = None, keepdim: bool = False, *, mean: bool = False, dtype: Any = None
) -> Map:
    """Sums or averages a pixel's channels, axes along which maps are stacked, or a cell's pixels."""
    elements, shape = _together(x, dims, keepdim)
    count = elements.shape[-1]
    scale = 1 / count if mean else 1.0
    rows = elements.reshape(-1, count)
    if count <= MOST_PARTS and len(b.space.source_of(rows[len(rows) // 2]).unique()) == count:  # several maps
        total = _one_by_one(b, "add", elements)
        if scale != 1:
            total = multiplied(b, total, scale)
    else:
        matrix = torch.full((count, 1), scale, dtype=b.dtype, device=b.device)
        try:
            total = _product(b, b.map(elements), matrix)
        except Unsupported:
            total = _of_cells(b, elements, scale)
    return b.map(total.addresses.reshape(shape))


def _of_cells(b: Builder, elements: Tensor, scale: float) -> Map:
    """The sum over the last axis, along which the pixels of each cell lie, times ``scale``."""
    parts = elements.unbind(-1) if elements.shape[-1] <= MOST_PARTS else []
    found = list[tuple[Tensor, Callable[[Tensor], Tensor]]]()
    with suppress(Unsupported):
        found = [standard(b.space, materialised(b, windowed(b, b.map(part))).addresses) for part in parts]
    shapes = {(*arranged.shape,) for arranged, _ in found}
    (_, channels, *frame), *others = shapes or {(0, 0, 1, 1)}
    if (
        not channels
        or others
        or any(many == 1 < whole for many, whole in zip(frame, b.space.grid, strict=True))
    ):
        raise Unsupported(
            "only the channels of a pixel, or the pixels of each cell, may be summed, and other pixels lie along "
            "these axes"
        )
    weights = scale * torch.eye(channels, dtype=b.dtype, device=b.device)[None]
    maps, back = [b.map(arranged) for arranged, _ in found], found[0][1]
    every = b.every(*maps)
    total = b.convolution(maps, [(0, 0)], weights, None, every, every, (frame[0], frame[1]))
    return b.map(back(total.addresses))


def _cumsum(b: Builder, x: Map, dim: int, *, dtype: Any = None) -> Map:
    elements = b.map(x.addresses.movedim(dim, -1))
    count = elements.shape[-1]
    matrix = torch.ones(count, count, dtype=b.dtype, device=b.device).triu()
    return b.map(_product(b, elements, matrix).addresses.movedim(-1, dim))


def _var_mean(
    b: Builder, x: Map, dims: Any = None, *, correction: float = 1, keepdim: bool = False
) -> list[Map]:
    mean = _sum(b, x, dims, True, mean=True)
    centred = materialised(b, added(b, x, mean, -1))
    total = _sum(b, multiplied(b, centred, centred), dims, keepdim)
    spread = multiplied(b, total, 1 / (x.shape.numel() // mean.shape.numel() - correction))
    return [spread, b.map(mean.addresses.reshape(total.shape))]


def _std_mean(b: Builder, x: Map, *args: Any, **kwargs: Any) -> list[Map]:
    variance, mean = _var_mean(b, x, *args, **kwargs)
    return [stepped(b, variance, Step("power", 0.5)), mean]


def _folded(kind: str) -> Callable[..., Map]:
    def folded(b: Builder, x: Map, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Map:
        elements, shape = _together(x, dims, keepdim)
        if elements.shape[-1] > MOST_PARTS:
            raise Unsupported(f"it combines {elements.shape[-1]} elements, one by one")
        return b.map(_one_by_one(b, kind, elements).addresses.reshape(shape))

    return folded


def _logsumexp(b: Builder, x: Map, dims: Any, keepdim: bool = False) -> Map:
    largest = _folded("maximum")(b, x, dims, True)
    powers = stepped(b, materialised(b, added(b, x, largest, -1)), Step("exp"))
    total = stepped(b, _sum(b, powers, dims, True), Step("log"))
    return b.map(added(b, largest, total).addresses.reshape(_together(x, dims, keepdim)[1]))


def _log_softmax(b: Builder, x: Map, dim: int, half_to_float: bool) -> Map:
    result = final_softmax(
        b, "log_softmax", x, lambda: added(b, x, _logsumexp(b, materialised(b, x), dim, True), -1)
    )
    b.distributions.append(result.addresses.movedim(dim, -1))
    return result


def _greatest(kind: str) -> Callable[..., list[Map]]:
    """Of its results, the elements without their places."""
    return lambda b, x, dim, keepdim=False: [_folded(kind)(b, x, dim, keepdim)]


lowers_to_formulas(
    {
        "native_layer_norm": _layer_norm,
        "native_group_norm": _group_norm,
        "linalg_vector_norm": _norm,
        "norm": _norm,
        "sum": _sum,
        "mean": partial(_sum, mean=True),
        "cumsum": _cumsum,
        "var": _var_mean,
        "std": _std_mean,
        "var_mean": _var_mean,
        "std_mean": _std_mean,
        "max": _greatest("maximum"),
        "min": _greatest("minimum"),
        "amax": _folded("maximum"),
        "amin": _folded("minimum"),
        "prod": _folded("multiply"),
        "logsumexp": _logsumexp,
        "_log_softmax": _log_softmax,
        "_softmax": lambda *args: softmax_of_log(args[0], _log_softmax(*args)),
    }
)
