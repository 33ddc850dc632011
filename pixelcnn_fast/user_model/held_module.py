"""The module that a sampler runs: its own copy, which can get other weights, be copied and pickled."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.func import functional_call

from pixelcnn_fast.heads.output import Output
from pixelcnn_fast.user_model.contents import Contents
from pixelcnn_fast.user_model.tensors import duplicate, with_tensors


class Substituted(nn.Module):
    """Runs a module that can't be copied, with other tensors in the place of its own."""

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        registered = {path: x for path, x in tensors.items() if ":" not in path}
        others = {path: x for path, x in tensors.items() if ":" in path}

        def called(*args: Any, **named: Any) -> Any:
            with _put_into(module, others):
                return functional_call(module, registered, args, named)

        self.forward = functools.wraps(module.forward)(called)


@contextmanager
def _put_into(module: nn.Module, others: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, a module's tensors have the numbers of others, by path."""
    held = Contents(module).tensors if others else {}
    found = [(held[path], x.detach()) for path, x in others.items() if path in held]
    pairs = [(x, x.data, y) for x, y in found if (x.dtype, x.device) == (y.dtype, y.device)]
    try:
        for x, _, y in pairs:
            x.data = y
        yield
    finally:
        for x, before, _ in pairs:
            x.data = before


class HeldModule:
    """A module, with what picks the part of its output that is read. Other
    weights are put into it when it is next asked for. A pickle leaves out what
    can't be pickled, with a warning.

    uncopyable: the user's own module, if that can't be copied, else None.
    """

    def __init__(self, module: nn.Module, output: Output = None, is_uncopyable: bool = False) -> None:
        self._kept: tuple[nn.Module, Output] | bytes = (module, output)  # or pickled
        self._weights: Mapping[str, Tensor] | None = None
        self.uncopyable = module if is_uncopyable else None
        self._why_gone: str | None = None
        # With its tensors, and without what a call may leave behind.
        self.untouched = module if is_uncopyable else with_tensors(module, Contents(module).tensors)

    @property
    def is_uncopyable(self) -> bool:
        return self.uncopyable is not None

    @property
    def is_there(self) -> bool:
        return self._why_gone is None

    @property
    def name(self) -> str:
        if not self.is_there:
            return "a module that was not pickled"
        return type(self.uncopyable or self._loaded()[0]).__name__

    @property
    def output(self) -> Output:
        return self._loaded()[1]

    @property
    def module(self) -> nn.Module:
        """Raises RuntimeError if it is not there."""
        (module, output), weights = self._loaded(), self._weights
        if weights is not None:
            if self.uncopyable is not None:
                module = Substituted(self.uncopyable, weights)
            else:  # as it was before it was ever called
                module = with_tensors(self.untouched, weights)
            self._kept, self._weights = (module, output), None
        return module

    def check_there(self) -> None:
        """Raises RuntimeError, with the reason, if the module is not there."""
        if not self.is_there:
            raise RuntimeError(
                f"this sampler came out of a pickle without its module, which can't be pickled ({self._why_gone}): the "
                "runtime 'reference', and what else runs the module, is not available"
            )

    def _loaded(self) -> tuple[nn.Module, Output]:
        self.check_there()
        if isinstance(self._kept, bytes):
            self._kept = cast(tuple[nn.Module, Output], pickle.loads(self._kept))
            self.untouched = self._kept[0]
        return self._kept

    def with_weights(self, weights: Mapping[str, Tensor]) -> HeldModule:
        """The same with other weights."""
        other = object.__new__(HeldModule)  # copy.copy would pickle it
        other.__dict__.update(self.__dict__, _weights=weights)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldModule:
        if self.is_uncopyable or not self.is_there:
            return self
        return HeldModule(duplicate(self.module, memo), self.output)

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
        return {"_weights": None, "uncopyable": None, "_kept": kept, "_why_gone": why}
