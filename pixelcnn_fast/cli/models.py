"""The model that a command works with, and how a sampler is to take it: options that all commands share."""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import operator
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pixelcnn_fast import checkpoint, heads, image_forms
from pixelcnn_fast.bench.arguments import count_or_zero, file_name, image_size, shortened, whole
from pixelcnn_fast.bench.workload import Workload, random_model, workload
from pixelcnn_fast.cli import memory
from pixelcnn_fast.runtimes import Precision
from pixelcnn_fast.sampler import Sampler
from pixelcnn_fast.user_model.model_arguments import ModelArguments, integer_of, takes_labels

OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
SIZES = {"default": (32, 32)}
SIZE = (28, 28)
EPILOG = """
A model of your own is named my.module:factory: a function or a class that is called without arguments, or the model
itself. The module is imported, from the current folder or wherever Python finds it, so its code is run.
"""


@dataclass(frozen=True)
class Named:
    """A model, and what a sampler is told of it.

    name: as the command line has it. classes: how many it has; None: it takes no labels.
    """

    name: str
    model: nn.Module
    shape: tuple[int, int, int]
    classes: int | None
    arguments: ModelArguments

    @property
    def levels(self) -> int | None:
        """How many levels a sub-pixel has; None if it is a real number."""
        head = self.arguments.get("head")
        if head is not None:
            return head.drawn_levels
        return self.arguments.get("levels") or integer_of(self.model, "levels") or 256

    @property
    def is_own(self) -> bool:
        return type(self.model) not in checkpoint.FAMILIES

    @property
    def title(self) -> str:
        return self.name if self.is_own else Path(self.name).stem

    def sampler(self, precision: Precision = "same", runtime: str = "auto") -> Sampler:
        """runtime: the one to draw with; 'reference' takes models of one's own that no other can draw from."""
        preferred: Any = "reference" if self.is_own and runtime == "reference" else "auto"
        return Sampler(self.model, self.shape, precision=precision, runtime=preferred, **self.arguments)

    def workload(self, n: int, seed: int) -> Workload:
        """n images, for benchmarks."""
        channels, height, width = self.shape
        described = {name: self.arguments.get(name) for name in ("head", "image_form", "levels")}
        settings: Any = dict(**described, channels=channels, classes=self.classes or 0)
        return workload(self.model, n, height, width, seed, **settings)


def add_arguments(parser: argparse.ArgumentParser, default: str = "mnist") -> None:
    """--model and what describes it; the parser's epilog should end with ``EPILOG``."""
    add = parser.add_argument_group("model").add_argument
    which = (
        "'mnist', which comes with the package; a file that pixelcnn_fast.checkpoint.save wrote; my.module:factory, a "
        "model of your own, whose code is run; or 'default': PixelCNN(), random weights"
    )
    add("--model", "--checkpoint", type=file_name, default=default, help=which)
    sizes = "of an image, such as 28x28, or 3x32x32 for a model that does not say how many channels it has"
    add(
        "--size",
        type=image_size,
        metavar="[Cx]HxW",
        help=f"{sizes} (default: the given images' size, else 28x28, or 32x32 for 'default')",
    )
    levels = "levels of a sub-pixel (default: the model's own levels, or 256)"
    add("--levels", type=whole(2, 2**31 - 1), metavar="N", help=levels)
    form = f"in which it takes images: {', '.join(image_forms.IMAGE_FORMS)}, or such as 'Normalize(0.5, 0.5)'"
    add("--image-form", type=_image_form, default="uint8", metavar="FORM", help=form)
    head = "how its output is read, such as 'LogisticMixture(10)' of pixelcnn_fast.heads (default: a logit a level)"
    add("--head", type=_head, metavar="HEAD", help=head)
    classes = "how many classes it takes labels of, 0 for none (default: the model's own n_classes)"
    add("--classes", type=count_or_zero, metavar="N", help=classes)


def named(args: argparse.Namespace, of_images: tuple[int, int, int] | None = None) -> Named:
    """The model that the arguments name. of_images: (C, H, W) of the images that are given.

    Raises ValueError if it can't be had, or if the images of this size need too much memory.
    """
    model = _load(args.model)
    *channels, height, width = args.size or (of_images or SIZES.get(args.model, SIZE))[-2:]
    own = integer_of(model, "input_channels")
    if own and channels not in ([], [own]):
        raise ValueError(f"--size has {channels[0]} channels, but the images of {args.model} have {own}")
    found = own or next(iter(channels), None) or (of_images and of_images[0])
    if not found:
        raise ValueError(
            f"--model {args.model} does not say how many channels its images have: give them first, as in --size "
            f"1x{height}x{width} (or give it the attribute input_channels)"
        )
    classes = integer_of(model, "n_classes") if args.classes is None else args.classes or None
    if args.classes is None and classes is None and takes_labels(model, None):
        raise ValueError(
            f"--model {args.model}: its forward needs more than images: say of how many classes it takes labels, as in "
            "--classes 10; a model that takes something else is sampled in Python, with pixelcnn_fast.Sampler"
        )
    arguments = ModelArguments(
        head=args.head, levels=args.levels, image_form=args.image_form, conditional=classes is not None
    )
    result = Named(args.model, model, (int(found), height, width), classes, arguments)
    needed = memory.to_capture(model, result.shape, result.levels or 1, classes)
    memory.check_memory(needed, f"--size {height}x{width}")
    return result


def _load(name: str) -> nn.Module:
    if name == "default":
        return random_model()
    if OWN.fullmatch(name) and not Path(name).exists():
        return _made(name)
    try:
        return checkpoint.load(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; a model of your own is named my.module:factory") from error


def _made(name: str) -> nn.Module:
    """What the factory of my.module:factory returns."""
    module, _, factory = name.partition(":")
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module needs
        where = "in the current folder or where Python looks for modules"
        raise ValueError(f"--model {name}: there is no module {error.name} {where}") from error
    except Exception as error:
        raise ValueError(f"--model {name}: importing {module} raised {_told(error)}") from error
    try:
        found = operator.attrgetter(factory)(found)
    except AttributeError as error:
        near = difflib.get_close_matches(factory, dir(found), 1)
        hint = f"; is it {near[0]}?" if near else ""
        raise ValueError(f"--model {name}: the module {module} has no {factory}{hint}") from error
    if callable(found) and not isinstance(found, nn.Module):
        try:
            found = found()
        except Exception as error:
            raise ValueError(f"--model {name}: {factory}() raised {_told(error)}") from error
    if not isinstance(found, nn.Module):
        raise ValueError(f"--model {name} gives a {type(found).__name__}, expected a torch.nn.Module")
    return found


def _told(error: Exception) -> str:
    """The error, and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"


def _constructed(module: ModuleType, kind: type, text: str) -> Any:
    """'Name(1, key="x")' -> what the class of that name makes of these constants. No other code is run."""
    known = {name: x for name, x in vars(module).items() if isinstance(x, type) and issubclass(x, kind)}
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("expected a call, such as Name(1, key='x')")
        if call.func.id not in known:
            raise ValueError(f"there is no {call.func.id} in {module.__name__}")
        given = [ast.literal_eval(x) for x in call.args]
        return known[call.func.id](*given, **{str(x.arg): ast.literal_eval(x.value) for x in call.keywords})
    except (SyntaxError, ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: {error}") from error


_head: Callable[[str], heads.Head] = partial(_constructed, heads, heads.Head)


def _image_form(text: str) -> image_forms.ImageForm:
    if text in image_forms.IMAGE_FORMS:
        return text
    form: image_forms.ImageForm = _constructed(image_forms, image_forms.Form, text)
    return form
