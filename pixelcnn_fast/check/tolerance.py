"""Says how far a program may be from the model, and raises the error when it is further."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pixelcnn_fast.errors import CaptureMismatch, NonFiniteLogits
from pixelcnn_fast.heads import Head
from pixelcnn_fast.user_model.wrapped_model import WrappedModel

EXACT = 1e-9  # how far distributions may be apart if both are computed in float64


def slack(parameters: Tensor, model: WrappedModel, roundings: float, unit: float | None = None) -> Tensor:
    """How far distributions, [N, D, H, W], move if parameters move by so many roundings
    (unit: None for the model's)."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(2, parameters.shape, generator=generator).mul_(2).sub_(1)
    moved = parameters.double() * (1 + roundings * (unit or rounding_unit(model)) * sign)
    return model.head.distance(moved, parameters, model.shape[0])


def rounding_unit(model: WrappedModel) -> float:
    """The relative error of one rounding in the model's arithmetic."""
    # Not cudnn.allow_tf32, which raises where convolutions and recurrences differ.
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # torch adds it at run time
    if model.device.type == "cuda" and model.dtype == torch.float32 and conv.fp32_precision == "tf32":
        return 2.0**-11  # of TF32, in convolutions
    return torch.finfo(model.dtype).eps


UNSEEN = (
    "Something in the model depends on the image, the condition or the batch in a way that capture can't see, such as "
    "a number that is read in Python (.item(), NumPy), a branch, or what an earlier call left behind. Compute it with "
    "tensor operations"
)
WRONG = "Capture did not follow one of the model's calls"
UNDEFINED = (
    "The program divides by zero, or multiplies infinity by zero, where the model's torch.where or masked_fill leaves "
    "the result out: make what is divided by, or the exponent, harmless before. Or the scores of an attention are as "
    "small as what a mask puts in their place, such as -1e4: take -inf"
)
IMPRECISE = (
    "The program rounds more than the model: large numbers cancel in the way in which it computes one of the model's "
    "calls. Scale them down"
)


def check_error(error: Tensor, allowed: Tensor, model: WrappedModel, reason: str) -> None:
    """Raises CaptureMismatch for an error above what is allowed, or NaN. Both are [N, D, H, W]."""
    if bool((error <= allowed).all()):
        return
    worst = int((error - allowed).nan_to_num(math.inf).argmax())
    read = f" It was taken for granted that {'; '.join(model.branches)}." if model.branches else ""
    _, distribution, row, column = (int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    raise CaptureMismatch(
        f"on random images the captured program differs from the model by up to {error.flatten()[worst].item():.3g} "
        f"({model.head.distance_name}; {allowed.flatten()[worst].item():.1g} is allowed), in distribution "
        f"{distribution} at row {row}, column {column}.{read} {reason}, or use Sampler(..., runtime='reference'), "
        "which runs the model itself. If you find no such thing, please report this with the model"
    )


def check_finite(logits: Tensor, head: Head) -> None:
    """Raises NonFiniteLogits, naming the first sub-pixel. logits: [N, C, H, W, L]."""
    numbers = head.comparable(logits)
    if not bool(numbers.isfinite().all()):
        image, channel, row, column, level = (~numbers.isfinite()).nonzero()[0].tolist()
        found = numbers[image, channel, row, column, level].item()
        raise NonFiniteLogits(image, channel, row, column, found)
