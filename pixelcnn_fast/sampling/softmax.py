"""A model's last call may be a softmax over the levels. Logits do as well, so it is taken off; elsewhere it is refused.

While a model is recorded, 'log_softmax' and 'exp' stand as steps that no program has.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pixelcnn_fast.sampling.addresses import FeatureMap
from pixelcnn_fast.sampling.marks import Unsupported
from pixelcnn_fast.sampling.recording import Recording


def without_log_softmax(recording: Recording, logits: Tensor) -> tuple[Tensor, bool]:
    """Addresses of a model's output [N, C, L, H, W] -> (those that its log-softmax over the levels is of, whether
    there was one). Raises Unsupported for one over other axes."""
    taken_of = recording.made_by("log_softmax", FeatureMap(recording.space, addresses=logits))
    if taken_of is None:
        return logits, False
    rows = _sorted_rows(logits.movedim(2, -1))
    if not any(_among(rows, _sorted_rows(known)) for known in recording.distributions):
        raise Unsupported("cannot sample from this model: its last call is a softmax, but not over the levels")
    return recording.space.moved(logits, taken_of), True


def check_no_softmax(recording: Recording, result: int) -> None:
    """Raises Unsupported if a value that ``result`` needs is a softmax. Those that are thrown away lose it."""
    needed = {result}
    for i in reversed(recording.instructions):
        kinds = {step.kind for step in i.steps} & {"log_softmax", "exp"}
        if i.out in needed and kinds:
            raise Unsupported(
                f"cannot sample from this model: {i.name}: softmax: only where it is the last call, over the levels, "
                "has it a place in a program. If the model returns probabilities, say so: "
                "head=heads.Categorical(levels, layout, probabilities=True)"
            )
        if i.out in needed:
            needed.update(i.reads())
        elif kinds:
            recording.instructions[i.out] = replace(i, steps=())


def _sorted_rows(addresses: Tensor) -> Tensor:
    return addresses.flatten(0, -2).sort(-1).values


def _among(rows: Tensor, known: Tensor) -> bool:
    """Whether all of the sorted rows [n, L] are among those known, [m, K], which share no element."""
    if rows.shape[1] != known.shape[1]:
        return False
    known = known[known[:, 0].argsort()]
    at = torch.searchsorted(known[:, 0].contiguous(), rows[:, 0].contiguous()).clamp_max(len(known) - 1)
    return torch.equal(known[at], rows)
