"""What each ATen call does to feature maps.

A lowering is called for a call that has a feature map among its arguments, as (trace, call, *args, **kwargs), and
returns the map that is its result, or a list of maps if it has several. It raises Unsupported if the call has no place
in a program. Calls that only move elements need none: they are made on the elements' addresses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.capture.builder import Affine, Builder, Steps, no_operand
from pixelcnn_fast.capture.closing import closing, log_softmax, made_by
from pixelcnn_fast.capture.operands import Operands
from pixelcnn_fast.capture.shadow import AddressSpace, Map
from pixelcnn_fast.capture.tables import tabulated, tells_levels_apart
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.calls import Call, View, functional, plain_name
from pixelcnn_fast.program.program import Step


class Trace(Protocol):
    """What a lowering may use."""

    builder: Builder
    operands: Operands
    space: AddressSpace

    def map(self, x: Any) -> Map:
        """The map of a tensor, or of a number."""

    def depends_on_image(self, x: Any) -> bool: ...

    def constant(self, x: Any) -> Any:
        """x as a tensor, or the number that it is. Raises Unsupported if it depends on the image or the condition."""


Lowering = Callable[..., Any]
LOWERINGS: dict[str, Lowering] = {}


def lowers(*names: str) -> Callable[[Lowering], Lowering]:
    def register(lowering: Lowering) -> Lowering:
        LOWERINGS.update(dict.fromkeys(names, lowering))
        return lowering

    return register


# Calls that only move elements into new memory; views are not recorded at all. Those among their arguments that are
# called so say where to, and must be constants.
MOVEMENTS = frozenset(
    "cat channel_shuffle clone constant_pad_nd copy fill flip gather index index_copy index_fill index_put "
    "index_select masked_fill pixel_shuffle pixel_unshuffle repeat roll rot90 scatter select_scatter slice_scatter "
    "stack tril triu where zero".split()
)
PLACES = frozenset(("index", "indices", "mask", "condition"))
# Calls whose result depends on the shapes of their arguments alone, and what it is filled with.
FRESH = {
    **dict.fromkeys(("zeros_like", "empty_like", "new_zeros", "new_empty", "new_empty_strided"), 0),
    **dict.fromkeys(("ones_like", "new_ones"), 1),
    **dict.fromkeys(("full_like", "new_full"), None),
}

# Pointwise calls that PyTorch has not tagged as such.
POINTWISE_TOO = frozenset("_to_copy floor_divide __and__ __or__ __xor__".split())

# -- channel by channel


def _stepped(t: Trace, call: Call, x: Any, steps: Steps) -> Map:
    return t.builder.stepped(t.map(x), steps, lambda source: t.operands.applied(source, call, 0))


def _activation(name: str) -> Lowering:
    return lambda t, call, x: _stepped(t, call, x, [Step(name)])


for _name in ("relu", "silu", "sigmoid", "tanh", "hardswish"):
    LOWERINGS[_name] = _activation(_name)
for _name, _exponent in (("sqrt", 0.5), ("rsqrt", -0.5), ("reciprocal", -1.0)):
    LOWERINGS[_name] = lambda t, call, x, power=_exponent: _stepped(t, call, x, [Step("power", power)])


@lowers("neg")
def _neg(t: Trace, call: Call, x: View) -> Map:
    return _stepped(t, call, x, [(-1.0, 0.0)])


@lowers("leaky_relu")
def _leaky_relu(t: Trace, call: Call, x: View, slope: float = 0.01) -> Map:
    return _stepped(t, call, x, [Step("leaky_relu", float(slope))])


@lowers("rrelu_with_noise")
def _rrelu(
    t: Trace,
    call: Call,
    x: View,
    noise: View,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
) -> Map:
    if training:
        raise Unsupported("it draws random numbers")
    return _leaky_relu(t, call, x, (lower + upper) / 2)


@lowers("elu")
def _elu(
    t: Trace, call: Call, x: View, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Map:
    if input_scale != 1:
        raise Unsupported(f"elu with input_scale {input_scale}")
    return _stepped(t, call, x, [Step("elu", float(alpha)), *([(float(scale), 0.0)] if scale != 1 else [])])


@lowers("celu")
def _celu(t: Trace, call: Call, x: View, alpha: float = 1.0) -> Map:
    return _stepped(t, call, x, [(1 / alpha, 0.0), Step("elu"), (float(alpha), 0.0)])


@lowers("gelu")
def _gelu(t: Trace, call: Call, x: View, *, approximate: str = "none") -> Map:
    return _stepped(t, call, x, [Step("gelu" if approximate == "none" else "gelu_tanh")])


@lowers("softplus")
def _softplus(t: Trace, call: Call, x: View, beta: float = 1.0, threshold: float = 20.0) -> Map:
    if threshold != 20:
        raise Unsupported(f"softplus with threshold {threshold}; only 20 is supported")
    return _stepped(t, call, x, [Step("softplus", float(beta))])


@lowers("log_sigmoid_forward")
def _log_sigmoid(t: Trace, call: Call, x: View) -> list[Map]:
    whole = t.builder.materialised(t.map(x))
    return [_then(t, whole, (-1.0, 0.0), Step("softplus"), (-1.0, 0.0)), whole]


@lowers("pow", "exp2")
def _pow(t: Trace, call: Call, x: Any, exponent: Any = None) -> Map:
    base = 2 if exponent is None else x
    if isinstance(base, (int, float)) and base > 0:
        at = 0 if exponent is None else 1  # which argument depends on the image
        steps: Steps = [(math.log(base), 0.0), Step("exp")]
        return t.builder.stepped(
            t.map(call.args[at]), steps, lambda source: t.operands.applied(source, call, at)
        )
    if isinstance(exponent, View) and not t.depends_on_image(exponent) and t.constant(exponent).numel() == 1:
        exponent = t.constant(exponent).item()
    if not isinstance(exponent, (int, float)):
        raise Unsupported("its exponent is not one number")
    return _stepped(t, call, x, [Step("power", float(exponent))])


def _bounds(low: Any, high: Any) -> list[Step]:
    return [Step(kind, float(x)) for kind, x in (("at_least", low), ("at_most", high)) if x is not None]


@lowers("clamp", "clamp_min", "clamp_max", "hardtanh")
def _clamp(t: Trace, call: Call, x: View, *bounds: Any, **named: Any) -> Map:
    given = [named.get("min", named.get("min_val")), named.get("max", named.get("max_val"))]
    first = 1 if _plain(call) == "clamp_max" else 0
    given[first : first + len(bounds)] = bounds
    if _plain(call) == "hardtanh":
        given = [default if bound is None else bound for bound, default in zip(given, (-1, 1), strict=True)]
    low, high = given
    is_low = (
        isinstance(low, (int, float)) and low <= torch.finfo(x.dtype).tiny
    )  # as no probability that matters
    if is_low and high is None and made_by(t.builder, "softmax", t.map(x)) is not None:
        return t.map(x)
    if isinstance(low, View) or isinstance(high, View):
        result = t.map(x)
        for step, bound in (("maximum", low), ("minimum", high)):
            if bound is not None:
                result = t.builder.combined(step, result, t.map(bound))
        return result
    return _stepped(t, call, x, _bounds(low, high))


@lowers("hardsigmoid")
def _hardsigmoid(t: Trace, call: Call, x: View) -> Map:
    return _stepped(t, call, x, [(1 / 6, 0.5), *_bounds(0, 1)])


def _then(t: Trace, x: Map, *steps: Step | Affine) -> Map:
    """Steps on a map that has no operands among its elements."""
    return t.builder.stepped(x, steps, no_operand)


@lowers("abs")
def _abs(t: Trace, call: Call, x: View) -> Map:
    return _absolute(t, t.builder.materialised(t.map(x)))


def _absolute(t: Trace, x: Map) -> Map:
    return t.builder.combined("add", _then(t, x, Step("relu")), _then(t, x, (-1.0, 0.0), Step("relu")))


@lowers("mish")
def _mish(t: Trace, call: Call, x: View) -> Map:
    whole = t.builder.materialised(t.map(x))
    return t.builder.combined("multiply", whole, _then(t, whole, Step("softplus"), Step("tanh")))


@lowers("softshrink")
def _softshrink(t: Trace, call: Call, x: View, lambd: float = 0.5) -> Map:
    whole = t.builder.materialised(t.map(x))
    above = _then(t, whole, (1.0, -float(lambd)), Step("relu"))
    return t.builder.combined("add", above, _then(t, whole, (-1.0, -float(lambd)), Step("relu")), -1.0)


@lowers("_prelu_kernel")
def _prelu(t: Trace, call: Call, x: View, weight: View) -> Map:
    """relu(x) - weight * relu(-x)"""
    whole = t.builder.materialised(t.map(x))
    below = t.builder.combined("multiply", _then(t, whole, (-1.0, 0.0), Step("relu")), t.map(weight))
    return t.builder.combined("add", _then(t, whole, Step("relu")), below, -1.0)


@lowers("glu")
def _glu(t: Trace, call: Call, x: View, dim: int = -1) -> Map:
    a, b = (t.builder.map(part) for part in t.builder.materialised(t.map(x)).addresses.chunk(2, dim))
    return t.builder.combined("multiply", a, _then(t, b, Step("sigmoid")))


# -- arithmetic


@lowers("add", "sub", "rsub")
def _add(t: Trace, call: Call, x: Any, y: Any, *, alpha: float = 1) -> Map:
    kind = _plain(call)
    if kind == "rsub":
        x, y = y, x
    alpha = float(alpha) if kind == "add" else -float(alpha)
    return t.builder.combined("add", t.map(x), t.map(y), alpha)


@lowers("mul")
def _mul(t: Trace, call: Call, x: Any, y: Any) -> Map:
    return t.builder.combined("multiply", t.map(x), t.map(y))


@lowers("div")
def _div(t: Trace, call: Call, x: Any, y: Any, *, rounding_mode: str | None = None) -> Map:
    if rounding_mode is not None:
        raise Unsupported(f"rounding_mode {rounding_mode!r}; only true division is supported")
    if isinstance(y, (int, float)):
        return t.builder.combined("multiply", t.map(x), t.map(1 / y))
    return t.builder.combined("multiply", t.map(x), _reciprocal(t, y))


def _reciprocal(t: Trace, y: View) -> Map:
    inverse = Call("aten::reciprocal", (y,), {}, (View(y.slot, y.size, y.stride, y.offset, t.builder.dtype),))
    return LOWERINGS["reciprocal"](t, inverse, y)


@lowers("addcmul")
def _addcmul(t: Trace, call: Call, x: View, a: View, b: View, *, value: float = 1) -> Map:
    return t.builder.combined("add", t.map(x), _mul(t, call, a, b), float(value))


@lowers("addcdiv")
def _addcdiv(t: Trace, call: Call, x: View, a: View, b: View, *, value: float = 1) -> Map:
    return t.builder.combined("add", t.map(x), _div(t, call, a, b), float(value))


@lowers("lerp")
def _lerp(t: Trace, call: Call, x: View, end: View, weight: Any) -> Map:
    difference = t.builder.combined("add", t.map(end), t.map(x), -1.0)
    return t.builder.combined("add", t.map(x), t.builder.combined("multiply", difference, t.map(weight)))


@lowers("maximum", "minimum")
def _larger(t: Trace, call: Call, x: View, y: View) -> Map:
    return t.builder.combined(_plain(call), t.map(x), t.map(y))


MASKED = ("where", "masked_fill")


@lowers(*MASKED)
def _where(t: Trace, call: Call, *args: Any) -> Map:
    """mask * x + (1 - mask) * y, for a mask that depends on one level of the image, or on the condition."""
    mask, x, y = args if _plain(call) == "where" else (args[1], args[2], args[0])
    taken = t.map(mask)
    left = t.builder.affine(taken, -1.0, 1.0)
    shape = torch.broadcast_shapes(taken.shape, t.map(x).shape, t.map(y).shape)

    def masked(x: Any, mask_of_x: Map) -> Map:
        whole = t.map(x)
        if not t.depends_on_image(x) and not t.depends_on_image(mask):
            whole = t.builder.copied(t.builder.map(whole.addresses.expand(shape)))
        return t.builder.combined("multiply", whole, mask_of_x)

    return t.builder.combined("add", masked(x, taken), masked(y, left))


# -- over pixels


@lowers("convolution")
def _convolution(
    t: Trace,
    call: Call,
    x: View,
    weight: View,
    bias: View | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Map:
    if any(s != 1 for s in stride):
        raise Unsupported(f"stride {list(stride)}; only stride 1 is supported")
    if transposed:
        raise Unsupported("a transposed convolution computes on another grid than the image's")
    if len(x.size) != 4:
        raise Unsupported(f"its argument has {len(x.size)} axes; only [N, channels, H, W] is supported")
    return _convolved(
        t, t.map(x), t.constant(weight), t.constant(bias), tuple(padding), tuple(dilation), groups
    )


def _convolved(
    t: Trace,
    x: Map,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Map:
    """x: laid out as [N, C, h, w]; weight: [O, C / groups, kH, kW] -> [N, O, h', w']."""
    features, operands = t.builder.divided(t.builder.windowed(x))
    columns = weight.detach().to(t.builder.dtype).permute(2, 3, 1, 0).contiguous()
    if groups > 1:
        columns = _ungrouped(columns, groups)
    n, _, height, width = x.shape
    rows, across = columns.shape[:2]
    out = (
        n,
        columns.shape[3],
        height + 2 * padding[0] - dilation[0] * (rows - 1),
        width + 2 * padding[1] - dilation[1] * (across - 1),
    )
    offsets = [
        (i * dilation[0] - padding[0], j * dilation[1] - padding[1]) for i in range(rows) for j in range(across)
    ]
    planes = None if operands is None else t.builder.of_operands(operands)
    parts = [features] if planes is None else [features, planes]
    result = t.builder.convolution(parts, offsets, columns.flatten(0, 1), bias, out)
    if operands is None or planes is not None:
        return result
    whole = columns.permute(3, 2, 0, 1)
    return t.builder.combined(
        "add", result, t.builder.map(t.operands.convolved(operands, whole, padding, dilation))
    )


@lowers("im2col")
def _unfold(t: Trace, call: Call, x: View, *windows: Sequence[int]) -> Map:
    """Elements are only moved, but PyTorch moves no integers here."""
    return t.builder.map(call.operator(t.map(x).addresses.double(), *windows).long())


def _ungrouped(columns: Tensor, groups: int) -> Tensor:
    """[..., in / groups, out] -> [..., in, out], zero where the groups differ."""
    return torch.cat(
        [
            F.pad(part, (g * part.shape[-1], (groups - 1 - g) * part.shape[-1]))
            for g, part in enumerate(columns.chunk(groups, -1))
        ],
        -2,
    )


# -- over the channels of a pixel


def _product(t: Trace, x: Map, matrix: Tensor, bias: Tensor | None = None) -> Map:
    """x [..., in] times a matrix [in, out]."""
    weight = matrix.T[:, :, None, None]
    return t.builder.by_pixel(x, lambda part: _convolved(t, part, weight, bias))


@lowers("mm", "bmm", "mv", "addmm", "baddbmm", "linear")
def _matmul(t: Trace, call: Call, *args: Any, beta: float = 1, alpha: float = 1) -> Map:
    kind = _plain(call)
    if kind == "linear":
        return _product(
            t, t.map(args[0]), t.constant(args[1]).T, t.constant(args[2]) if len(args) > 2 else None
        )
    bias, (x, y) = (args[0], args[1:]) if len(args) == 3 else (None, args)
    if t.depends_on_image(x) and t.depends_on_image(y):
        raise Unsupported("only the product of features with a constant matrix is supported")
    if kind == "mv":
        if not t.depends_on_image(x):
            raise Unsupported("only the product of features with a constant vector is supported")
        return t.builder.map(_product(t, t.map(x), t.constant(y)[:, None]).addresses[..., 0])
    if not t.depends_on_image(y):
        result = _times_matrices(t, t.map(x), t.constant(y))
    else:
        turned = t.builder.map(t.map(y).addresses.mT)
        result = t.builder.map(_times_matrices(t, turned, t.constant(x).mT).addresses.mT)
    if alpha != 1:
        result = t.builder.combined("multiply", result, t.map(float(alpha)))
    return result if bias is None or beta == 0 else t.builder.combined("add", result, t.map(bias), float(beta))


def _times_matrices(t: Trace, x: Map, matrix: Tensor) -> Map:
    """[..., M, K] times [..., K, O]; the matrices of a batch may differ."""
    if matrix.dim() == 2 or bool((matrix == matrix[:1]).all()):
        return _product(t, x, matrix if matrix.dim() == 2 else matrix[0])
    parts = [_product(t, t.builder.map(x.addresses[b]), matrix[b]).addresses for b in range(len(matrix))]
    return t.builder.map(torch.stack(parts))


@lowers(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_batch_norm_no_update"
)
def _batch_norm(
    t: Trace, call: Call, x: View, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> list:
    training, eps = any(r is True for r in rest), float(rest[-1])
    if training or mean is None or variance is None:
        raise Unsupported(
            "the batch's own statistics mix pixels and images, as instance_norm does; call model.eval()"
        )
    weight, bias, mean, variance = (t.constant(part) for part in (weight, bias, mean, variance))
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    if t.map(x).source is not None:
        return [_then(t, t.map(x), (scale, shift))]
    shape = (-1,) + (1,) * (len(x.size) - 2)
    scaled = t.builder.combined("multiply", t.map(x), t.map(scale.view(shape)))
    return [t.builder.combined("add", scaled, t.map(shift.view(shape)))]


@lowers("native_layer_norm")
def _layer_norm(
    t: Trace, call: Call, x: View, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> list[Map]:
    addresses = t.map(x).addresses
    normed = t.builder.layer_norm(t.builder.map(addresses.flatten(-len(shape))), eps)
    result = t.builder.map(normed.addresses.view(addresses.shape))
    if weight is not None:
        result = t.builder.combined("multiply", result, t.map(weight))
    return [result if bias is None else t.builder.combined("add", result, t.map(bias))]


def _together(x: Map, dims: Any, keepdim: bool) -> tuple[Tensor, list[int]]:
    """-> (addresses of x, with the elements that are reduced together along the last axis; the shape of the result).

    dims: an axis, several, or none for all.
    """
    shape = x.shape
    reduced = sorted(d % len(shape) for d in ([dims] if isinstance(dims, int) else dims or range(len(shape))))
    last = x.addresses.movedim(reduced, list(range(-len(reduced), 0))).flatten(-len(reduced))
    return last, [1 if d in reduced else size for d, size in enumerate(shape) if keepdim or d not in reduced]


def _one_by_one(t: Trace, kind: str, elements: Tensor) -> Map:
    """Combines the elements along the last axis."""
    result, *others = (t.builder.map(part) for part in elements.unbind(-1))
    for other in others:
        result = t.builder.combined(kind, result, other)
    return result


MOST_PARTS = 64  # of what is combined one by one


def _total(t: Trace, x: Map, dims: Any, keepdim: bool, mean: bool = False) -> Map:
    """The sum or the mean over channels of a pixel, or over axes along which maps are stacked."""
    elements, shape = _together(x, dims, keepdim)
    count = elements.shape[-1]
    scale = 1 / count if mean else 1.0
    rows = elements.reshape(-1, count)
    if count <= MOST_PARTS and len(t.space.source_of(rows[len(rows) // 2]).unique()) == count:  # several maps
        total = _one_by_one(t, "add", elements)
        if scale != 1:
            total = t.builder.combined("multiply", total, t.map(scale))
    else:
        matrix = torch.full((count, 1), scale, dtype=t.builder.dtype, device=t.builder.device)
        try:
            total = _product(t, t.builder.map(elements), matrix)
        except Unsupported:
            raise Unsupported(
                "only the channels of a pixel may be summed, and pixels lie along these axes"
            ) from None
    return t.builder.map(total.addresses.reshape(shape))


@lowers("mean", "sum")
def _sum(t: Trace, call: Call, x: View, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Map:
    return _total(t, t.map(x), dims, keepdim, mean=_plain(call) == "mean")


@lowers("cumsum")
def _cumsum(t: Trace, call: Call, x: View, dim: int, *, dtype: Any = None) -> Map:
    elements = t.map(x).addresses.movedim(dim, -1)
    count = elements.shape[-1]
    matrix = torch.ones(count, count, dtype=t.builder.dtype, device=t.builder.device).triu()
    return t.builder.map(_product(t, t.builder.map(elements), matrix).addresses.movedim(-1, dim))


@lowers("var", "std", "var_mean", "std_mean")
def _variance(
    t: Trace, call: Call, x: View, dims: Any = None, *, correction: float = 1, keepdim: bool = False
) -> list[Map]:
    whole = t.map(x)
    mean = _total(t, whole, dims, True, mean=True)
    centred = t.builder.materialised(t.builder.combined("add", whole, mean, -1.0))
    total = _total(t, t.builder.combined("multiply", centred, centred), dims, keepdim)
    count = whole.shape.numel() // mean.shape.numel()
    spread = t.builder.combined("multiply", total, t.map(1 / (count - correction)))
    if _plain(call).startswith("std"):
        spread = _then(t, spread, Step("power", 0.5))
    return [spread, _total(t, whole, dims, keepdim, mean=True)][: len(call.results)]


@lowers("linalg_vector_norm", "norm")
def _norm(t: Trace, call: Call, x: View, order: float = 2, dims: Any = None, keepdim: bool = False) -> Map:
    if order not in (1, 2):
        raise Unsupported(f"order {order}; only 1 and 2 are supported")
    whole = t.builder.materialised(t.map(x))
    if order == 1:
        return _total(t, _absolute(t, whole), dims, keepdim)
    return _then(t, _total(t, t.builder.combined("multiply", whole, whole), dims, keepdim), Step("power", 0.5))


@lowers("amax", "amin", "prod")
def _folded(
    t: Trace, call: Call, x: View, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Map:
    elements, shape = _together(t.map(x), dims, keepdim)
    if elements.shape[-1] > MOST_PARTS:
        raise Unsupported(f"it combines {elements.shape[-1]} elements, one by one")
    kind = {"amax": "maximum", "amin": "minimum", "prod": "multiply"}[_plain(call)]
    return t.builder.map(_one_by_one(t, kind, elements).addresses.reshape(shape))


# -- the library's own ops


@lowers("masked_conv2d")
def _masked_conv2d(
    t: Trace,
    call: Call,
    x: View,
    weight: View,
    bias: Any,
    mask: View,
    padding: Any,
    dilation: Any,
    *backend: Any,
) -> Map:
    masked = t.constant(weight) * t.constant(mask)
    return _convolved(t, t.map(x), masked, t.constant(bias), tuple(padding), tuple(dilation))


@lowers("masked_conv_block")
def _masked_conv_block(
    t: Trace, call: Call, x: View, weight: View, bias: Any, mask: View, scale: Any, shift: Any, condition: Any,
    residual: Any, activation: str, alpha: float, padding: Any, dilation: Any, *backend: Any,
) -> Map:  # fmt: skip
    y = _masked_conv2d(t, call, x, weight, bias, mask, padding, dilation)
    for kind, term in (("multiply", scale), ("add", shift), ("add", condition)):
        if term is not None:
            y = t.builder.combined(kind, y, t.builder.map(t.map(term).addresses[..., None, None]))
    if residual is not None:
        y = t.builder.combined("add", y, t.map(residual))
    return y if activation == "none" else _then(t, y, Step(activation, alpha))


@lowers("gated_activation")
def _gated_activation(t: Trace, call: Call, x: View, condition: Any, *backend: Any) -> Map:
    y = t.map(x)
    if condition is not None:
        term = t.map(condition).addresses
        y = t.builder.combined("add", y, t.builder.map(term if term.dim() == 4 else term[..., None, None]))
    a, b = (t.builder.map(part) for part in t.builder.materialised(y).addresses.chunk(2, 1))
    return t.builder.combined("multiply", _then(t, a, Step("tanh")), _then(t, b, Step("sigmoid")))


# -- the ends of a model


@lowers("_log_softmax")
def _log_softmax(t: Trace, call: Call, x: View, dim: int, half_to_float: bool = False) -> Map:
    return log_softmax(t.builder, t.map(x), dim)


@lowers("_softmax")
def _softmax(t: Trace, call: Call, x: View, dim: int, half_to_float: bool = False) -> Map:
    return closing(t.builder, "softmax", log_softmax(t.builder, t.map(x), dim))


@lowers("exp")
def _exp(t: Trace, call: Call, x: View) -> Map:
    if made_by(t.builder, "log_softmax", t.map(x)) is not None:
        return closing(t.builder, "softmax", t.map(x))
    return _stepped(t, call, x, [Step("exp")])


def _inverse(t: Trace, x: Map, kind: str) -> Map | None:
    """What a step, or a closing softmax, was applied to, if it was."""
    taken_of = made_by(t.builder, kind, x)
    return None if taken_of is None else t.builder.map(t.space.moved(x.addresses, taken_of))


@lowers("log")
def _log(t: Trace, call: Call, x: View) -> Map:
    return _inverse(t, t.map(x), "softmax") or _stepped(t, call, x, [Step("log")])


@lowers("logit")
def _logit(t: Trace, call: Call, x: View, eps: float | None = None) -> Map:
    if (logits := _inverse(t, t.map(x), "sigmoid")) is not None:
        return logits
    p = t.builder.materialised(t.map(x))
    if eps is not None:
        p = _then(t, p, *_bounds(eps, 1 - eps))
    return t.builder.combined("add", _then(t, p, Step("log")), _then(t, p, (-1.0, 1.0), Step("log")), -1.0)


# -- levels


@lowers("embedding")
def _embedding(t: Trace, call: Call, weight: View, levels: View, *settings: Any, **named: Any) -> Map:
    return _looked_up(t, t.constant(weight), levels)


def _looked_up(t: Trace, table: Tensor, levels: View) -> Map:
    """Rows of a table [rows, ...] -> [*levels.shape, ...]"""
    width = table[0].numel()

    def rows(column: Tensor) -> Tensor:
        return table.detach().reshape(len(table), width)[column.long()]

    found = tabulated(t.builder, [t.map(levels)], rows, width=width).addresses
    return t.builder.map(found.reshape(*found.shape[:-1], *table.shape[1:]))


@lowers("index")
def _index(t: Trace, call: Call, x: View, indices: Sequence[View | None]) -> Map:
    first, *others = indices
    if first is None or any(i is not None for i in others):
        raise Unsupported("an index that is not constant is supported only alone, and on the first axis")
    return _looked_up(t, t.constant(x), first)


@lowers("index_select")
def _index_select(t: Trace, call: Call, x: View, dim: int, index: View) -> Map:
    found = _looked_up(t, t.constant(x).movedim(dim, 0), index)
    return t.builder.map(found.addresses.movedim(0, dim))


@lowers("scatter")
def _scatter(t: Trace, call: Call, x: View, dim: int, index: View, value: Any) -> Map:
    """One-hot vectors: scattered into zeros."""
    into, at = t.map(x).addresses, t.map(index).addresses
    if isinstance(value, View) and bool((t.constant(value) == t.constant(value).view(-1)[:1]).all()):
        value = t.constant(value).view(-1)[0].item()
    if isinstance(value, View) or bool(into.any()) or at.shape[dim] != 1:
        raise Unsupported("its index depends on the image; supported is F.one_hot(x, classes)")
    width = into.shape[dim]

    def one_hot(column: Tensor) -> Tensor:
        return F.one_hot(column.long(), width) * value

    found = tabulated(t.builder, [t.builder.map(at.squeeze(dim))], one_hot, width=width)
    return t.builder.map(found.addresses.movedim(-1, dim))


def by_table(t: Trace, call: Call) -> Map:
    """Any pointwise call on one level of the image and constants."""
    if torch.Tag.pointwise not in call.operator.tags and _plain(call) not in POINTWISE_TOO:
        raise Unsupported("this call is not supported")
    args = list(call.args)
    images = [i for i, x in enumerate(args) if isinstance(x, View) and t.depends_on_image(x)]
    others = [i for i, x in enumerate(args) if isinstance(x, View) and i not in images]
    operator = functional(call.name)

    def function(*columns: Tensor) -> Tensor:
        filled = [*args]
        for i, column in zip([*images, *others], columns, strict=True):
            filled[i] = (column if args[i].size else column[0]).to(
                args[i].dtype
            )  # a number's dtype counts for less
        return operator(*filled, **call.kwargs)

    constants = [t.map(args[i]).addresses for i in others]
    return tabulated(t.builder, [t.map(args[i]) for i in images], function, constants)


def cast(t: Trace, call: Call, x: View, dtype: torch.dtype) -> Map:
    """x, converted to another dtype by a call."""
    before = x.dtype
    widens = (
        dtype.is_floating_point
        and before.is_floating_point
        and torch.finfo(dtype).eps <= torch.finfo(before).eps
    )
    if dtype == before or widens:
        return t.map(x)
    try:
        result = by_table(t, call)
    except Unsupported:
        if dtype.is_floating_point and not before.is_floating_point and before != torch.bool:
            return t.map(x)
        raise Unsupported(f"it rounds to {dtype}") from None
    if before.is_floating_point and not dtype.is_floating_point and not tells_levels_apart(t.builder, result):
        raise Unsupported(f"it rounds to {dtype}, and levels become alike: is image_form right?")
    return result


def _plain(call: Call) -> str:
    """The operation's name: 'add' for 'aten::add_.Tensor'."""
    return plain_name(call.name)
