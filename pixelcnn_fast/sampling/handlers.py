"""What each call does to feature maps. A handler takes (recorder, output, *args, **kwargs) of a call whose arguments
hold a feature map, and returns what the output is; it raises Unsupported for what has no place in a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pixelcnn_fast.sampling.marks import Axis, FeatureMap, Unsupported
from pixelcnn_fast.sampling.program import ACTIVATIONS, Step

if TYPE_CHECKING:
    from pixelcnn_fast.sampling.capture import Recorder


def plain_name(func: Callable) -> str:
    """'__iadd__', '__radd__', 'add_' and 'add' are one operation: in place or not is seen from the result."""
    name = getattr(func, "__name__", str(func))
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
    if groups != 1:
        raise Unsupported(f"{groups} groups; only one is supported")
    (dil_y, dil_x), (_, _, height, width) = _pair(dilation), weight.shape
    if padding == "same":
        pad_y, pad_x = dil_y * (height - 1) // 2, dil_x * (width - 1) // 2
    else:
        pad_y, pad_x = (0, 0) if padding == "valid" else _pair(padding)
    columns = weight.detach().permute(2, 3, 1, 0)
    taps = [(i * dil_y - pad_y, j * dil_x - pad_x, columns[i, j]) for i in range(height) for j in range(width)]
    return r.convolution(output, input, taps, bias)


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
    return r.affine(input, scale[:, None, None], shift[:, None, None])


def _activation(name: str, default: float = 1.0, argument: str = "alpha") -> Callable:
    def handler(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
        number = kwargs.get(argument, args[0] if args and not isinstance(args[0], bool) else default)
        return r.step(input, Step(name, float(number)))

    return handler


def _add(r: Recorder, output: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> FeatureMap:
    return r.combine("add", input, other, alpha)


def _sub(r: Recorder, output: Tensor, input: Any, other: Any, *, alpha: float = 1.0) -> FeatureMap:
    return r.combine("add", input, other, -alpha)


def _mul(r: Recorder, output: Tensor, input: Any, other: Any) -> FeatureMap:
    return r.combine("multiply", input, other)


def _div(r: Recorder, output: Tensor, input: Any, other: Any) -> FeatureMap:
    if r.mark(other) is not None:
        raise Unsupported("division by something that depends on the image or the condition")
    return r.combine("multiply", input, 1 / other)


def _neg(r: Recorder, output: Tensor, input: Tensor) -> FeatureMap:
    return r.affine(input, -1.0, 0.0)


def _identity(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
    return r.feature_map(input)


def _cast(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
    if input.is_floating_point() and not output.is_floating_point():
        raise Unsupported(f"it rounds {input.dtype} to {output.dtype}")
    return r.feature_map(input)


def _dropout(
    r: Recorder, output: Tensor, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
):
    if training and p:
        raise Unsupported("dropout in training mode; call model.eval()")
    return r.feature_map(input)


def _logit(r: Recorder, output: Tensor, input: Tensor, eps: float | None = None) -> FeatureMap:
    """Of a sigmoid: what went into it."""
    mark = r.feature_map(input)
    producer = r.instructions[mark.value]
    if producer.base is None or [step.kind for step in producer.steps] != ["sigmoid"]:
        raise Unsupported("logit of something that is not a sigmoid")
    return replace(mark, value=producer.base)


def _reshape(r: Recorder, output: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> FeatureMap:
    axes = list(r.feature_map(input).axes)
    result: list[Axis] = []
    for size in output.shape:
        if not axes and size != 1:
            break
        if axes and axes[0].size == size:
            result.append(axes.pop(0))
        elif axes and axes[0].kind == "C" and axes[0].size % size == 0:  # split
            whole = axes.pop(0)
            rest = whole.size // size
            result.append(Axis("C", size, whole.stride * rest))
            axes.insert(0, Axis("C", rest, whole.stride))
        else:  # merge
            merged = axes.pop(0) if axes else Axis("C", 1)
            while axes and merged.kind == axes[0].kind == "C" and merged.size < size:
                if merged.stride != axes[0].size * axes[0].stride:
                    break
                merged = Axis("C", merged.size * axes[0].size, axes.pop(0).stride)
            result.append(merged)
    if axes:
        raise Unsupported(f"cannot follow the axes from {list(input.shape)} to {list(output.shape)}")
    return r.relaid(output, input, tuple(result))


def _permute(r: Recorder, output: Tensor, input: Tensor, *dims: Any, **kwargs: Any) -> FeatureMap:
    order = kwargs.get("dims", dims[0] if len(dims) == 1 else dims)
    axes = r.feature_map(input).axes
    return r.relaid(output, input, tuple(axes[d] for d in order))


def _transpose(r: Recorder, output: Tensor, input: Tensor, dim0: int, dim1: int) -> FeatureMap:
    axes = list(r.feature_map(input).axes)
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return r.relaid(output, input, tuple(axes))


def _reflected_sub(r: Recorder, output: Tensor, input: Tensor, other: Any) -> FeatureMap:
    return r.combine("add", other, input, -1.0)


HANDLERS: dict[str, Callable[..., FeatureMap]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    **{name: _activation(name) for name in ACTIVATIONS},
    "leaky_relu": _activation("leaky_relu", 0.01, "negative_slope"),
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": _reflected_sub,
    "mul": _mul,
    "multiply": _mul,
    "div": _div,
    "divide": _div,
    "true_divide": _div,
    "neg": _neg,
    **{name: _identity for name in ("contiguous", "clone", "detach")},
    **{name: _cast for name in ("to", "float", "double", "long", "int", "type", "type_as")},
    "logit": _logit,
    "dropout": _dropout,
    "dropout2d": _dropout,
    **{name: _reshape for name in ("view", "reshape", "flatten", "unflatten")},
    "permute": _permute,
    "transpose": _transpose,
}
