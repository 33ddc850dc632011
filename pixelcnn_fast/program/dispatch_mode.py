"""Contexts in which PyTorch's calls are seen."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A mode whose first use does not make PyTorch import its compiler, which takes a second."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
