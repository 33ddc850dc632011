"""What each call does to feature maps.

A lowering is called for a call that has a feature map among its arguments, as (tracer, output, *args, **kwargs), and
returns the output's mark. It raises Unsupported if the call has no place in a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.capture.builder import Builder
from pixelcnn_fast.capture.decompositions import DECOMPOSITIONS
from pixelcnn_fast.capture.shadow import ShadowMap
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.program.conditions import Condition
from pixelcnn_fast.program.program import Step


class Tracing(Protocol):
    """What a lowering may use of the tracer. Within ``with tracer:``, calls are recorded like the model's own."""

    builder: Builder
    levels: int | None
    holds_levels: bool

    def mark(self, x: Any) -> Any:
        """What is known of x: a ShadowMap, a Condition, an Opaque, or None for a constant."""

    def feature_map(self, x: Any) -> ShadowMap:
        """The feature map of x. Raises Unsupported if x is not one."""

    def constant(self, x: Any) -> Any:
        """Returns x, or raises Unsupported if it depends on the image or the condition."""

    def condition(self, func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """The result of a call on conditions, which is recorded as if the model had made it."""

    def addresses(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The addresses of x, broadcast to a shape."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *args: Any) -> Any: ...


# Calls that only move elements; they are run on the elements' addresses.
MOVEMENTS = frozenset(
    "view reshape view_as reshape_as flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t T mT "
    "squeeze unsqueeze expand expand_as broadcast_to repeat repeat_interleave tile chunk split split_with_sizes "
    "tensor_split unbind cat concat concatenate stack hstack vstack getitem narrow select index_select roll flip "
    "contiguous clone copy zero channel_shuffle pixel_unshuffle pixel_shuffle constant_pad_nd".split()
)
# Calls whose result does not depend on the values of their arguments.
FRESH = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full "
    "new_tensor".split()
)

CASTS = "to float double half bfloat16 long int bool type type_as".split()
# Calls whose result may not fit into a small integer type.
ARITHMETIC = frozenset("add sub subtract rsub mul multiply neg negative pow square".split())

# Calls that use only the shape or dtype of a feature map that is not their first argument.
LIKE = frozenset("expand_as view_as reshape_as type_as to".split())
# The movements that accept conditions as well.
JOINS = frozenset("cat concat concatenate stack hstack vstack".split())


def is_in_place(func: Callable) -> bool:
    """Whether a call changes its first argument: add_, __iadd__, __setitem__."""
    name = getattr(func, "__name__", "")
    if name.endswith("__"):
        return name.strip("_") in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior", "setitem")
    return name.endswith("_")


def plain_name(func: Callable) -> str:
    """The operation's name: 'add' for '__iadd__', '__radd__', 'add_' and 'add'. See also ``is_in_place``."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # of a property, such as Tensor.T
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        return {
            "iadd": "add",
            "radd": "add",
            "isub": "sub",
            "imul": "mul",
            "rmul": "mul",
            "itruediv": "div",
            "truediv": "div",
        }.get(name, name)
    return name.rstrip("_")


def _pair(x: Any) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


def _conv2d(
    t: Tracing,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ShadowMap:
    if _pair(stride) != (1, 1):
        raise Unsupported(f"stride {stride}; only stride 1 is supported")
    if output.dim() != 4:
        raise Unsupported(f"its argument has shape {list(input.shape)}, which is not [N, channels, H, W]")
    x, weight = t.feature_map(input), t.constant(weight).detach()
    (dil_y, dil_x), (_, _, height, width) = _pair(dilation), weight.shape
    if padding == "same":
        pad_y, pad_x = dil_y * (height - 1) // 2, dil_x * (width - 1) // 2
    else:
        pad_y, pad_x = (0, 0) if padding == "valid" else _pair(padding)
    columns = weight.permute(2, 3, 1, 0).contiguous()  # [kernel rows, kernel columns, in, out]
    if groups > 1:
        columns = _ungrouped(columns, groups)
    taps = [(i * dil_y - pad_y, j * dil_x - pad_x, columns[i, j]) for i in range(height) for j in range(width)]
    return t.builder.convolution(x, taps, t.constant(bias), output.shape)


def _ungrouped(columns: Tensor, groups: int) -> Tensor:
    """[..., in / groups, out] -> [..., in, out], zero where the groups differ."""
    return torch.cat(
        [
            F.pad(part, (g * part.shape[-1], (groups - 1 - g) * part.shape[-1]))
            for g, part in enumerate(columns.chunk(groups, -1))
        ],
        -2,
    )


def _linear(t: Tracing, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> ShadowMap:
    return t.builder.linear(t.feature_map(input), t.constant(weight), t.constant(bias))


def _batch_norm(
    t: Tracing,
    output: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ShadowMap:
    if training or running_mean is None or running_var is None:
        raise Unsupported(
            "batch norm with the batch's own statistics mixes pixels and images; call model.eval()"
        )
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    shape = (-1,) + (1,) * (input.dim() - 2)
    x = t.builder.with_constant("multiply", t.feature_map(input), scale.view(shape))
    return t.builder.with_constant("add", x, shift.view(shape))


def _layer_norm(
    t: Tracing,
    output: Tensor,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> ShadowMap:
    x = t.builder.layer_norm(t.feature_map(input), len(normalized_shape), eps)
    if weight is not None:
        x = t.builder.with_constant("multiply", x, t.constant(weight))
    return x if bias is None else t.builder.with_constant("add", x, t.constant(bias))


def _activation(name: str, default: float = 1.0, argument: str = "alpha") -> Callable:
    def lowering(t: Tracing, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> ShadowMap:
        number = kwargs.get(argument, args[0] if args and not isinstance(args[0], bool) else default)
        step = Step(name, float(number))
        return t.builder.pointwise(t.feature_map(input), lambda _: [step])

    return lowering


def _gelu(t: Tracing, output: Tensor, input: Tensor, approximate: str = "none") -> ShadowMap:
    step = Step("gelu" if approximate == "none" else "gelu_tanh")
    return t.builder.pointwise(t.feature_map(input), lambda _: [step])


def _softplus(
    t: Tracing, output: Tensor, input: Tensor, beta: float = 1.0, threshold: float = 20.0
) -> ShadowMap:
    if threshold != 20:
        raise Unsupported(f"softplus with threshold {threshold}; only 20 is supported")
    step = Step("softplus", float(beta))
    return t.builder.pointwise(t.feature_map(input), lambda _: [step])


def _prelu(t: Tracing, output: Tensor, input: Tensor, weight: Tensor) -> ShadowMap:
    """relu(x) - weight * relu(-x)"""
    x, builder, relu = t.feature_map(input), t.builder, [Step("relu")]
    below = builder.pointwise(builder.affine(x, -1.0, 0.0), lambda _: relu)
    weight = t.constant(weight).detach().view(-1, *[1] * (input.dim() - 2))
    below = builder.with_constant("multiply", below, weight)
    return builder.pairwise("add", builder.pointwise(x, lambda _: relu), below, -1.0)


def _glu(t: Tracing, output: Tensor, input: Tensor, dim: int = -1) -> ShadowMap:
    space, builder = t.builder.space, t.builder
    a, b = (ShadowMap(space, addresses=x) for x in t.feature_map(input).addresses.chunk(2, dim))
    gate = builder.pointwise(b, lambda _: [Step("sigmoid")])
    return builder.pairwise("multiply", a, gate)


def _matmul(t: Tracing, output: Tensor, input: Tensor, other: Tensor) -> ShadowMap:
    if t.mark(other) is not None or other.dim() != 2:
        raise Unsupported("only the product of features, on the last axis, with a constant matrix is supported")
    return t.builder.linear(t.feature_map(input), other.detach().T, None)


def _power(exponent: float) -> Callable:
    def lowering(t: Tracing, output: Tensor, input: Tensor) -> ShadowMap:
        step = Step("power", exponent)
        return t.builder.pointwise(t.feature_map(input), lambda _: [step])

    return lowering


def _pow(t: Tracing, output: Tensor, input: Any, exponent: Any) -> ShadowMap:
    if not isinstance(exponent, (int, float)):
        raise Unsupported("its exponent is not a number")
    return _power(float(exponent))(t, output, input)


# -- arithmetic


def _combined(t: Tracing, kind: str, x: Any, y: Any, alpha: float = 1.0) -> ShadowMap:
    """x + alpha * y, or x * y, where at least one is a feature map."""
    if not isinstance(t.mark(x), ShadowMap):
        if alpha != 1.0:
            y, alpha = t.builder.affine(t.feature_map(y), alpha, 0.0), 1.0
        x, y = y, x
    x = x if isinstance(x, ShadowMap) else t.feature_map(x)
    mark = t.mark(y)
    if isinstance(mark, ShadowMap):
        return t.builder.pairwise(kind, x, mark, alpha)
    if isinstance(mark, Condition):
        return t.builder.with_condition(kind, x, mark, y, alpha)
    return t.builder.with_constant(kind, x, torch.as_tensor(y, dtype=t.builder.dtype), alpha)


def _add(t: Tracing, output: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> ShadowMap:
    return _combined(t, "add", input, other, alpha)


def _sub(t: Tracing, output: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> ShadowMap:
    return _combined(t, "add", input, other, -alpha)


def _reflected_sub(t: Tracing, output: Tensor, input: Tensor, other: Any) -> ShadowMap:
    return _combined(t, "add", other, input, -1.0)


def _mul(t: Tracing, output: Tensor, input: Any, other: Any) -> ShadowMap:
    return _combined(t, "multiply", input, other)


def _div(t: Tracing, output: Tensor, input: Any, other: Any) -> ShadowMap:
    mark = t.mark(other)
    if isinstance(mark, Condition):
        return _combined(t, "multiply", input, t.condition(torch.reciprocal, other))
    if mark is None:
        return _combined(t, "multiply", input, 1 / torch.as_tensor(other, dtype=t.builder.dtype))
    inverse = t.builder.pointwise(t.feature_map(other), lambda _: [Step("power", -1.0)])
    if isinstance(t.mark(input), ShadowMap):
        return t.builder.pairwise("multiply", t.feature_map(input), inverse)
    return t.builder.with_constant(
        "multiply", inverse, torch.as_tensor(t.constant(input), dtype=t.builder.dtype)
    )


def _reflected_div(t: Tracing, output: Tensor, input: Tensor, other: Any) -> ShadowMap:
    return _div(t, output, other, input)


def _neg(t: Tracing, output: Tensor, input: Tensor) -> ShadowMap:
    return t.builder.affine(t.feature_map(input), -1.0, 0.0)


def _mean(
    t: Tracing, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> ShadowMap:
    count = input.numel() // max(output.numel(), 1)
    return _channel_sum(t, input, dim, keepdim, 1 / count)


def _sum(
    t: Tracing, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> ShadowMap:
    return _channel_sum(t, input, dim, keepdim, 1.0)


def _channel_sum(t: Tracing, input: Tensor, dim: Any, keepdim: bool, scale: float) -> ShadowMap:
    if not isinstance(dim, int) and (dim is None or len(dim) != 1):
        raise Unsupported("it sums over more than one axis; only the channels of a pixel may be summed")
    dim = dim if isinstance(dim, int) else dim[0]
    x = t.feature_map(input).addresses.movedim(dim, -1)
    if t.builder.space.is_stack(x):
        return _sum_of_parts(t, x.movedim(-1, dim), dim, keepdim, scale)
    weight = torch.full((1, x.shape[-1]), scale, dtype=t.builder.dtype, device=t.builder.device)
    total = t.builder.linear(ShadowMap(t.builder.space, addresses=x), weight, None).addresses
    total = total.movedim(-1, dim)
    return ShadowMap(t.builder.space, addresses=total if keepdim else total.squeeze(dim))


def _sum_of_parts(t: Tracing, addresses: Tensor, dim: int, keepdim: bool, scale: float) -> ShadowMap:
    total, *others = (ShadowMap(t.builder.space, addresses=x) for x in addresses.unbind(dim))
    for part in others:
        total = t.builder.pairwise("add", total, part)
    if scale != 1:
        total = t.builder.affine(total, scale, 0.0)
    return ShadowMap(t.builder.space, addresses=total.addresses.unsqueeze(dim)) if keepdim else total


# -- the larger or the smaller of two

LARGER, SMALLER = ("maximum", "at_least"), ("minimum", "at_most")  # than another map, and than a number


def _extreme(t: Tracing, kinds: tuple[str, str], x: Any, y: Any, shape: torch.Size) -> ShadowMap:
    """The LARGER or the SMALLER of x and y, where at least one is a feature map."""
    if not isinstance(x, ShadowMap):
        if not isinstance(t.mark(x), ShadowMap):
            x, y = y, x
        x = t.feature_map(x)
    kind, kind_with_number = kinds
    mark = t.mark(y)
    if isinstance(mark, ShadowMap):
        return t.builder.pairwise(kind, x, mark)
    if mark is None and (number := _only_number(y)) is not None:
        x = t.builder.pointwise(x, lambda _: [Step(kind_with_number, number)])
        return ShadowMap(t.builder.space, addresses=x.addresses.expand(shape))
    return t.builder.pairwise(kind, x, _combined(t, "add", y, t.builder.zeros_like(x)))


def _only_number(constant: Any) -> float | None:
    """What all elements of a constant are; None if they differ."""
    elements = torch.as_tensor(constant, dtype=torch.float64).flatten()
    return float(elements[0]) if bool((elements == elements[0]).all()) else None


def _maximum(t: Tracing, output: Tensor, input: Any, other: Any) -> ShadowMap:
    return _extreme(t, LARGER, input, other, output.shape)


def _minimum(t: Tracing, output: Tensor, input: Any, other: Any) -> ShadowMap:
    return _extreme(t, SMALLER, input, other, output.shape)


def _clamp(t: Tracing, output: Tensor, input: Any, min: Any = None, max: Any = None) -> ShadowMap:
    x = input
    for kinds, bound in ((LARGER, min), (SMALLER, max)):
        if bound is not None:
            x = _extreme(t, kinds, x, bound, output.shape)
    return x


def _clamp_max(t: Tracing, output: Tensor, input: Any, max: Any) -> ShadowMap:
    return _clamp(t, output, input, max=max)


def _clamp_min(t: Tracing, output: Tensor, input: Any, min: Any) -> ShadowMap:
    x = t.mark(input)
    if isinstance(x, ShadowMap) and t.builder.made_by("softmax", x) is not None:
        if isinstance(min, (int, float)) and min <= torch.finfo(output.dtype).tiny:
            return x  # no probability that matters is lower
    return _clamp(t, output, input, min)


# -- the rest


def _identity(t: Tracing, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> ShadowMap:
    return t.feature_map(input)


def _cast(t: Tracing, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> ShadowMap:
    x = t.feature_map(input)
    if not input.is_floating_point() and t.levels is not None:
        levels = torch.arange(t.levels)
        if not torch.equal(levels.to(output.dtype).long(), levels) or not torch.equal(
            output.double(), input.double()
        ):
            raise Unsupported(f"{output.dtype} does not hold all {t.levels} levels")
    if input.is_floating_point() and not _keeps(input.dtype, output.dtype):
        are_levels = t.holds_levels and t.builder.space.values(x.addresses) == [0]
        if not are_levels:
            raise Unsupported(f"it rounds {input.dtype} to {output.dtype}")
    return x


def _keeps(before: torch.dtype, after: torch.dtype) -> bool:
    return after.is_floating_point and torch.finfo(after).eps <= torch.finfo(before).eps


def _dropout(
    t: Tracing, output: Tensor, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
):
    if training and p:
        raise Unsupported("dropout in training mode; call model.eval()")
    return t.feature_map(input)


def _inverse(kind: str, maker: str) -> Callable:
    """Lowers the inverse of a step, which gives back what the step was applied to."""

    def lowering(t: Tracing, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> ShadowMap:
        x = t.feature_map(input)
        taken_of = t.builder.made_by(kind, x)
        if taken_of is None:
            raise Unsupported(f"its argument is not the result of a {maker}")
        return ShadowMap(t.builder.space, addresses=t.builder.space.moved(x.addresses, taken_of))

    return lowering


def _log_softmax(
    t: Tracing, output: Tensor, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
) -> ShadowMap:
    if dim is None:
        raise Unsupported("it names no axis: pass dim=")
    return t.builder.log_softmax(t.feature_map(input), dim)


def _softmax(t: Tracing, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> ShadowMap:
    logarithms = _log_softmax(t, output, input, *args, **kwargs)
    return t.builder.closing("softmax", logarithms)


def _exp(t: Tracing, output: Tensor, input: Tensor) -> ShadowMap:
    x = t.feature_map(input)
    if t.builder.made_by("log_softmax", x) is not None:
        return t.builder.closing("softmax", x)
    return t.builder.pointwise(x, lambda _: [Step("exp")])


def _log(t: Tracing, output: Tensor, input: Tensor) -> ShadowMap:
    x = t.feature_map(input)
    if t.builder.made_by("softmax", x) is not None:
        return _inverse("softmax", "softmax")(t, output, input)
    return t.builder.pointwise(x, lambda _: [Step("log")])


def _decomposed(name: str) -> Callable:
    def lowering(t: Tracing, output: Tensor, *args: Any, **kwargs: Any) -> Any:
        with t:
            return t.mark(DECOMPOSITIONS[name](*args, **kwargs))

    return lowering


def _where(t: Tracing, output: Tensor, condition: Any, input: Any, other: Any) -> ShadowMap:
    if not (isinstance(condition, Tensor) and condition.dtype == torch.bool):
        condition, input = input, condition  # Tensor.where(self, condition, other)
    chosen = t.constant(condition).cpu()
    one, two = (
        t.addresses(x if isinstance(x, Tensor) else output.new_full((), x), output.shape)
        for x in (input, other)
    )
    return ShadowMap(t.builder.space, addresses=torch.where(chosen, one, two))


def _masked_fill(t: Tracing, output: Tensor, input: Tensor, mask: Tensor, value: Any) -> ShadowMap:
    return _where(t, output, mask, value, input)


def _pad(
    t: Tracing, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", value: float | None = None
) -> ShadowMap:
    if mode != "constant" or value:
        raise Unsupported(f"padding {mode!r} with {value}; only zeros are supported")
    return ShadowMap(t.builder.space, addresses=F.pad(t.feature_map(input).addresses, tuple(pad)))


def _one_hot(t: Tracing, output: Tensor, tensor: Tensor, num_classes: int = -1) -> ShadowMap:
    if num_classes < 0:
        raise Unsupported("one_hot without num_classes takes the number of classes from the image: pass it")
    return t.builder.looked_up(t.feature_map(tensor), torch.eye(num_classes, device=t.builder.device))


def _embedding(
    t: Tracing,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> ShadowMap:
    if max_norm is not None:
        raise Unsupported("max_norm is not supported")
    return t.builder.looked_up(t.feature_map(input), t.constant(weight))


LOWERINGS: dict[str, Callable[..., Any]] = {
    **{name: _decomposed(name) for name in DECOMPOSITIONS},
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    **{name: _activation(name) for name in ("relu", "elu", "silu", "tanh", "sigmoid", "hardswish")},
    "leaky_relu": _activation("leaky_relu", 0.01, "negative_slope"),
    "gelu": _gelu,
    "glu": _glu,
    "prelu": _prelu,
    "matmul": _matmul,
    "softplus": _softplus,
    "square": _power(2.0),
    "sqrt": _power(0.5),
    "rsqrt": _power(-0.5),
    "reciprocal": _power(-1.0),
    "pow": _pow,
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _reflected_sub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "rdiv": _reflected_div,
    "neg": _neg,
    "negative": _neg,
    "mean": _mean,
    "sum": _sum,
    **{name: _identity for name in ("detach", "data")},
    **{name: _cast for name in CASTS},
    "logit": _inverse("sigmoid", "sigmoid"),
    "maximum": _maximum,
    "minimum": _minimum,
    **{name: _clamp for name in ("clamp", "clip")},
    "clamp_max": _clamp_max,
    "clamp_min": _clamp_min,
    "exp": _exp,
    "log": _log,
    "where": _where,
    "masked_fill": _masked_fill,
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "dropout": _dropout,
    "dropout2d": _dropout,
    "pad": _pad,
    "one_hot": _one_hot,
    "embedding": _embedding,
}
