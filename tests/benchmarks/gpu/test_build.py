"""What the build is told of the machine."""

import sys

import pytest
from gpu import build
from gpu.machine import main as machine
from gpu.stage import printed_figures


def test_a_missing_tool_ends_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no-such-tool is missing"):
        build.tool("no-such-tool")
    for name, folder in (("cmake", "CMAKE_BIN_DIR"), ("ninja", "BIN_DIR")):  # their packages have them
        assert build.tool(name, name, folder).endswith(name)


def test_a_loaded_module_is_left_as_it_was(tmp_path):
    new, old = tmp_path / "new", tmp_path / "_native.so"
    new.write_text("new"), old.write_text("old")
    with old.open() as loaded:
        build.put(new, old)
        assert loaded.read() == "old"
    assert old.read_text() == "new" and {path.name for path in tmp_path.iterdir()} == {"new", "_native.so"}


def test_a_gpu_that_torch_does_not_see_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for there in (False, True):
        monkeypatch.setattr("gpu.machine.Path.exists", lambda path, there=there: there)
        if there:
            with pytest.raises(SystemExit, match="there is a GPU, but torch .* does not see it"):
                machine()
        else:
            machine()
        found = printed_figures(capsys.readouterr().out)
        assert found["Python"] == sys.version.split()[0] and "gpu" not in found
