"""What a bare ``import pixelcnn_fast`` gives, and what it leaves alone."""

import ast
import builtins
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pixelcnn_fast

ROOT = Path(__file__).parents[1]


def test_sampling_needs_torch_and_numpy_only() -> None:
    """A machine that is lent with a GPU may lack the rest, and have no network to fetch it. And a bare import has the
    packaged checkpoint, where safetensors is there. PyTorch's compiler, whose import takes a second, is left alone."""
    code = """
import sys
import torch
sys.modules.update(dict.fromkeys(("tqdm", "safetensors", "matplotlib", "huggingface_hub")))  # None: an ImportError
import pixelcnn_fast
load = pixelcnn_fast.checkpoint.load
from pixelcnn_fast.bench import measure, workload
model = workload.random_model(input_channels=1, hidden_channels=4, n_residual=1, n_classes=2)
sampler = pixelcnn_fast.Sampler(model, (1, 3, 3))
labels = torch.ones(2, dtype=torch.long)
print(list(sampler.sample(2, labels=labels, runtime="eager").shape), "torch._dynamo" in sys.modules)
del sys.modules["safetensors"]
print(type(load("mnist")).__name__)
"""
    assert (
        subprocess.check_output([sys.executable, "-c", code], text=True) == "[2, 1, 3, 3] False\nPixelCNN\n"
    )


def test_all_public_names_exist() -> None:
    for name in pixelcnn_fast.__all__:
        assert hasattr(pixelcnn_fast, name), name


KINDS = {
    "CaptureMismatch": RuntimeError,
    "CheckFailed": RuntimeError,
    "InvalidProgram": AssertionError,
    "ModelFailed": RuntimeError,
    "NonFiniteLogits": ValueError,
    "NotCausal": ValueError,
    "RuntimeUnavailable": RuntimeError,
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
                bases = [
                    getattr(builtins, base.id, None) for base in node.bases if isinstance(base, ast.Name)
                ]
                if any(isinstance(base, type) and issubclass(base, BaseException) for base in bases):
                    found.add(path.relative_to(package).as_posix())
    assert found == {"errors.py"}


def test_an_interrupt_is_not_swallowed_by_except_exception() -> None:
    assert issubclass(pixelcnn_fast.SamplingInterrupted, KeyboardInterrupt)
    assert not issubclass(pixelcnn_fast.SamplingInterrupted, Exception)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("CITATION.cff", r"version: (.+)"),
        ("CHANGELOG.md", r"## \[(\d.*?)\]"),  # the newest that is released
    ],
)
def test_the_version_is_the_same_everywhere(file: str, line: str) -> None:
    found = re.search(f"^{line}", (ROOT / file).read_text(), re.MULTILINE)
    assert found and found[1] == pixelcnn_fast.__version__


@pytest.mark.parametrize("file", ["*.md", "docs/*.md", "pixelcnn_fast/data/*.md"])
def test_relative_links_lead_somewhere(file: str) -> None:
    for page in ROOT.glob(file):
        links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == [], page
