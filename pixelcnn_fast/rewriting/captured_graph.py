"""A graph that Dynamo has captured and rewrites change, with what they ask about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx

from pixelcnn_fast.rewriting.nodes import Writes
from pixelcnn_fast.rewriting.regions import Regions
from pixelcnn_fast.rewriting.report import Report


@dataclass
class CapturedGraph:
    """real: the inputs' tensors now, which only decide whether a rewrite pays. inference:
    whether nothing of the graph is kept for a backward. live_gradients: whether weights
    that are masked in place get gradients at live taps only. by_inductor: whether Inductor
    runs it, which lays out what reads both layouts as it likes."""

    graph: fx.Graph
    real: Mapping[fx.Node, Tensor] = field(default_factory=dict)
    inference: bool = False
    live_gradients: bool = False
    by_inductor: bool = False
    report: Report = field(default_factory=Report)

    @cached_property
    def writes(self) -> Writes:
        """As the last rewrite has left the graph."""
        return Writes(self.graph, self.inference)

    @cached_property
    def regions(self) -> Regions:
        return Regions(self.graph)

    def replace(self, *calls: fx.Node, by: fx.Node) -> None:
        """Puts a node in the place of some calls, of which others read only the last."""
        by.meta = {**calls[-1].meta, **by.meta}
        calls[-1].replace_all_uses_with(by)
        self.erase(*calls)

    def erase(self, *calls: fx.Node) -> None:
        """Erases calls that nobody but the later ones among them reads."""
        for call in calls[::-1]:
            self.graph.erase_node(call)
