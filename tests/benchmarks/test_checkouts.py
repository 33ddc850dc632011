"""Other people's models in the tables of targets, by tiny checkouts with their interfaces."""

import sys
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import torch
from cases import attention, pixelcnnpp
from checkouts import PORT_EDITS, modules
from measuring import Settings, Target
from torch import nn

from pixelcnn_fast.errors import CheckFailed
from tests.tiers import few

PORT = {
    "utils": """
        import torch
        from torch import nn
        def discretized_mix_logistic_loss(x, l):
            return (l - x).square().sum() + torch.zeros(()).cuda()
        def in_python_2():
            try:
                discretized_mix_logistic_loss()
            except TypeError as e:
                print e
    """,
    "layers": "from utils import *",
    "model": """
        from layers import *
        class PixelCNN(nn.Sequential):
            def __init__(self, nr_resnet, nr_filters):
                super().__init__(nn.Conv2d(3, nr_filters, 1), nn.Dropout2d(0.5), nn.Conv2d(nr_filters, 3, 1))
    """,
}
PUBLIC = {
    "utils": """
        import torch
        from torch import nn
        from torch.nn import functional as F
        from dataset import *
        def sample_from_discretized_mix_logistic(l, k):
            n, _, height, width = l.shape
            gumbel = -torch.log(-torch.log(torch.FloatTensor(n, height, width, k).uniform_(1e-5, 1 - 1e-5)))
            chosen = (l[:, :k].movedim(1, -1) + gumbel).argmax(-1)
            one_hot = F.one_hot(chosen, k).movedim(-1, 1)[:, None, None]
            mean, scale, tie = (l[:, k:].view(n, 3, 3, k, height, width) * one_hot).sum(3).unbind(2)
            u = torch.FloatTensor(n, height, width, 3).uniform_(1e-5, 1 - 1e-5).movedim(-1, 1)
            x = mean + scale.clamp(min=-7).exp() * (u.log() - (1 - u).log())
            x0 = x[:, 0].clamp(-1, 1)
            x1 = (x[:, 1] + tie[:, 0].tanh() * x0).clamp(-1, 1)
            x2 = (x[:, 2] + tie[:, 1].tanh() * x0 + tie[:, 2].tanh() * x1).clamp(-1, 1)
            return torch.stack([x0, x1, x2], 1)
        def sample(model, n, obs, sample_op, label):
            data, labels = torch.zeros(n, *obs), torch.full((n,), my_bidict[label])
            for i in range(obs[1]):
                for j in range(obs[2]):
                    with torch.no_grad():
                        data[:, :, i, j] = sample_op(model(data, labels, sample=True))[:, :, i, j]
            return data
    """,
    "layers": "from utils import *",
    "model": """
        from layers import *
        class PixelCNN(nn.Module):
            def __init__(self, nr_resnet, nr_filters, nr_logistic_mix):
                super().__init__()
                self.conv = nn.Conv2d(3, 10 * nr_logistic_mix, 2)
                self.label = nn.Embedding(4, 10 * nr_logistic_mix)
            def forward(self, x, l, sample=False):
                return self.conv(F.pad(x, (2, 0, 1, 0)))[:, :, :, :-1] + self.label(l)[:, :, None, None]
    """,
}


@pytest.fixture
def checkout(tmp_path) -> Any:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(dedent(text))
        return tmp_path

    return write


def measured(case: Any, **folders: Path) -> Target:
    found, *_ = case(Settings(1, 2, True, "cpu", None, Path("log"), **folders))
    return found


def test_their_modules_see_each_other_and_leave_no_names(checkout) -> None:
    folder = checkout(PORT | {"model": "from utils import *\nimport given\nfound = given.number"})
    given, before = ModuleType("given"), dict(sys.modules)
    vars(given)["number"] = 7
    utils, model = modules(folder, ["utils", "model"], PORT_EDITS, {"given": given})
    assert model.found == 7 and model.discretized_mix_logistic_loss is utils.discretized_mix_logistic_loss
    utils.in_python_2()
    added = {name: module for name, module in sys.modules.items() if before.get(name) is not module}
    assert added == {module.__name__: module for module in (utils, model)} and "utils" not in sys.modules


@pytest.mark.parametrize("option", ["port", "public"])
def test_without_a_checkout_nothing_is_measured(option) -> None:
    found = measured(getattr(pixelcnnpp, option))
    assert found.verdict().startswith(f"not measured: needs --{option} FOLDER (github.com/")


