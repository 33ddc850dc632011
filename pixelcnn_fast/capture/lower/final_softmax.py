"""Removes a final softmax over the levels, since logits do as well, and finds any other softmax."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pixelcnn_fast.capture.lower.builder import Builder
from pixelcnn_fast.capture.lower.materialize import copied
from pixelcnn_fast.capture.record.shadow_memory import Map, Value
from pixelcnn_fast.errors import Unsupported
from pixelcnn_fast.heads import Head
from pixelcnn_fast.program.instruction import Instruction


class InnerSoftmaxes(Unsupported):
    """Features depend on softmaxes. numbers: of these."""

    def __init__(self, message: str, numbers: Collection[int]) -> None:
        super().__init__(message)
        self.numbers = numbers


def final_softmax(b: Builder, kind: str, x: Map, computed: Callable[[], Map]) -> Map:
    """Marks x as a softmax, which is removed once the whole model is lowered. computed: gives
    it instead, if it is known that it can't be removed."""
    number = next(b.softmaxes)
    if number in b.inner_softmaxes:
        return computed()
    if x.source is None and (x.has_zeros or x.kinds != {Value}):
        x = copied(b, x)
    to = {s: b.step(s, []) for s in x.sources}
    b.final_softmaxes |= {s: (kind, number) for s in to.values()}
    return b.moved(x, to)


def made_by(b: Builder, kind: str, x: Map) -> dict[int, int] | None:
    """By source of x, the one to which this single step, or final softmax, was applied, if x is made so."""
    taken_of = {}
    for s in x.sources:
        if not isinstance(b.space.sources[s], Value):
            return None
        i = b.instruction(s)
        is_made_so = b.final_softmaxes.get(s, ("", 0))[0] == kind or [step.kind for step in i.steps] == [kind]
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


def refuse_softmaxes(b: Builder, instructions: list[Instruction], output: Map, head: Head) -> None:
    """Raises Unsupported if one of the instructions is a softmax, and InnerSoftmaxes if ``output`` is none."""
    numbers = {b.out(source): number for source, (_, number) in b.final_softmaxes.items()}
    why = (
        "it is supported as the last call, over the levels, and over up to 64 channels of a pixel. If the model "
        "returns probabilities, say so: head=heads.Categorical(levels, layout, probabilities=True). A softmax of more "
        "features can be written as x.exp(), divided by its sum"
    )
    if not head.of_logits:
        why = (
            f"a program has none, and {head} does not read logits, for which it could be left out. Return what the "
            "softmax is taken of, and take it in the head's draw and log_probability; or set of_logits = True there if "
            "it changes no distribution"
        )
    found = [i for i in instructions if i.out in numbers]
    if found:
        message = f"cannot sample from this model: {found[0].name}: softmax: {why}"
        if any(made_by(b, kind, output) is not None for kind in ("softmax", "log_softmax")):
            raise Unsupported(message)
        raise InnerSoftmaxes(message, {numbers[i.out] for i in found})


def _sorted_rows(addresses: Tensor) -> Tensor:
    return addresses.flatten(0, -2).sort(-1).values


def _among(rows: Tensor, known: Tensor) -> bool:
    known = known[known[:, 0].argsort()]
    at = torch.searchsorted(known[:, 0].contiguous(), rows[:, 0].contiguous()).clamp_max(len(known) - 1)
    return torch.equal(known[at], rows)
