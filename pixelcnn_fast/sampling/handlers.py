"""What each call does to feature maps. A handler takes (recorder, output, *args, **kwargs) of a call whose arguments
hold a feature map, and returns what the output is; it raises Unsupported for what has no place in a program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.sampling.addresses import FeatureMap
from pixelcnn_fast.sampling.marks import Condition, Unsupported
from pixelcnn_fast.sampling.program import Step
from pixelcnn_fast.sampling.spelled_out import FORMULAS

if TYPE_CHECKING:
    from pixelcnn_fast.sampling.capture import Recorder

# Calls that only move elements about: they are run on the elements' addresses.
MOVEMENTS = frozenset(
    "view reshape view_as reshape_as flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t T mT "
    "squeeze unsqueeze expand expand_as broadcast_to repeat repeat_interleave tile chunk split split_with_sizes "
    "tensor_split unbind cat concat concatenate stack hstack vstack getitem narrow select index_select roll flip "
    "contiguous clone copy zero channel_shuffle pixel_unshuffle pixel_shuffle constant_pad_nd".split()
)
# Calls whose result does not depend on their argument's values.
FRESH = frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full "
    "new_tensor".split()
)

CASTS = "to float double half bfloat16 long int bool type type_as".split()
# Calls whose result may not fit the type of small integers.
ARITHMETIC = frozenset("add sub subtract rsub mul multiply neg negative pow square".split())

# Calls that take a feature map, beside their first argument, for its shape or dtype alone.
LIKE = frozenset("expand_as view_as reshape_as type_as to".split())
# Those of the movements that also take what depends on the condition alone.
JOINS = frozenset("cat concat concatenate stack hstack vstack".split())


def is_in_place(func: Callable) -> bool:
    """Whether a call changes its first argument: add_, __iadd__, __setitem__."""
    name = getattr(func, "__name__", "")
    if name.endswith("__"):
        return name.strip("_") in ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior", "setitem")
    return name.endswith("_")


def plain_name(func: Callable) -> str:
    """'__iadd__', '__radd__', 'add_' and 'add' are one operation: in place or not is seen from the result."""
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # of a property, such as Tensor.T
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    if name.startswith("__") and name.endswith("__"):
        name = name.strip("_")
        return {"iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul", "itruediv": "div",
                "truediv": "div"}.get(name, name)  # fmt: skip
    return name.rstrip("_")


def _pair(x: Any) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (x[0], x[-1])


def _conv2d(
    r: Recorder, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> FeatureMap:  # fmt: skip
    if _pair(stride) != (1, 1):
        raise Unsupported(f"stride {stride}; only stride 1 is supported")
    if output.dim() != 4:
        raise Unsupported(f"its argument has shape {list(input.shape)}, which is not [N, channels, H, W]")
    x, weight = r.feature_map(input), r.constant(weight).detach()
    (dil_y, dil_x), (_, _, height, width) = _pair(dilation), weight.shape
    if padding == "same":
        pad_y, pad_x = dil_y * (height - 1) // 2, dil_x * (width - 1) // 2
    else:
        pad_y, pad_x = (0, 0) if padding == "valid" else _pair(padding)
    columns = weight.permute(2, 3, 1, 0).contiguous()  # [kernel rows, kernel columns, in, out]
    if groups > 1:
        columns = _ungrouped(columns, groups)
    taps = [(i * dil_y - pad_y, j * dil_x - pad_x, columns[i, j]) for i in range(height) for j in range(width)]
    return r.recording.convolution(x, taps, r.constant(bias), output.shape)


def _ungrouped(columns: Tensor, groups: int) -> Tensor:
    """[..., in / groups, out] -> [..., in, out], zero where the groups differ."""
    return torch.cat(
        [
            F.pad(part, (g * part.shape[-1], (groups - 1 - g) * part.shape[-1]))
            for g, part in enumerate(columns.chunk(groups, -1))
        ],
        -2,
    )


def _linear(
    r: Recorder, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> FeatureMap:
    return r.recording.linear(r.feature_map(input), r.constant(weight), r.constant(bias))


def _batch_norm(
    r: Recorder, output: Tensor, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> FeatureMap:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise Unsupported(
            "batch norm over the batch's own statistics mixes pixels and images; call model.eval()"
        )
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - running_mean * scale
    shape = (-1,) + (1,) * (input.dim() - 2)
    x = r.recording.with_constant("multiply", r.feature_map(input), scale.view(shape))
    return r.recording.with_constant("add", x, shift.view(shape))


def _layer_norm(
    r: Recorder, output: Tensor, input: Tensor, normalized_shape: Any, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> FeatureMap:  # fmt: skip
    x = r.recording.layer_norm(r.feature_map(input), len(normalized_shape), eps)
    if weight is not None:
        x = r.recording.with_constant("multiply", x, r.constant(weight))
    return x if bias is None else r.recording.with_constant("add", x, r.constant(bias))


def _activation(name: str, default: float = 1.0, argument: str = "alpha", keeps_zero: bool = True) -> Callable:
    def handler(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
        number = kwargs.get(argument, args[0] if args and not isinstance(args[0], bool) else default)
        step = Step(name, float(number))
        return r.recording.pointwise(r.feature_map(input), lambda _: [step], keeps_zero)

    return handler


def _gelu(r: Recorder, output: Tensor, input: Tensor, approximate: str = "none") -> FeatureMap:
    step = Step("gelu" if approximate == "none" else "gelu_tanh")
    return r.recording.pointwise(r.feature_map(input), lambda _: [step], keeps_zero=True)


def _softplus(
    r: Recorder, output: Tensor, input: Tensor, beta: float = 1.0, threshold: float = 20.0
) -> FeatureMap:
    if threshold != 20:
        raise Unsupported(f"softplus with threshold {threshold}; only 20 is supported")
    step = Step("softplus", float(beta))
    return r.recording.pointwise(r.feature_map(input), lambda _: [step], keeps_zero=False)


def _prelu(r: Recorder, output: Tensor, input: Tensor, weight: Tensor) -> FeatureMap:
    """relu(x) - weight * relu(-x)"""
    x, recording, relu = r.feature_map(input), r.recording, [Step("relu")]
    below = recording.pointwise(recording.affine(x, -1.0, 0.0), lambda _: relu, keeps_zero=True)
    weight = r.constant(weight).detach().view(-1, *[1] * (input.dim() - 2))
    below = recording.with_constant("multiply", below, weight)
    return recording.pairwise("add", recording.pointwise(x, lambda _: relu, keeps_zero=True), below, -1.0)


def _glu(r: Recorder, output: Tensor, input: Tensor, dim: int = -1) -> FeatureMap:
    space, recording = r.recording.space, r.recording
    a, b = (FeatureMap(space, addresses=x) for x in r.feature_map(input).addresses.chunk(2, dim))
    gate = recording.pointwise(b, lambda _: [Step("sigmoid")], keeps_zero=False)
    return recording.pairwise("multiply", a, gate)


def _matmul(r: Recorder, output: Tensor, input: Tensor, other: Tensor) -> FeatureMap:
    if r.mark(other) is not None or other.dim() != 2:
        raise Unsupported("only features, on the last axis, times a constant matrix")
    return r.recording.linear(r.feature_map(input), other.detach().T, None)


def _power(exponent: float) -> Callable:
    def handler(r: Recorder, output: Tensor, input: Tensor) -> FeatureMap:
        step = Step("power", exponent)
        return r.recording.pointwise(r.feature_map(input), lambda _: [step], keeps_zero=exponent > 0)

    return handler


def _pow(r: Recorder, output: Tensor, input: Any, exponent: Any) -> FeatureMap:
    if not isinstance(exponent, (int, float)):
        raise Unsupported("an exponent that is not a number")
    return _power(float(exponent))(r, output, input)


# -- arithmetic


def _combined(r: Recorder, kind: str, x: Any, y: Any, alpha: float = 1.0) -> FeatureMap:
    """x + alpha * y, or x * y, where at least one is a feature map."""
    if not isinstance(r.mark(x), FeatureMap):
        if alpha != 1.0:
            y, alpha = r.recording.affine(r.feature_map(y), alpha, 0.0), 1.0
        x, y = y, x
    x = x if isinstance(x, FeatureMap) else r.feature_map(x)
    mark = r.mark(y)
    if isinstance(mark, FeatureMap):
        return r.recording.pairwise(kind, x, mark, alpha)
    if isinstance(mark, Condition):
        return r.recording.with_condition(kind, x, mark, y, alpha)
    return r.recording.with_constant(kind, x, torch.as_tensor(y, dtype=r.recording.dtype), alpha)


def _add(r: Recorder, output: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> FeatureMap:
    return _combined(r, "add", input, other, alpha)


def _sub(r: Recorder, output: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> FeatureMap:
    return _combined(r, "add", input, other, -alpha)


def _reflected_sub(r: Recorder, output: Tensor, input: Tensor, other: Any) -> FeatureMap:
    return _combined(r, "add", other, input, -1.0)


def _mul(r: Recorder, output: Tensor, input: Any, other: Any) -> FeatureMap:
    return _combined(r, "multiply", input, other)


def _div(r: Recorder, output: Tensor, input: Any, other: Any) -> FeatureMap:
    mark = r.mark(other)
    if isinstance(mark, Condition):
        return _combined(r, "multiply", input, r.condition(torch.reciprocal, other))
    if mark is None:
        return _combined(r, "multiply", input, 1 / torch.as_tensor(other, dtype=r.recording.dtype))
    inverse = r.recording.pointwise(r.feature_map(other), lambda _: [Step("power", -1.0)], keeps_zero=False)
    if isinstance(r.mark(input), FeatureMap):
        return r.recording.pairwise("multiply", r.feature_map(input), inverse)
    return r.recording.with_constant(
        "multiply", inverse, torch.as_tensor(r.constant(input), dtype=r.recording.dtype)
    )


def _reflected_div(r: Recorder, output: Tensor, input: Tensor, other: Any) -> FeatureMap:
    return _div(r, output, other, input)


def _neg(r: Recorder, output: Tensor, input: Tensor) -> FeatureMap:
    return r.recording.affine(r.feature_map(input), -1.0, 0.0)


def _mean(
    r: Recorder, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> FeatureMap:
    count = input.numel() // max(output.numel(), 1)
    return _channel_sum(r, input, dim, keepdim, 1 / count)


def _sum(
    r: Recorder, output: Tensor, input: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> FeatureMap:
    return _channel_sum(r, input, dim, keepdim, 1.0)


def _channel_sum(r: Recorder, input: Tensor, dim: Any, keepdim: bool, scale: float) -> FeatureMap:
    if not isinstance(dim, int) and (dim is None or len(dim) != 1):
        raise Unsupported("a sum over more than one axis; only the channels of a pixel may be summed")
    dim = dim if isinstance(dim, int) else dim[0]
    x = r.feature_map(input).addresses.movedim(dim, -1)
    if r.recording.space.is_stack(x):
        return _sum_of_parts(r, x.movedim(-1, dim), dim, keepdim, scale)
    weight = torch.full((1, x.shape[-1]), scale, dtype=r.recording.dtype, device=r.recording.device)
    total = r.recording.linear(FeatureMap(r.recording.space, addresses=x), weight, None).addresses
    total = total.movedim(-1, dim)
    return FeatureMap(r.recording.space, addresses=total if keepdim else total.squeeze(dim))


def _sum_of_parts(r: Recorder, addresses: Tensor, dim: int, keepdim: bool, scale: float) -> FeatureMap:
    total, *others = (FeatureMap(r.recording.space, addresses=x) for x in addresses.unbind(dim))
    for part in others:
        total = r.recording.pairwise("add", total, part)
    if scale != 1:
        total = r.recording.affine(total, scale, 0.0)
    return FeatureMap(r.recording.space, addresses=total.addresses.unsqueeze(dim)) if keepdim else total


# -- the rest


def _identity(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
    return r.feature_map(input)


def _cast(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
    x = r.feature_map(input)
    if not input.is_floating_point():
        levels = torch.arange(r.levels)
        if not torch.equal(levels.to(output.dtype).long(), levels) or not torch.equal(output.double(), input.double()):
            raise Unsupported(f"{output.dtype} does not hold all of {r.levels} levels")
    if input.is_floating_point() and not _keeps(input.dtype, output.dtype):
        levels = r.holds_levels and r.recording.space.values(x.addresses) == [0]
        if not levels:
            raise Unsupported(f"it rounds {input.dtype} to {output.dtype}")
    return x


def _keeps(before: torch.dtype, after: torch.dtype) -> bool:
    return after.is_floating_point and torch.finfo(after).eps <= torch.finfo(before).eps


def _dropout(
    r: Recorder, output: Tensor, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
):
    if training and p:
        raise Unsupported("dropout in training mode; call model.eval()")
    return r.feature_map(input)


def _inverse(kind: str, maker: str) -> Callable:
    """Of what that step made: what went into it."""

    def handler(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
        x = r.feature_map(input)
        taken_of = r.recording.made_by(kind, x)
        if taken_of is None:
            raise Unsupported(f"of something that is not a {maker}")
        return FeatureMap(r.recording.space, addresses=r.recording.space.moved(x.addresses, taken_of))

    return handler


def _log_softmax(
    r: Recorder, output: Tensor, input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any
) -> FeatureMap:
    if dim is None:
        raise Unsupported("no axis is named: pass dim=")
    return r.recording.log_softmax(r.feature_map(input), dim)


def _softmax(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
    logarithms = _log_softmax(r, output, input, *args, **kwargs)
    return r.recording.pointwise(logarithms, lambda _: [Step("exp")], keeps_zero=False)


def _exp(r: Recorder, output: Tensor, input: Tensor) -> FeatureMap:
    x = r.feature_map(input)
    if r.recording.made_by("log_softmax", x) is None:
        return _spelled_out("exp")(r, output, input)
    return r.recording.pointwise(x, lambda _: [Step("exp")], keeps_zero=False)


def _clamp_min(r: Recorder, output: Tensor, input: Tensor, min: float) -> FeatureMap:
    x = r.feature_map(input)
    of_probabilities = r.recording.made_by("exp", x) is not None
    if of_probabilities and min <= torch.finfo(input.dtype).tiny:  # less than any that matters
        return x
    return _spelled_out("clamp_min")(r, output, input, min)


def _spelled_out(name: str) -> Callable:
    def handler(r: Recorder, output: Tensor, *args: Any, **kwargs: Any) -> Any:
        with r:
            return r.mark(FORMULAS[name](*args, **kwargs))

    return handler


def _where(r: Recorder, output: Tensor, condition: Any, input: Any, other: Any) -> FeatureMap:
    if not (isinstance(condition, Tensor) and condition.dtype == torch.bool):
        condition, input = input, condition  # Tensor.where(self, condition, other)
    chosen = r.constant(condition).cpu()
    sides = [r.addresses(x if isinstance(x, Tensor) else output.new_full((), x), output.shape) for x in (input, other)]
    return FeatureMap(r.recording.space, addresses=torch.where(chosen, *sides))


def _masked_fill(r: Recorder, output: Tensor, input: Tensor, mask: Tensor, value: Any) -> FeatureMap:
    return _where(r, output, mask, value, input)


def _pad(
    r: Recorder, output: Tensor, input: Tensor, pad: Any, mode: str = "constant", value: float | None = None
) -> FeatureMap:
    if mode != "constant" or value:
        raise Unsupported(f"padding {mode!r} with {value}; only zeros are supported")
    return FeatureMap(r.recording.space, addresses=F.pad(r.feature_map(input).addresses, tuple(pad)))


def _one_hot(r: Recorder, output: Tensor, tensor: Tensor, num_classes: int = -1) -> FeatureMap:
    if num_classes < 0:
        raise Unsupported("one_hot without num_classes takes the number from the image: pass it")
    return r.recording.looked_up(r.feature_map(tensor), torch.eye(num_classes, device=r.recording.device))


def _embedding(
    r: Recorder, output: Tensor, input: Tensor, weight: Tensor, padding_idx: Any = None, max_norm: Any = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> FeatureMap:  # fmt: skip
    if max_norm is not None:
        raise Unsupported("an embedding with max_norm")
    return r.recording.looked_up(r.feature_map(input), r.constant(weight))


HANDLERS: dict[str, Callable[..., Any]] = {
    **{name: _spelled_out(name) for name in FORMULAS},
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    **{name: _activation(name) for name in ("relu", "elu", "silu", "tanh", "hardswish")},
    "sigmoid": _activation("sigmoid", keeps_zero=False),
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
    "log": _inverse("exp", "softmax"),
    "clamp_min": _clamp_min,
    "exp": _exp,
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
