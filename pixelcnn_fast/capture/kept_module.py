"""The module that a sampler runs, which is its own: with other weights, as a copy, and out of a pickle."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from pixelcnn_fast.capture.private_copy import unwrapped
from pixelcnn_fast.heads.output import Output


def named_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, by names that do not tell of wrappers; what is tied has each of its names."""
    module = unwrapped(module)
    for named in (module.named_parameters, module.named_buffers):
        for name, x in named(recurse=False, remove_duplicate=False):
            yield prefix + name, x
    for name, child in module._modules.items():
        if child is not None:
            yield from named_tensors(child, f"{prefix}{name}.")


def with_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy with other tensors, by name, in the place of its parameters and buffers, which are not copied.

    A tensor that is computed from others stays one, so that gradients go through it.
    """
    memo: dict[int, Any] = {}
    for name, x in named_tensors(module):
        other = tensors[name]
        is_leaf = isinstance(x, nn.Parameter) and not other.requires_grad
        memo[id(x)] = nn.Parameter(other, requires_grad=x.requires_grad) if is_leaf else other
    return copy.deepcopy(module, memo)


class KeptModule:
    """A module, what picks the part of its output that is read, and weights to put into it when it is asked for.

    is_borrowed: whether the module is the user's own, since it can't be copied. In a pickle, a module that can't be
    pickled is left out, with a warning.
    """

    def __init__(
        self,
        module: nn.Module,
        output: Output = None,
        weights: Mapping[str, Tensor] | None = None,
        is_borrowed: bool = False,
    ) -> None:
        self._kept: tuple[nn.Module, Output] | bytes = (module, output)  # or pickled
        self._weights, self.is_borrowed = weights, is_borrowed
        self._why_gone: str | None = None

    @property
    def is_there(self) -> bool:
        return self._why_gone is None

    @property
    def name(self) -> str:
        return type(self._loaded()[0]).__name__ if self.is_there else "a module that was not pickled"

    @property
    def output(self) -> Output:
        return self._loaded()[1]

    @property
    def module(self) -> nn.Module:
        """Raises RuntimeError if it is not there."""
        (module, output), weights = self._loaded(), self._weights
        if weights is not None:
            module = with_tensors(module, weights)
            self._kept, self._weights = (module, output), None
        return module

    def check_there(self) -> None:
        """Raises RuntimeError, saying why, if the module is not there."""
        if not self.is_there:
            raise RuntimeError(
                f"this sampler came out of a pickle without its module, which can't be pickled ({self._why_gone}): the "
                "runtime 'reference', and what else runs the module, is not available"
            )

    def _loaded(self) -> tuple[nn.Module, Output]:
        self.check_there()
        if isinstance(self._kept, bytes):
            self._kept = cast(tuple[nn.Module, Output], pickle.loads(self._kept))
        return self._kept

    def having(self, weights: Mapping[str, Tensor]) -> KeptModule:
        """The same with other weights."""
        return self if self.is_borrowed else KeptModule(*self._loaded(), weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptModule:
        if self.is_borrowed or not self.is_there:
            return self
        return KeptModule(copy.deepcopy(self.module, memo), self.output)

    def __getstate__(self) -> dict[str, Any]:
        kept, why = self._kept, self._why_gone
        if why is None and not isinstance(kept, bytes):
            try:
                kept = pickle.dumps((self.module, self.output))
            except Exception as error:
                kept, why = b"", f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"the sampler travels without its module, which can't be pickled ({why}): there, the runtime "
                    "'reference' and log_prob are not available",
                    stacklevel=2,
                )
        return {"_kept": kept, "_weights": None, "is_borrowed": False, "_why_gone": why}
