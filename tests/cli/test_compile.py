"""`compile`: kernels ahead of time, by a compiler that is pretended."""

import re
from pathlib import Path

import pytest

from pixelcnn_fast.__main__ import main
from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.runtimes.cuda import compilers, kernels
from pixelcnn_fast.runtimes.cuda.kernels import Instance
from tests.needs import needs_native
from tests.runtimes.cuda.test_kernels import Pretended

pytestmark = needs_native


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()
    monkeypatch.setattr(compilers, "compiler", lambda: found)
    monkeypatch.setattr(compilers, "nvcc", lambda: None)
    return found


def test_what_it_writes_is_used(compiler: Pretended, tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "my kernels"
    arguments = ["--arch", "90", "80", "--precision", "bf16", "--out", str(folder)]
    assert main(["compile", *arguments]) == 0
    assert f"PIXELCNN_FAST_KERNELS='{folder}' " in capsys.readouterr().out
    tiles = {f"bf16-{tiles}x1-sm_{arch}" for tiles in range(1, 9) for arch in (80, 90)}
    clusters = {f"bf16-1x{blocks}-sm_90" for blocks in (2, 4, 8)}  # an A100 has none
    assert {path.stem for path in folder.iterdir()} == tiles | clusters
    monkeypatch.setattr(kernels, "compilers", list)
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", str(folder))
    assert kernels.cubin(Instance("bf16", 1, 8), (9, 0)).startswith(b"90 ")
    assert kernels.cubin(Instance("bf16", 3), (8, 6)).startswith(b"80 ")


def test_without_arch_it_compiles_for_the_gpus_of_this_machine_and_once(compiler, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_capability", [(8, 6), (10, 0), (8, 6)].__getitem__)
    folder = tmp_path / "kernels"
    arguments = ["compile", "--precision", "fp16", "fp16", "--out", str(folder)]
    assert main(arguments) == 0
    asked, found = list(compiler.asked), {file: file.read_bytes() for file in folder.iterdir()}
    assert set(asked) == {86, 100} and len(found) == len(asked)
    lost = max(found)
    lost.unlink()
    assert main(arguments) == 0
    assert len(compiler.asked) == len(asked) + 1  # what is there is not compiled again
    assert {file: file.read_bytes() for file in folder.iterdir()} == found


def test_a_compiler_that_does_not_work_says_why(compiler, tmp_path, monkeypatch, capsys):
    def broken(self: Pretended) -> list[int]:
        raise RuntimeUnavailable("it is broken")

    monkeypatch.setattr(Pretended, "architectures", broken)
    assert main(["compile", "--arch", "90", "--out", str(tmp_path / "kernels")]) == 2
    assert capsys.readouterr().err == "error: it is broken\n"  # and nothing of a runtime


@pytest.mark.parametrize(
    ("cudacxx", "arguments", "message"),
    [
        ("/opt/nvcc", ["--compiler", "nvcc"], "there is no nvcc: CUDACXX is /opt/nvcc"),
        ("", ["--compiler", "nvcc"], "there is no nvcc"),
        ("/opt/nvcc", ["--compiler", "nvrtc"], "there is no nvrtc"),
        ("/opt/nvcc", [], r"there is no NVRTC (pip install nvidia-cuda-nvrtc) and no nvcc"),
    ],
)
def test_a_compiler_that_is_not_there_is_named(cudacxx, arguments, message, tmp_path, monkeypatch, capsys):
    for name in ("compiler", "nvcc", "nvrtc"):
        monkeypatch.setattr(compilers, name, lambda: None)
    monkeypatch.setenv("CUDACXX", cudacxx)
    assert main(["compile", "--arch", "90", *arguments, "--out", str(tmp_path / "kernels")]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arch", "95"], "--arch 95: .* knows 75, 80, 86, 90, 100"),
        (["--arch", "70"], "from 80 to 199"),
        (["--arch", "90", "--compiler", "nvcc"], "there is no nvcc"),
        ([], "--arch is needed, as this machine has no GPU"),
    ],
)
def test_what_can_t_be_compiled(compiler, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    try:
        status = main(["compile", *arguments, "--out", str(tmp_path / "kernels")])
    except SystemExit as refused:
        status = int(refused.code or 0)
    assert status == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
