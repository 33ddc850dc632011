"""Workloads: a model, and the noise and labels that every contestant gets."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixelcnn_fast.heads import Head
from pixelcnn_fast.image_forms import ImageForm
from pixelcnn_fast.models import Model, PixelCNN, reference
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.sampler import Sampler
from pixelcnn_fast.user_model.model_arguments import ModelArguments, head_of, integer_of


@dataclass(frozen=True)
class Workload:
    """noise: u, float64 [n, D * uniforms, H, W] in [0, 1); labels: [n] for a conditional
    model; head, image_form: as for ``Sampler``; channels: of an image, if the model does not say it."""

    model: nn.Module
    noise: Tensor
    labels: Tensor | None
    head: Head | None = None
    image_form: ImageForm = "uint8"
    channels: int | None = None

    @property
    def images(self) -> int:
        return self.noise.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        _, _, height, width = self.noise.shape
        return self.channels or integer_of(self.model, "input_channels") or 1, height, width

    @property
    def pixels(self) -> int:
        return self.noise.shape[2] * self.noise.shape[3]

    def sampler(self, precision: Precision = "same") -> Sampler:
        return Sampler(self.model, self.shape, precision=precision, **self.arguments)

    @property
    def arguments(self) -> ModelArguments:
        is_conditional = self.labels is not None
        return ModelArguments(head=self.head, image_form=self.image_form, conditional=is_conditional)

    def plain_model(self) -> nn.Module:
        """The model in plain PyTorch layers, as a user's own is: what a naive sampler runs."""
        model = self.model
        if not isinstance(model, Model):
            return copy.deepcopy(model)
        plain = getattr(reference, type(model).__name__)(**model.config)
        plain.load_state_dict(model.state_dict())
        plain.n_classes = model.n_classes
        return plain.to(next(model.parameters())).eval()


def workload(
    model: nn.Module,
    n: int,
    height: int,
    width: int,
    seed: int = 0,
    head: Head | None = None,
    image_form: ImageForm = "uint8",
    *,
    levels: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
) -> Workload:
    """n images, one of each class in turn if the model has classes; by default it says how many, and of channels."""
    generator = torch.Generator().manual_seed(seed)
    channels = channels or integer_of(model, "input_channels") or 1
    classes = integer_of(model, "n_classes") if classes is None else classes
    head = head_of(model, (channels, height, width), head, levels, image_form)
    uniforms = head.uniforms * head.distributions(channels)
    noise = torch.rand(n, uniforms, height, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % classes if classes else None
    return Workload(model.eval(), noise, labels, head, image_form, channels)


def random_model(seed: int = 0, family: type[Model] = PixelCNN, **config: Any) -> Model:
    """family(**config), made not trivial to sample from. PyTorch's global generator stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = family(**config).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        levels = getattr(model, "levels", 256)
        image = torch.randint(levels, (1, model.input_channels, 16, 16)).to(torch.uint8)
        logits = model(image) if model.n_classes is None else model(image, torch.zeros(1, dtype=torch.long))
        scale = 2 / logits.std()
        last = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-1]
        for parameter in last.parameters():
            parameter.mul_(scale)
    return model
