"""``--model my.module:factory``: a user's own model in every command that works with one, and what may be wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelcnn_fast import Sampler, heads
from pixelcnn_fast.noise import noise_of
from tests.cli.common import run

CODE = '''
import torch
from torch import nn
from pixelcnn_fast.nn import MaskedConv2d

class Net(nn.Module):
    """Of two levels, from -1 and 1, and of what labels add, if it takes them."""
    def __init__(self, classes=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = MaskedConv2d(1, 4, 3, mask_type="A", padding=1)
        self.out = nn.Conv2d(4, 1, 1)
        self.of_class = nn.Embedding(classes, 4) if classes else None

    def forward(self, x):
        assert x.is_floating_point() and x.shape[1] == 1
        return self.out(self.conv(x).relu())

class Conditional(Net):
    def __init__(self):
        super().__init__(3)

    def forward(self, x, y):
        return self.out((self.conv(x) + self.of_class(y)[:, :, None, None]).relu())

ready = Net()
class OfSize(Net):
    input_channels = 1
leaks = nn.Conv2d(1, 1, 3, padding=1)
number = 3
def broken(): return nn.Conv2d(1, 1, "x")
def nothing(): pass
'''
FORM = ["--image-form", "centred", "--head", "Bernoulli()", "--size"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which is not on the path yet and has a module with models."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/nets.py").write_text(CODE)
    (tmp_path / "own/needs.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "own/typo.py").write_text("x = 1\nfoo(\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]


def own(name: str) -> Any:
    return getattr(sys.modules["own.nets"], name)


@pytest.mark.parametrize("name", ["Net", "ready"])
def test_a_model_of_one_s_own_is_sampled_as_in_python(name: str, folder: Path) -> None:
    assert run("sample", "--model", f"own.nets:{name}", *FORM, "1x4x5", "-n", 3, "--npz", "a.npz") == 0
    described: Any = dict(head=heads.Bernoulli(), image_form="centred")
    sampler = Sampler(own("ready"), (1, 4, 5), **described)
    with np.load("a.npz") as saved:
        expected = sampler.sample(3, noise=noise_of(0, range(3), (1, 4, 5)))
        assert np.array_equal(saved["images"], expected.numpy()) and expected.any()
        assert saved["checkpoint"] == f"own.nets:{name}"


def test_one_of_classes(folder: Path) -> None:
    arguments = ["--model", "own.nets:Conditional", *FORM, "1x4x5", "--classes", 3]
    assert run("sample", *arguments, "-n", 2, "--npz", "a.npz") == 0
    with np.load("a.npz") as saved:
        assert saved["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    assert run("sample", *arguments, "--label", 3) == 2


def test_each_other_command_takes_it(folder: Path, capsys) -> None:
    model = ["--model", "own.nets:Net", *FORM, "1x4x5"]
    assert run("receptive-field", *model) == 0
    assert "1x4x5 images: causal" in capsys.readouterr().out
    assert run("receptive-field", "--model", "own.nets:leaks", *FORM, "1x4x5") == 1
    bench = ["--batch", 2, "--repeats", 1, "--naive-pixels", 0, "--runtimes", "reference,eager"]
    assert run("bench", *model, *bench) == 0
    assert "1x4x5 images from the own.nets:Net model" in Path("out/sampling.md").read_text()
    conditional = ["--model", "own.nets:Conditional", *FORM, "1x4x5", "--classes", 3]
    assert run("bench", *conditional, *bench) == 0


def test_the_number_of_channels_is_the_model_s_own(folder: Path) -> None:
    assert run("sample", "--model", "own.nets:OfSize", *FORM, "4x5", "-n", 1) == 0


BAD = {
    "own.nets:Nets --size 1x4x4": "the module own.nets has no Nets; is it Net?",
    "own.net:Net --size 1x4x4": "there is no module own.net in the current folder",
    "owns.nets:Net --size 1x4x4": "there is no module owns in the current folder",
    "own.needs:Net --size 1x4x4": "a_package_that_is_missing is not installed",
    "own.typo:Net --size 1x4x4": "importing own.typo raised SyntaxError: ",
    "own.nets.Net --size 1x4x4": "no such file; the packaged checkpoints are mnist; a model of your own is named",
    "own.nets:Net --size 1x4x5": "the model raised AssertionError",
    "own.nets:number --size 1x4x4": "own.nets:number gives a int, expected a torch.nn.Module",
    "own.nets:nothing --size 1x4x4": "own.nets:nothing gives a NoneType, expected",
    "own.nets:broken --size 1x4x4": "broken() raised TypeError: ",
    "own.nets:Net --size 4x4": "does not say how many channels its images have: give them first",
    "own.nets:OfSize --size 3x4x4": "--size has 3 channels, but the images of own.nets:OfSize have 1",
    "own.nets:Conditional --size 1x4x4": "say of how many classes it takes labels, as in --classes 10",
    "own.nets:Net --size 1x4x4 --head Bernouli()": "there is no Bernouli in pixelcnn_fast.heads",
    "own.nets:Net --size 1x4x4 --head Bernoulli": "expected a call",
    "own.nets:Net --size 1x4x4 --head print(1)": "there is no print",
    "own.nets:Net --size 1x4x4 --head Bernoulli(size=2)": "size",
    "own.nets:Net --size 1x4x4 --image-form unti": "'unti': expected a call",
    "own.nets:Net --size 1x4x4 --image-form Normalize(0,0)": "std is 0",
    "own.nets:Net --size 1x4x4 --levels 1": "--levels",
}


@pytest.mark.parametrize("line", BAD)
def test_what_is_wrong_is_told_in_one_line(line: str, folder: Path, capsys) -> None:
    before = {path for path in folder.rglob("*") if "__pycache__" not in str(path)}
    assert run("sample", "--model", *line.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and BAD[line] in told
    assert {path for path in folder.rglob("*") if "__pycache__" not in str(path)} == before


def test_an_error_in_the_factory_is_told_with_its_line(folder: Path, capsys) -> None:
    assert run("sample", "--model", "own.typo:x", "--size", "1x2x2") == 2
    Path("own/raises.py").write_text("def make():\n    raise KeyError('weights')\n")
    assert run("sample", "--model", "own.raises:make", "--size", "1x2x2") == 2
    told = capsys.readouterr().err.splitlines()[1]
    assert "make() raised KeyError: 'weights'" in told and told.endswith("raises.py, line 2)")


def test_only_reference_can_draw_from_some(folder: Path) -> None:
    """Of two halves of an image, the lower sees the upper one's mean: no causal program has that."""
    Path("own/means.py").write_text(
        "import torch\nclass Means(torch.nn.Module):\n"
        "    input_channels, levels = 1, 2\n"
        "    def __init__(self):\n        super().__init__()\n        self.w = torch.nn.Parameter(torch.ones(1))\n"
        "    def forward(self, x):\n"
        "        mean = torch.sort(x[:, :, 0].float() * self.w).values.mean(-1)[..., None, None]\n"
        "        y = torch.zeros(len(x), 1, 2, 2) + self.w\n        y[:, :, 1] = mean[..., 0]\n"
        "        return torch.stack([-y, y], 1)\n"
    )
    model = ["sample", "--model", "own.means:Means", "--size", 2, "-n", 1]
    assert run(*model) == 2
    assert run(*model, "--runtime", "reference") == 0
