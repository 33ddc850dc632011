"""Drops what ``weight.data *= mask`` ends with: giving the weight its own memory."""

from __future__ import annotations

from typing import Any

from torch import fx

from pixelcnn_fast.rewriting.captured_graph import CapturedGraph
from pixelcnn_fast.rewriting.nodes import NEW_DATA, WRITING, name_of, view


def rewrite(captured: CapturedGraph) -> None:
    for node in list(captured.graph.nodes):
        if name_of(node) not in NEW_DATA or len(node.args) != 2:
            continue
        target, data = node.args
        if _is_written_in_place(data, target) and view(data) == view(target):
            for user in list(node.users):
                if "lower_version" in name_of(user) and not user.users:
                    captured.erase(user)
            node.replace_all_uses_with(target)
            captured.erase(node)


def _is_written_in_place(data: Any, target: Any) -> bool:
    """Whether calls in place have made data of the target's own."""
    while isinstance(data, fx.Node) and data.args:
        if name_of(data) in ("_get_data_attr", "detach"):
            return data.args[0] is target
        if data.target not in WRITING and not (data.op == "call_method" and name_of(data).endswith("_")):
            return False
        data = data.args[0]
    return False
