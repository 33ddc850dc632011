"""``Bernoulli``: the head of models of two levels that give one number per sub-pixel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads.categorical import OfLevels
from pixelcnn_fast.telling import tell


@dataclass(frozen=True)
class Bernoulli(OfLevels):
    """Images of two levels; the model's output is [N, C, H, W], the logit of level 1 for
    each sub-pixel or, if ``probabilities``, its probability, after a sigmoid.

    eps: how close to 0 and 1 probabilities may come, by default as close as the model's dtype
    can tell apart; ``Sampler`` sets it.
    """

    probabilities: bool = False
    levels: ClassVar[int] = 2  # type: ignore[misc]  # of all such images
    layout: ClassVar[str] = "N,C,H,W"
    eps: float | None = field(default=None, repr=False, compare=False)

    @classmethod
    def offered(cls, shape: tuple[int, ...]) -> str:
        return f"{list(shape)} for two levels and head=Bernoulli() or head=Bernoulli(probabilities=True)"

    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> Self:
        if output.shape != shape:
            raise UnknownLayout(
                f"the model's output has shape {list(output.shape)}, but {self} expects {list(shape)}"
            )
        return self

    def arranged(self, output: Tensor, channels: int) -> Tensor:
        """[N, C, H, W] -> logits [N, C, H, W, 2], where the logit of level 0 is zero."""
        if self.probabilities:  # a probability of 1 would have an infinite logit
            output = torch.logit(output, eps=self.eps or torch.finfo(output.dtype).eps)
        pairs = torch.zeros(2 * channels, channels, 1, 1, dtype=output.dtype, device=output.device)
        pairs[1::2, :, 0, 0].fill_diagonal_(1)
        return F.conv2d(output, pairs).unflatten(1, (channels, 2)).permute(0, 1, 3, 4, 2)

    def of_model_in(self, dtype: torch.dtype) -> Self:
        return replace(self, eps=torch.finfo(dtype).eps)

    def comparable(self, parameters: Tensor) -> Tensor:
        return parameters.sigmoid() if self.probabilities else parameters

    def check_read(self, parameters: Tensor) -> None:
        logits = parameters[..., 1]
        if not self.probabilities and bool(((logits >= 0) & (logits <= 1)).all()):
            tell(
                f"all outputs of the model lie between 0 and 1, but {self} reads them as logits: if they are "
                "probabilities, say so with head=heads.Bernoulli(probabilities=True)",
            )

    def misread(self, last_call: str) -> str | None:
        if last_call != "sigmoid" or self.probabilities:
            return None
        return (
            "its last call is a sigmoid, so it returns probabilities, not logits: say so with "
            "head=heads.Bernoulli(probabilities=True)"
        )
