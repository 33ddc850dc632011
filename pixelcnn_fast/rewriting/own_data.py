"""``weight.data *= mask`` gives the weight the memory that it has already. That is dropped: Inductor refuses it."""

from __future__ import annotations

from torch import fx

from pixelcnn_fast.rewriting.nodes import name_of, view
from pixelcnn_fast.rewriting.zeroed import NEW_DATA


def drop(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if name_of(node) not in NEW_DATA or len(node.args) != 2 or view(node.args[0]) is None:
            continue
        target, data = node.args
        if view(target) == view(data):
            for user in list(node.users):
                if "lower_version" in name_of(user) and not user.users:
                    graph.erase_node(user)
            node.replace_all_uses_with(target)
            graph.erase_node(node)
