"""A warning is at the line of the user's that has led to it."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pixelcnn_fast.telling import tell


def module(name: str) -> Any:
    """A function of a module of that name, which runs in contexts, and tells something."""
    code = """
@torch.no_grad()
@context()
def function():
    with inner():
        pass

@contextmanager
def inner():
    tell("something")
    yield
"""
    names: dict[str, Any] = {"__name__": name, "torch": torch, "tell": tell, "contextmanager": contextmanager}
    names["context"] = contextmanager(eval("lambda: (yield)", names))
    exec(compile(code, f"<{name}>", "exec"), names)
    return names["function"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pixelcnn_fast.inside.module", __file__),
        ("pixelcnn_fast", __file__),
        ("pixelcnn_fast_for_me", "<pixelcnn_fast_for_me>"),
    ],
)
def test_the_line_is_the_user_s(name: str, file: str) -> None:
    with pytest.warns(UserWarning, match="^something$") as caught:
        module(name)()
    assert [warning.filename for warning in caught] == [file]
