"""What must be as it was recorded, or the program would be another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pixelcnn_fast.capture.merging import Merged
from pixelcnn_fast.program.calls import Call, Memory, View


@dataclass(frozen=True, eq=False)
class Guard:
    """Something that must be as it was when it was recorded, or the program would be another.

    read: the view that it is in, or the call that reads it as a number; at: how many calls came before; is_for_more:
    whether only truth values that are true now and were not would make another program.
    """

    read: View | Call
    value: Any
    at: int
    is_for_more: bool = False

    @property
    def views(self) -> Sequence[View]:
        return [self.read] if isinstance(self.read, View) else self.read.inputs

    @property
    def slots(self) -> set[int]:
        return {view.slot for view in self.views}

    def moved(self, merged: Merged) -> Guard:
        """The same where it is in the end, after calls were merged."""
        read = merged.view(self.read) if isinstance(self.read, View) else merged.call(self.read)
        return replace(self, read=read, at=len(merged.calls))

    def holds(self, memory: Memory) -> bool:
        if isinstance(self.read, View):
            found = memory.tensor(self.read)
            return torch.equal(found & self.value if self.is_for_more else self.value, found)
        return bool(memory.result(self.read) == self.value)
