"""The user's module with what is needed to call it: how it takes images, and how its output is read."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from pixelcnn_fast.capture.float64 import computing
from pixelcnn_fast.capture.private_copy import borrowed, private_copy, unwrapped
from pixelcnn_fast.capture.tracer import capture
from pixelcnn_fast.heads import Categorical, Head
from pixelcnn_fast.image_forms import (
    IMAGE_FORMS,
    SCALED_FORMS,
    ImageForm,
    check_choice,
    from_levels,
)
from pixelcnn_fast.program.conditions import EXAMPLE_BATCH, Conditions, Given
from pixelcnn_fast.program.program import FromLevels, Instruction, Program, Step

CHECKED_PIXELS = 2048  # of all images that a program is checked on, unless that is fewer than three images


class ModelArguments(TypedDict, total=False):
    """The keyword arguments of ``Sampler``, ``receptive_field`` and ``check_causal`` that describe a model."""

    head: Head | None
    levels: int | None
    conditional: bool | None
    image_form: ImageForm
    condition_shape: tuple[int, ...] | None


class WrappedModel:
    """``Sampler`` explains the arguments. ``module`` is a copy in eval mode: the user's own is not touched, unless it
    can't be copied.

    ``head`` has its layout once the model is captured.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: tuple[int, int, int],
        *,
        head: Head | None = None,
        levels: int | None = None,
        conditional: bool | None = None,
        image_form: ImageForm = "uint8",
        condition_shape: tuple[int, ...] | None = None,
    ) -> None:
        module = unwrapped(module)
        self.image_form = image_form
        self.shape = _checked_shape(shape)
        if head is not None and not isinstance(head, Head):
            raise ValueError(f"head is {head!r}, expected a head, such as heads.Categorical(...)")
        if head is not None and levels not in (None, head.levels):
            raise ValueError(f"levels is {levels}, but {head} has {head.levels}: leave levels out")
        if levels is None:
            levels = getattr(module, "levels", 256)
        self.head = head if head is not None else Categorical(levels)
        self.head.check()
        self.levels = self.head.levels
        check_choice("image_form", image_form, IMAGE_FORMS)
        if self.levels is None:
            if image_form != "levels":
                raise ValueError(
                    f"{self.head} draws real numbers, which a model takes as they are: pass image_form='levels'"
                )
        elif self.levels < 2 or (image_form == "uint8" and self.levels > 256):
            raise ValueError(
                f"levels is {self.levels}: expected 2 or more, and at most 256 with image_form='uint8'; for more, pass "
                "image_form='int64', 'codes' or a floating point form, whichever the model takes"
            )
        if image_form == "codes" and self.shape[0] != 1:
            raise ValueError(
                f"image_form 'codes' is [N, H, W], of one channel; the shape {self.shape} has {self.shape[0]}"
            )
        self.conditional = _takes_labels(module) if conditional is None else conditional
        self.n_classes = getattr(module, "n_classes", None)
        if condition_shape is None and getattr(module, "condition_channels", None) is not None:
            channels: Any = module.condition_channels
            condition_shape = (channels, *self.shape[1:])
        self.condition_shape = condition_shape
        self.dtype, self.device = _dtype_and_device(module)
        copied = private_copy(module)
        self.module, self._is_borrowed = (module, True) if copied is None else (copied, False)
        self._own_dtype = self.dtype  # which the module's code may name

    def in_float64(self) -> WrappedModel | None:
        """The same model in float64, or None if it is in float64 already or can't be converted."""
        if self.dtype == torch.float64 or self._is_borrowed:
            return None
        try:
            module = copy.deepcopy(self.module).double()
        except (RuntimeError, TypeError):  # no memory is left, or the device has no float64
            return None
        exact = copy.copy(self)
        exact.module, exact.dtype = module, torch.float64
        return exact

    def example(self, seed: int = 0, n: int = EXAMPLE_BATCH, half: int | None = None) -> tuple[Tensor, Given]:
        """Random values [n, C, H, W], and what the model takes besides images. Another seed gives other classes.

        half: 0 or 1 for levels of the lower or the upper half alone; of a real number x, for x / 2 or (x + 1) / 2.
        """
        generator = torch.Generator().manual_seed(seed)
        values = self.head.examples((n, *self.shape), generator).to(self.device)
        if half is not None:
            values = (values + half) / 2 if self.levels is None else values // 2 + half * (self.levels // 2)
        labels = None
        if self.conditional:
            labels = (seed + torch.arange(n, device=self.device)) % (self.n_classes or 2)
        condition = None
        if self.condition_shape is not None:
            condition = torch.randn(n, *self.condition_shape, generator=generator).to(self.device, self.dtype)
        return values, Given(labels, condition)

    def examples_to_check(self) -> list[tuple[Tensor, Given]]:
        """Other examples than the one that is captured, in batches of other sizes: dark, bright and random images."""
        n = max(3, min(63, CHECKED_PIXELS // (self.shape[1] * self.shape[2]))) | 1
        return [self.example(1, 1, half=0), self.example(2, 1, half=1), self.example(3, n)]

    def captured(self, values: Tensor, given: Given) -> tuple[Program, Conditions, Tensor]:
        """Runs the module on an example -> (program, conditions, what the head reads: parameters [N, D, H, W, P])."""
        examples = [(self.encode(values), given.in_dtype(self.dtype))]
        for seed in (1, 2):  # a statistic of the whole image shall differ
            others, given = self.example(seed, EXAMPLE_BATCH + 1, half=seed % 2)
            examples.append((self.encode(others), given))
        levels = None
        if self.levels is not None:
            levels = self.encode(torch.arange(self.levels).view(1, 1, 1, -1)).flatten().to(self.dtype)
        running = partial(computing, self.dtype, self._own_dtype)
        program, conditions, output, self.head, self.weights = capture(
            self.module, examples, self.head, levels, self.n_classes, running
        )
        if (interval := SCALED_FORMS.get(self.image_form)) is not None and self.levels is not None:
            program = _with_scaled_input(program, self.levels, *interval)
        return program, conditions, output

    @torch.no_grad()
    def parameters(self, values: Tensor, given: Given) -> Tensor:
        """values: [N, C, H, W] -> what the head reads, [N, D, H, W, P], by the module's own forward."""
        with computing(self.dtype, self._own_dtype):
            output = given.in_dtype(self.dtype).call(self.module, self.encode(values))
            return self.head.arranged(output, self.shape[0])

    def encode(self, values: Tensor) -> Tensor:
        """Converts values as they are drawn to images as the module takes them."""
        values = values.to(self.device)
        if self.levels is None:
            return values.to(self.dtype)
        return from_levels(values, self.image_form, self.levels, self.dtype)

    def checked_images(self, images: Tensor) -> Tensor:
        """A copy of the values of images from a user, as the head draws them. Raises ValueError for bad images."""
        if images.dim() != 4 or images.shape[1:] != self.shape:
            raise ValueError(
                f"images have shape {list(images.shape)}, expected [n, {', '.join(map(str, self.shape))}]"
            )
        return self.head.checked(images)

    def checked_given(self, labels: Tensor | None, condition: Tensor | None, n: int) -> Given:
        """What a user gave besides n images, on the model's device. Raises ValueError if the model does not take it."""
        return Given(self._checked_labels(labels, n), self._checked_condition(condition, n))

    def _checked_labels(self, labels: Tensor | None, n: int) -> Tensor | None:
        if not self.conditional:
            if labels is not None:
                raise ValueError(
                    "labels were given, but the sampler was built for a model without labels: if its forward takes "
                    "labels, build the sampler with conditional=True"
                )
            return None
        if labels is None:
            raise ValueError(f"this model is conditional: pass labels, integers [{n}]")
        labels = torch.as_tensor(labels)
        if labels.shape != (n,) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [{n}]")
        if n and self.n_classes and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
            raise ValueError(
                f"labels span {int(labels.min())}...{int(labels.max())}, expected 0...{self.n_classes - 1}"
            )
        return labels.to(self.device, torch.long)

    def _checked_condition(self, condition: Tensor | None, n: int) -> Tensor | None:
        shape = self.condition_shape
        if shape is None:
            if condition is not None:
                raise ValueError(
                    "a condition was given, but the sampler was built without one: pass condition_shape= to Sampler"
                )
            return None
        if condition is None or tuple(condition.shape) != (n, *shape) or not condition.is_floating_point():
            found = "missing" if condition is None else f"{condition.dtype} {list(condition.shape)}"
            raise ValueError(f"the condition is {found}, expected floating point {[n, *shape]}")
        return condition.to(self.device, self.dtype)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The context in which the module may be run: autocast is off, and a module that could not be copied is locked
        and in eval mode."""
        with ExitStack() as stack:
            if self._is_borrowed:
                stack.enter_context(borrowed(self.module))
            for device in {"cpu", self.device.type}:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"shape is {tuple(shape)}, expected (C, H, W), all positive integers")
    channels, height, width = shape
    return channels, height, width


def _dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    kinds = {(p.dtype, p.device) for p in model.parameters()}
    if not kinds:
        raise ValueError("the model has no parameters")
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(
            f"the model's parameters differ in dtype or device ({found}): convert it with model.to(...)"
        )
    return kinds.pop()


def _takes_labels(model: nn.Module) -> bool:
    if hasattr(model, "n_classes"):
        return model.n_classes is not None
    positional = [
        p
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(positional) > 1 and positional[1].default is inspect.Parameter.empty


def _with_scaled_input(program: Program, levels: int, low: float, high: float) -> Program:
    """The program with levels scaled to low...high first, since the model was run on images in that range."""

    def scaled(i: Instruction) -> Instruction:
        if not isinstance(i, FromLevels) or i.table is not None:
            return i
        one = torch.ones(i.channels, dtype=program.dtype, device=program.device)
        step = Step("affine", scale=one * ((high - low) / (levels - 1)), shift=one * low)
        return replace(i, steps=(step, *i.steps))

    return replace(program, instructions=tuple(map(scaled, program.instructions)))
