"""What is copied between devices, also between ones that are not there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class Copy(NamedTuple):
    """waits: whether the host does, until the copy is made."""

    source: str
    target: str
    elements: int
    waits: bool = False


class Copies(TorchDispatchMode):
    """Within the context: copies between kinds of devices, and how much pinned memory was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Copy] = []
        self.pinned_elements = 0

    def __torch_dispatch__(self, call: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = call(*args, **kwargs)
        if kwargs.get("pin_memory"):
            self.pinned_elements += found.numel()
        if call is torch.ops.aten._to_copy.default:
            self._note(args[0], found, kwargs.get("non_blocking", False))
        if call is torch.ops.aten.copy_.default:
            self._note(args[1], found, args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return found

    def _note(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        if source.device.type != target.device.type:
            self.made.append(Copy(source.device.type, target.device.type, target.numel(), not non_blocking))


@contextmanager
def pretended_devices() -> Iterator[Copies]:
    """Within the context, tensors have a device, which need not be there, and no values."""
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        yield copies
