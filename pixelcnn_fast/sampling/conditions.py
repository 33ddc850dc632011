"""The part of a model that depends on the condition alone: recorded once, replayed by PyTorch for each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.sampling.marks import Condition

EXAMPLE_BATCH = 2  # not 1, so that a batch axis is never mistaken for one that broadcasts


@dataclass(frozen=True)
class Call:
    """One recorded call on conditions; arguments that are conditions stand as ``Condition``."""

    function: Callable
    args: tuple
    kwargs: dict


class Conditions:
    """The part of the model that depends on labels alone, evaluated by PyTorch for each batch."""

    def __init__(self, calls: list[Call], slots: list[int]) -> None:
        self._slots = slots
        needed: set[int] = set()
        pending = list(slots)
        while pending:
            node = pending.pop()
            if node not in needed:
                needed.add(node)
                if node:
                    pending += [
                        c.node
                        for c in leaves((calls[node].args, calls[node].kwargs))
                        if isinstance(c, Condition)
                    ]
        self._calls = {node: calls[node] for node in sorted(needed) if node}

    def __len__(self) -> int:
        return len(self._slots)

    @torch.no_grad()
    def __call__(self, labels: Tensor) -> list[Tensor]:
        """labels: [n] -> one tensor [n, channels] per slot.

        Runs in groups of the example's batch size, because a model may have written that size into a view.
        """
        n = labels.shape[0]
        padded = torch.cat([labels, labels[-1:].expand(-n % EXAMPLE_BATCH)])
        groups = [self._evaluate(group) for group in padded.split(EXAMPLE_BATCH)]
        return [torch.cat(parts)[:n] for parts in zip(*groups, strict=True)]

    def _evaluate(self, labels: Tensor) -> list[Tensor]:
        results: dict[int, Any] = {0: labels}

        def filled(x: Any) -> Any:
            return results[x.node] if isinstance(x, Condition) else x

        for node, call in self._calls.items():
            results[node] = call.function(*map_leaves(filled, call.args), **map_leaves(filled, call.kwargs))
        return [results[slot].flatten(1) for slot in self._slots]


def leaves(x: Any) -> Iterator[Any]:
    if isinstance(x, (tuple, list)):
        for item in x:
            yield from leaves(item)
    elif isinstance(x, dict):
        yield from leaves(list(x.values()))
    else:
        yield x


def map_leaves(f: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)(map_leaves(f, item) for item in x)
    if isinstance(x, dict):
        return {key: map_leaves(f, item) for key, item in x.items()}
    return f(x)