def disturb(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    return model


def test_the_ports_loss_and_gradients_are_compared(checkout, monkeypatch) -> None:
    folder = checkout(PORT)
    monkeypatch.setattr(pixelcnnpp, "accelerate", lambda model: model)
    assert measured(pixelcnnpp.port, port=folder).value is not None
    monkeypatch.setattr(pixelcnnpp, "accelerate", disturb)
    with pytest.raises(CheckFailed, match="port, accelerated"):
        measured(pixelcnnpp.port, port=folder)


def test_a_public_checkpoint_is_drawn_from_as_by_its_own_code(checkout, monkeypatch) -> None:
    folder = checkout(PUBLIC)
    (folder / "models").mkdir()
    torch.manual_seed(0)
    (model,) = modules(folder, ["utils", "layers", "model"], given={"dataset": ModuleType("dataset")})[2:]
    weights = model.PixelCNN(2, 30, 15).state_dict()
    torch.save(weights, folder / "models" / "conditional_pixelcnn.pth")
    assert measured(pixelcnnpp.public, public=folder).verdict() == "yes"
    sampler = pixelcnnpp.Sampler

    def of_others(model: nn.Module, *args: Any, **how: Any) -> Any:
        model.load_state_dict(weights)  # a copy of the disturbed one is what is drawn from
        found = sampler(disturb(model), *args, **how)
        model.load_state_dict(weights)
        return found

    monkeypatch.setattr(pixelcnnpp, "Sampler", of_others)
    assert measured(pixelcnnpp.public, public=folder).verdict() == "no"


# -- attention

PRIOR = """
    import torch
    from torch import nn
    from torch.nn import functional as F
    class PixelSNAIL(nn.Module):
        def __init__(self, shape, levels, channel, *sizes, attention=True, n_cond_res_block=0, cond_res_channel=0):
            super().__init__()
            self.above, self.out = nn.Conv2d(levels, channel, (2, 3)), nn.Conv2d(channel, levels, 1)
            if n_cond_res_block:
                self.cond_resnet = nn.Conv2d(levels, channel, 1)
        def forward(self, codes, condition=None, cache=None):
            x, given = (None if y is None else F.one_hot(y, 512).movedim(3, 1).to(self.out.weight)
                        for y in (codes, condition))
            h = self.above(F.pad(x, (1, 1, 2, 0)))[:, :, :-1]
            if given is not None:
                h = h + F.interpolate(self.cond_resnet(given), scale_factor=2)
            return self.out(F.elu(h)), {}
"""
GENERATIVE = {
    "nn/__init__.py": "from torch.nn import Conv2d",
    "models/__init__.py": "import what_only_training_needs",
    "models/base.py": "from torch.nn import Module as AutoregressiveModel",
    "models/autoregressive/image_gpt.py": """
        import torch
        from torch.nn import functional as F
        from pytorch_generative import nn as pg_nn
        from pytorch_generative.models import base
        class ImageGPT(base.AutoregressiveModel):
            def __init__(self, c_in, c_out, size, *sizes):
                super().__init__()
                self.above = pg_nn.Conv2d(c_in, c_out, (2, 3))
            def forward(self, x):
                return self.above(F.pad(x.to(self.above.weight), (1, 1, 2, 0)))[:, :, :-1]
    """,
}


@pytest.mark.parametrize("name", few(["top", "bottom", "own"], 2))
def test_priors_of_codes_are_built_and_drawn(name: str, checkout: Any) -> None:
    how = Settings(1, 2, True, "cpu", None, Path("log"), priors=checkout({"pixelsnail": PRIOR}))
    targets = [found for found in attention.cases(how)[name]() if isinstance(found, Target)]
    assert [target.value is not None for target in targets] == [True] * 3
    assert "in forwards of one image" in targets[0].name and "naive from 8 of 64" in targets[1].name


def test_a_transformer_is_built_and_drawn_without_what_its_packages_import(tmp_path: Path) -> None:
    for name, text in GENERATIVE.items():
        path = tmp_path / "pytorch_generative" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    how = Settings(1, 2, True, "cpu", None, Path("log"), generative=tmp_path)
    targets = [found for found in attention.cases(how)["transformer"]() if isinstance(found, Target)]
    assert [target.value is not None for target in targets] == [True] * 3


@pytest.mark.parametrize("name", ["top", "snail"])
def test_attention_is_not_measured_without_a_checkout(name: str) -> None:
    (found,) = attention.cases(Settings(1, 2, True, "cpu", None, Path("log")))[name]()
    assert isinstance(found, Target) and found.value is None and "FOLDER (github.com/" in found.verdict()
