"""The script that measures what ``accelerate`` gains: what fails leaves what does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import acceleration_targets as script
import pytest
from targets import Target

from pixelcnn_fast.bench import report
from pixelcnn_fast.errors import CheckFailed


def test_a_network_that_fails_leaves_the_others_rows(monkeypatch, tmp_path, capsys):
    def rows(network: script.Network, device: str) -> Iterator[Target]:
        if "tutorial" in network.name:
            raise CheckFailed("it is wrong")
        yield Target(network.name, 1.0, 2.0, 3.0, [3.0], report.factor)

    monkeypatch.setattr(script, "rows", rows)
    monkeypatch.setattr(script.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "argv", ["it", "--quick", "--only", "PixelCNN", "--out", str(tmp_path)])
    assert script.main() == 1
    (table,) = tmp_path.glob("*.md")
    text = table.read_text()
    assert (
        "| small PixelCNN " in text
        and "Failed: the tutorial's Gated PixelCNN: CheckFailed: it is wrong." in text
    )
    assert "CheckFailed: it is wrong" in capsys.readouterr().err


@pytest.mark.parametrize("absent", ["accelerated", "accelerated with inductor"])
def test_a_mode_that_fails_leaves_the_other(absent):
    seconds = {"plain": [6.0], "torch.compile": [4.0], "accelerated": [2.0], "accelerated with inductor": [2.0]}
    del seconds[absent]
    found = list(script.judged("it", seconds, "", ((1.0, 2.0), (1.0, 2.0))))
    assert [target.value for target in found] == [3.0, 2.0] and all("fails" in target.name for target in found)
    assert list(script.judged("it", {"plain": [6.0]}, "", ((1.0, 2.0), None))) == []
