"""What a bare ``import pixelcnn_fast`` gives, and what it leaves alone."""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from pathlib import Path

import pytest

import pixelcnn_fast


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, check=True).stdout


def test_import_does_not_load_matplotlib() -> None:
    assert in_new_process("import sys, pixelcnn_fast; print('matplotlib' in sys.modules)") == "False\n"


def test_checkpoint_is_there_after_a_bare_import() -> None:
    code = "import pixelcnn_fast; print(type(pixelcnn_fast.checkpoint.load('mnist')).__name__)"
    assert in_new_process(code) == "PixelCNN\n"


def test_all_public_names_exist() -> None:
    for name in pixelcnn_fast.__all__:
        assert hasattr(pixelcnn_fast, name), name


def test_no_alias_of_the_old_package_is_left() -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__("pixelcnn_fast.sampling")


KINDS = {
    "CaptureMismatch": RuntimeError,
    "CheckFailed": RuntimeError,
    "ModelFailed": RuntimeError,
    "NonFiniteLogits": ValueError,
    "NotCausal": ValueError,
    "UnknownLayout": ValueError,
    "Unsupported": ValueError,
}


@pytest.mark.parametrize("name", KINDS)
def test_errors_are_one_family(name: str) -> None:
    kind = getattr(pixelcnn_fast, name)
    assert issubclass(kind, pixelcnn_fast.PixelCNNFastError) and issubclass(kind, KINDS[name])


def test_the_family_is_complete() -> None:
    assert {kind.__name__ for kind in pixelcnn_fast.PixelCNNFastError.__subclasses__()} == set(KINDS)


def test_no_other_file_defines_an_error() -> None:
    package = Path(pixelcnn_fast.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = [getattr(builtins, base.id, None) for base in node.bases if isinstance(base, ast.Name)]
                if any(isinstance(base, type) and issubclass(base, BaseException) for base in bases):
                    found.add(path.relative_to(package).as_posix())
    assert found == {"errors.py"}


def test_an_interrupt_is_not_swallowed_by_except_exception() -> None:
    assert issubclass(pixelcnn_fast.SamplingInterrupted, KeyboardInterrupt)
    assert not issubclass(pixelcnn_fast.SamplingInterrupted, Exception)
