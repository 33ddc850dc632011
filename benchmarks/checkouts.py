"""Other people's models, run from checkouts: their code is fetched, and no part of this repository."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PORT, PUBLIC = "github.com/pclucas14/pixel-cnn-pp", "github.com/pedrorgleite/ConditionalPixelCNN"
PRIORS, GENERATIVE = (
    "github.com/rosinality/vq-vae-2-pytorch",
    "github.com/EugenHotaj/pytorch-generative",
)
# The port is of Python 2, and its loss asks for a GPU.
PORT_EDITS = {"print e\n": "print(e)\n", ".cuda()": ""}
COMPONENTS, CLASSES = 15, 4  # of the public checkpoint
NONE: Mapping[str, Any] = MappingProxyType({})


def modules(
    folder: Path,
    names: Sequence[str],
    edits: Mapping[str, str] = NONE,
    given: Mapping[str, ModuleType] = NONE,
) -> list[Any]:
    """These modules of a folder, each of which may import those before it.

    edits: what stands in their text, and what to put there; given: modules that they import
    and that need not be installed. Afterwards, their names mean what they did before.
    """
    found: list[ModuleType] = []
    before = {name: sys.modules.get(name) for name in [*given, *names]}
    sys.modules.update(given)
    try:
        for name in names:
            path = folder / f"{name}.py"
            text = path.read_text()
            for old, new in edits.items():
                text = text.replace(old, new)
            module = ModuleType(f"{folder.name}.{name}")
            module.__file__ = str(path)
            sys.modules[name] = module
            sys.modules[module.__name__] = module  # stays, since torch.compile imports a function's module
            exec(compile(text, path, "exec"), vars(module))
            found.append(module)
    finally:
        for name, module_before in before.items():
            del sys.modules[name]
            if module_before is not None:
                sys.modules[name] = module_before
    return found


class Port:
    """The common PyTorch port, without dropout. loss: of images in -1...1 and the model's output."""

    def __init__(self, folder: Path) -> None:
        utils, _, self._model = modules(folder, ["utils", "layers", "model"], PORT_EDITS)
        self.loss = utils.discretized_mix_logistic_loss

    def model(self, **sizes: int) -> nn.Module:
        found: nn.Module = self._model.PixelCNN(**sizes)
        for module in found.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0
        return found.train()


class Public:
    """A public checkpoint of a conditional PixelCNN++, with its own model and loop."""

    def __init__(self, folder: Path) -> None:
        dataset = ModuleType("dataset")  # theirs reads tables and pictures
        dataset.__dict__["my_bidict"] = {label: label for label in range(CLASSES)}
        names = ["utils", "layers", "model"]
        self._utils, _, model = modules(folder, names, given={"dataset": dataset})
        self.model: nn.Module = model.PixelCNN(nr_resnet=2, nr_filters=30, nr_logistic_mix=COMPONENTS)
        weights = folder / "models" / "conditional_pixelcnn.pth"
        self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.model.eval()

    def drawn(self, noise: Tensor, label: int) -> Tensor:
        """What its own loop draws by ``LogisticMixture``'s noise, [n, 4, H, W] -> [n, 3, H, W] in -1...1."""

        def draw(output: Tensor) -> Tensor:
            with Uniforms(self._uniforms(output, noise)):
                image: Tensor = self._utils.sample_from_discretized_mix_logistic(output, COMPONENTS)
            return image

        image: Tensor = self._utils.sample(self.model, len(noise), (3, *noise.shape[2:]), draw, label)
        return image

    def _uniforms(self, output: Tensor, noise: Tensor) -> list[Tensor]:
        """The uniforms that it draws by, channels last. The component is the largest logit - ln(-ln u), and so the
        only one whose u is 1: the first in whose share of π our first uniform lies."""
        ends = output[:, :COMPONENTS].double().softmax(1).cumsum(1)
        chosen = (noise[:, :1] >= ends).sum(1).clamp_max(COMPONENTS - 1)
        return [(1 + F.one_hot(chosen, COMPONENTS)) / 2, noise[:, 1:].movedim(1, -1)]


class Priors:
    """The PixelSNAILs that are trained on the codes of a VQ-VAE-2."""

    def __init__(self, folder: Path) -> None:
        (self._code,) = modules(folder, ["pixelsnail"])

    def model(self, *sizes: Any, **settings: Any) -> nn.Module:
        found: nn.Module = self._code.PixelSNAIL(*sizes, **settings)
        return found


class Generative:
    """Models of pytorch-generative, without what its packages import besides."""

    FILES: Mapping[str, str] = MappingProxyType({"ImageGPT": "image_gpt", "PixelSNAIL": "pixel_snail"})

    def __init__(self, folder: Path) -> None:
        for known in [name for name in sys.modules if name.startswith("pytorch_generative")]:
            del sys.modules[known]  # of another checkout
        path, name = folder, ""
        for part in ("pytorch_generative", "models", "autoregressive"):
            path, name = path / part, f"{name}.{part}".lstrip(".")
            package = ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package
        importlib.import_module("pytorch_generative.nn")
        models = sys.modules["pytorch_generative.models"]
        models.__dict__["base"] = importlib.import_module("pytorch_generative.models.base")

    def model(self, name: str, *sizes: Any) -> nn.Module:
        file = importlib.import_module(f"pytorch_generative.models.autoregressive.{self.FILES[name]}")
        found: nn.Module = getattr(file, name)(*sizes)
        return found


class Uniforms(TorchFunctionMode):
    """Here, these are what ``uniform_`` fills others with"""

    def __init__(self, values: Sequence[Tensor]) -> None:
        super().__init__()
        self._values = iter(values)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.uniform_:
            return args[0].copy_(next(self._values))
        return func(*args, **(kwargs or {}))
