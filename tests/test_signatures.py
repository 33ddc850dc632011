"""Arguments that are written once are shown, and refused, as if each function spelled them out."""

from __future__ import annotations

import inspect
import pydoc
from typing import get_type_hints

import pytest

from pixelcnn_fast import Sampler, check_causal, receptive_field
from pixelcnn_fast.signatures import takes_arguments_of
from pixelcnn_fast.user_model.model_arguments import ModelArguments
from pixelcnn_fast.user_model.wrapped_model import WrappedModel
from tests.system.networks import pixelcnn


def source(positional: int, *, first: int = 1, second: str = "two") -> None: ...


def another(*, third: bool = False) -> None: ...


class Thing:
    @takes_arguments_of(source, another, renamed={"old": "second"})
    def method(self, x: int, *, first: int = 7, **arguments) -> dict:
        """Its own docstring."""
        return {"x": x, "first": first, **arguments}


def test_the_signature_shows_what_is_taken():
    assert str(inspect.signature(Thing.method)) == (
        "(self, x: 'int', *, first: 'int' = 7, second: 'str' = 'two', third: 'bool' = False) -> 'dict'"
    )
    assert "second: 'str' = 'two'" in pydoc.render_doc(Thing) and Thing.method.__doc__ == "Its own docstring."


def test_arguments_are_handed_on():
    assert Thing().method(1, second="x") == {"x": 1, "first": 7, "second": "x"}


def test_the_error_for_an_unknown_keyword_names_the_function():
    with pytest.raises(
        TypeError, match=r"^Thing\.method\(\) got an unexpected keyword argument 'positional'$"
    ):
        Thing().method(1, positional=1)
    with pytest.raises(TypeError, match=r"^Thing\.method: old= is called second= now$"):
        Thing().method(1, old=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Thing().method(second="x")  # type: ignore[call-arg]  # x is missing


def keywords(function) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("function", [Sampler, receptive_field, check_causal])
def test_what_is_said_about_a_model(function):
    """Type checkers read ModelArguments, people the signature, and the wrapped model is what takes the arguments."""
    expected = keywords(WrappedModel)
    assert ModelArguments.__annotations__.keys() == expected.keys()
    found = keywords(function)
    assert {name: found[name] for name in expected} == expected
    hints = get_type_hints(WrappedModel.__init__)
    assert get_type_hints(ModelArguments) == {name: hints[name] for name in expected}
    with pytest.raises(
        TypeError, match=f"^{function.__name__}\\(\\) got an unexpected keyword argument 'colour'$"
    ):
        function(pixelcnn(), (1, 4, 4), colour=True)
