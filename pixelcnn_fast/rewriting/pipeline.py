"""The rewrites of a captured graph, in their order."""

from __future__ import annotations

from collections.abc import Callable

from pixelcnn_fast.rewriting import (
    blocks,
    concatenated_elus,
    data_assignment,
    gates,
    layout,
    losses,
    masked_convolutions,
    windows,
)
from pixelcnn_fast.rewriting.captured_graph import CapturedGraph

REWRITES: tuple[Callable[[CapturedGraph], None], ...] = (
    data_assignment.rewrite,  # first, as it leaves fewer writes into weights
    masked_convolutions.rewrite,
    gates.rewrite,
    concatenated_elus.rewrite,
    losses.rewrite,
    windows.rewrite,  # takes padding and crops into masked convolutions, too
    blocks.rewrite,  # in inference, takes what follows into masked convolutions
    layout.rewrite,  # last, as it depends on which operators follow each other
)


def rewrite(captured: CapturedGraph) -> None:
    """Puts a graph through all rewrites."""
    for each in REWRITES:
        each(captured)
        vars(captured).pop("writes", None)  # of a graph that may be another by now
    captured.graph.lint()
