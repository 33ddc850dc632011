"""What was found before is found again once anything changes of which it was made."""

import warnings
from pathlib import Path

import pytest

from tests import found_before as module
from tests.found_before import found_before


def test_only_the_same_was_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECORD", tmp_path / "found.json")
    monkeypatch.setenv("RECORD", "1")
    source = tmp_path / "source"
    source.write_text("a")

    def was_found(what: str = "it", *made_of: object) -> bool:
        with found_before(what, source, *made_of) as found:
            return found

    with pytest.raises(AssertionError), found_before("it", source) as found:
        assert found, "what fails is not recorded"
    assert [was_found(), was_found(), was_found("other")] == [False, True, False]
    monkeypatch.delenv("RECORD")
    source.write_text("b")
    for given in ((), ("more",)):
        with pytest.warns(UserWarning, match="it: compiled anew"):
            assert not was_found("it", *given)
    source.write_text("a")  # nor was what was found without RECORD recorded
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert was_found() and was_found("other") and not was_found("third")
