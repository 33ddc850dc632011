"""Removes a final softmax over the levels, since logits do as well, and refuses any other softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.materialize import copied
from pixelcnn_fast.capture.record.shadow_memory import Map, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.heads import Head
from pixelcnn_fast.program.instruction import Instruction


def log_softmax(b: Builder, x: Map, dim: int) -> Map:
    """The log-softmax over ``dim``, marked as ``final_softmax`` says."""
    result = final_softmax(b, "log_softmax", x)
    b.distributions.append(result.addresses.movedim(dim, -1))
    return result


def final_softmax(b: Builder, kind: str, x: Map) -> Map:
    """Marks x as a softmax, which is removed, or refused, once the whole model is lowered."""
    if x.source is None and (x.has_zeros or x.kinds != {Value}):
        x = copied(b, x)
    to = {s: b.step(s, []) for s in x.sources}
    b.final_softmaxes |= {s: kind for s in to.values()}
    return b.moved(x, to)


def made_by(b: Builder, kind: str, x: Map) -> dict[int, int] | None:
    """By source of x, the one to which this single step, or final softmax, was applied, if x is made so."""
    taken_of = {}
    for s in x.sources:
        if not isinstance(b.space.sources[s], Value):
            return None
        i = b.instruction(s)
        is_made_so = b.final_softmaxes.get(s) == kind or [step.kind for step in i.steps] == [kind]
        if not is_made_so or (repeated := i.repeated()) is None:
            return None
        taken_of[s] = b.source(repeated[0].value)
    return taken_of if bool(x.addresses.all()) else None


def without_log_softmax(b: Builder, logits: Tensor) -> tuple[Tensor, bool]:
    """Removes a final log-softmax over the levels. logits: addresses of the model's output,
    [N, C, L, H, W] -> (what remains, whether there was one). Raises Unsupported for one
    over other axes."""
    taken_of = made_by(b, "log_softmax", b.map(logits))
    if taken_of is None:
        return logits, False
    rows = _sorted_rows(logits.movedim(2, -1))
    known = [x for x in map(_sorted_rows, b.distributions) if x.shape[1] == rows.shape[1]]
    if not known or not _among(rows, torch.cat(known)):
        raise Unsupported(
            "cannot sample from this model: its last call is a softmax, but not over the levels"
        )
    return b.space.moved(logits, taken_of), True


def refuse_softmaxes(b: Builder, instructions: list[Instruction], head: Head) -> None:
    """Raises Unsupported if one of the instructions is a softmax."""
    final_softmaxes = {b.out(source) for source in b.final_softmaxes}
    why = (
        "it is supported only as the last call, over the levels. If the model returns probabilities, say so: "
        "head=heads.Categorical(levels, layout, probabilities=True). A softmax of features can be written as "
        "(x - x.amax(1, keepdim=True)).exp(), divided by its sum"
    )
    if not head.of_logits:
        why = (
            f"a program has none, and {head} does not read logits, for which it could be left out. Return what the "
            "softmax is taken of, and take it in the head's draw and log_probability; or set of_logits = True there if "
            "it changes no distribution"
        )
    for i in instructions:
        if i.out in final_softmaxes:
            raise Unsupported(f"cannot sample from this model: {i.name}: softmax: {why}")


def _sorted_rows(addresses: Tensor) -> Tensor:
    return addresses.flatten(0, -2).sort(-1).values


def _among(rows: Tensor, known: Tensor) -> bool:
    known = known[known[:, 0].argsort()]
    at = torch.searchsorted(known[:, 0].contiguous(), rows[:, 0].contiguous()).clamp_max(len(known) - 1)
    return torch.equal(known[at], rows)
