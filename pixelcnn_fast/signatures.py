"""A decorator for functions that share keyword arguments, which are written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_arguments_of(
    *sources: Callable[..., Any], renamed: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Function], Function]:
    """For a function that hands its ``**arguments`` on: its signature also shows the
    keyword-only parameters of ``sources`` that it does not declare itself. renamed: old
    names -> the new ones, for errors.

    Calling it with any other keyword raises TypeError, which names the function.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in own}
        shared = [
            p
            for source in sources
            for p in inspect.signature(source).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in names
        ]
        known = names | {p.name for p in shared}
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: Any, **keywords: Any) -> Any:
            for keyword in keywords:
                if keyword in renamed:
                    raise TypeError(f"{name}: {keyword}= is called {renamed[keyword]}= now")
                if keyword not in known:
                    raise TypeError(f"{name}() got an unexpected keyword argument {keyword!r}")
            return function(*args, **keywords)

        shown = cast(Any, checked)
        shown.__signature__ = signature.replace(parameters=[*own, *shared])
        return shown

    return decorate
