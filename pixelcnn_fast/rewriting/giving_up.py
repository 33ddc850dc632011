"""Says it when PyTorch's compiler has given up on a model, which then runs as plain: PyTorch itself only logs it."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pixelcnn_fast.rewriting.report import Report

_calling = threading.local()


def tells_of_giving_up(compiled: Callable[..., Any], report: Report) -> Callable[..., Any]:
    """The compiled function; if PyTorch gives up on it, or on a function that it calls, the report says so."""
    _listen()

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # within what somebody else compiles
            return compiled(*args, **kwargs)
        before, _calling.report = getattr(_calling, "report", None), report
        try:
            return compiled(*args, **kwargs)
        finally:
            _calling.report = before

    return call


@functools.cache
def _listen() -> None:
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_note)


def _note(record: logging.LogRecord) -> bool:
    report = getattr(_calling, "report", None)
    if report is not None and "_limit" in record.getMessage().partition("\n")[0]:
        function = next((str(x) for x in record.args or () if "(" in str(x)), "a function")
        text = (
            f"PyTorch has stopped compiling {function}, which it has compiled too often: what is new from now on runs "
            "as plain. Raise torch._dynamo.config.recompile_limit, or give it fewer different inputs"
        )
        report.warnings.append(text)
        warnings.warn(f"{text}. It said: {record.getMessage()}", stacklevel=2)
    return True
