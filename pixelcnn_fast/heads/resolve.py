"""Which head, and which of its layouts, fits a model's output."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pixelcnn_fast.errors import UnknownLayout
from pixelcnn_fast.heads.bernoulli import Bernoulli
from pixelcnn_fast.heads.categorical import LAYOUTS, Categorical

Head = Categorical | Bernoulli


def resolved(head: Head, output: Tensor, shape: tuple[int, ...]) -> Head:
    """The head with its layout, read off the output where there is no doubt.

    output: what the model gave for images of ``shape`` [N, C, H, W].
    Raises UnknownLayout, with the alternatives, where none fits or where several do.
    """
    if not isinstance(output, Tensor):
        raise UnknownLayout(f"the model returned a {type(output).__name__}, expected one tensor of logits")
    found = list(output.shape)
    if head.layout is not None:
        if found != list(head.expected(shape)):
            raise UnknownLayout(
                f"the model's output has shape {found}, {head} expects {list(head.expected(shape))}"
            )
        return head
    heads = [replace(head, layout=layout) for layout in LAYOUTS]
    fitting = [h for h in heads if found == list(h.expected(shape))]
    if len(fitting) == 1 or (len(fitting) == 2 and shape[1] == 1 and output.dim() == 4):
        return fitting[0]  # of one channel, both orders of the channels are the same
    if fitting:
        lines = [f"  head={h!r}: {LAYOUTS[h.layout]}" for h in fitting]
        raise UnknownLayout(
            "\n".join([f"the model's output {found} can be read in several ways; say which:", *lines])
        )
    lines = [f"  {list(h.expected(shape))} for head={h!r}" for h in heads]
    lines.append(
        f"  {list(shape)} for head=Bernoulli() of logits or head=Bernoulli(probabilities=True), two levels"
    )
    raise UnknownLayout(
        "\n".join(
            [f"the model's output has shape {found}; for {head.levels} levels it is expected to be", *lines]
        )
    )
