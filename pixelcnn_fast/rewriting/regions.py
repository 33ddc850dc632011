"""In which mode each call runs: a pattern is rewritten if all of it runs in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pixelcnn_fast.rewriting.nodes import name_of


class Regions:
    """Calls with equal settings of gradients, autocast and inference mode are in one region."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._of: dict[fx.Node, tuple[Any, ...]] = {}

    def _read(self) -> None:
        gradients: Any = torch.is_grad_enabled()
        entered: tuple[fx.Node, ...] = ()
        for node in self._graph.nodes:
            name = name_of(node)
            if name == "_set_grad_enabled":
                gradients = node.args[0]
            elif name.startswith("_enter_"):
                entered = (*entered, node)
            elif name.startswith("_exit_"):
                entered = tuple(x for x in entered if x is not node.args[0])
            self._of[node] = (gradients, *entered)

    def are_one(self, *nodes: fx.Node) -> bool:
        """Whether calls are in one region, which no rewrite changes."""
        if not self._of.keys() >= {*nodes}:
            self._read()
        return len({self._of[node] for node in nodes}) == 1
