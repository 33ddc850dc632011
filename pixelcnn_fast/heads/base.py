"""``Head``, which turns a model's output and noise into values, and scores values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, fields, is_dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from typing_extensions import Self

from pixelcnn_fast.errors import NonFiniteLogits, UnknownLayout
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.heads.output import picked
from pixelcnn_fast.image_forms import ImageForm

EXAMPLES_OF_VALUES = 4
HOT = 16  # the temperature at which distributions are compared besides 1


class Head(ABC):
    """How a model's output gives the distribution of each pixel's values, and how they are drawn.

    A pixel has D distributions of P parameters: one for each image channel, or, if
    ``joint``, one. Each is drawn with ``uniforms`` numbers of noise and gives c = C / D
    values. Derive from this class for a distribution of your own; the runtimes 'reference'
    and 'eager' need nothing else.
    """

    # How many values a sub-pixel of an image can have, integers from 0; None: they are real numbers.
    levels: int | None = None
    joint: bool = False
    uniforms: int = 1
    # The dtype of values while they are drawn: an integer one for levels, else one for real numbers.
    value_dtype: torch.dtype = torch.int32
    # The form in which a model takes values that are real numbers while they are drawn.
    real_form: ClassVar[ImageForm] = "levels"
    # Why there is no log-probability of values; None: there is one.
    unscored: str | None = None
    # Whether a log-softmax of the parameters gives the same distribution.
    of_logits: ClassVar[bool] = False
    # The options that ``draw`` heeds; others are refused.
    options: ClassVar[frozenset[str]] = frozenset({"temperature"})
    # What ``distance`` measures, for messages.
    distance_name: ClassVar[str] = "relative difference of log-densities"
    # Its name in program/schema.py's HEADS; None: the compiled runtimes can't draw it.
    native: ClassVar[str | None] = None
    # The methods and constants that decide what is drawn, and how it is scored.
    decisive: ClassVar[tuple[str, ...]] = ("draw", "log_probability")

    def __init_subclass__(cls, **arguments: Any) -> None:
        """A subclass with a ``decisive`` method, constant or field of its own does not inherit
        ``native`` and ``of_logits``."""
        super().__init_subclass__(**arguments)
        for name, default in (("native", None), ("of_logits", False)):
            says_so = next(each for each in cls.__mro__ if name in vars(each))
            own = map(vars, cls.__mro__[: cls.__mro__.index(says_so)])
            if any({*each, *each.get("__annotations__", ())}.intersection(cls.decisive) for each in own):
                setattr(cls, name, default)

    def __repr__(self) -> str:
        """What makes a head of a dataclass, but for defaults."""
        own: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        said = [f"{x.name}={getattr(self, x.name)!r}" for x in own if getattr(self, x.name) != x.default]
        return f"{type(self).__name__}({', '.join(said)})"

    @property
    def drawn_levels(self) -> int | None:
        """How many values a sub-pixel can have while it is drawn; None: they are real numbers then."""
        return None if self.value_dtype.is_floating_point else self.levels

    def check(self) -> None:
        """Raises ValueError if the class's attributes contradict each other."""
        if self.levels is None and not self.value_dtype.is_floating_point:
            raise ValueError(f"{self} draws real numbers, which value_dtype {self.value_dtype} can't hold")
        if self.uniforms < 1:
            raise ValueError(f"{self} draws with {self.uniforms} uniforms: expected 1 or more")

    def check_options(self, options: SamplingOptions) -> None:
        """Raises ValueError for an option that this head does not heed."""
        for option in fields(options):
            if option.name not in self.options and getattr(options, option.name) != option.default:
                raise ValueError(f"{option.name} is not used by {self}")

    def check_known(self, known: Tensor) -> None:  # noqa: B027 - most can draw the others
        """Raises ValueError if the head can't draw the others where these values are given, bool [N, C, H, W]."""

    def native_fields(self) -> dict[str, Any]:
        """What schema.Head has of it besides what any head has."""
        return {}

    @final
    def check_scored(self) -> None:
        """Raises ValueError if values have no log-probability."""
        if self.unscored is not None:
            raise ValueError(f"{self} has no log-probability: {self.unscored}")

    # -- the model's output

    @abstractmethod
    def resolved(self, output: Tensor, shape: tuple[int, ...]) -> Self:
        """The head with its layout, read off the output for images of ``shape``
        [N, C, H, W]. Raises UnknownLayout, with the alternatives, if none fits or
        several do."""

    @abstractmethod
    def arranged(self, output: Tensor, channels: int) -> Tensor:
        """The model's output, in a known layout -> parameters [N, D, H, W, P]; channels: C.
        It is captured with the model, so it makes only calls of docs/supported_calls.md."""

    def of_model_in(self, dtype: torch.dtype) -> Self:
        """The head for a model of that dtype, even when a copy of it runs in another."""
        return self

    def comparable(self, parameters: Tensor) -> Tensor:
        """The numbers that must be finite: the parameters, or, say, probabilities."""
        return parameters

    def hot(self, parameters: Tensor) -> Tensor | None:
        """Parameters of distributions at the temperature ``HOT``, in which what is all but
        certain hides nothing from ``distance``; None: they would tell nothing more."""
        return None

    def distance(self, one: Tensor, other: Tensor, channels: int) -> Tensor:
        """How far apart the distributions of two tensors of parameters are.

        one, other: [N, D, H, W, P], of any floating dtype; channels: C -> float64
        [N, D, H, W], NaN where there is none. By default, the greatest difference of
        log-densities, or for levels of probabilities, for a few ``examples``. No large
        parameter may hide others.
        """
        n, distributions, height, width, _ = one.shape
        found, generator = [], torch.Generator().manual_seed(0)
        for _ in range(EXAMPLES_OF_VALUES):
            values = self.examples((n, channels, height, width), generator).to(one.device)
            values = values.unflatten(1, (distributions, -1)).movedim(2, -1)
            a, b = (self.log_probability(parameters.double(), values) for parameters in (one, other))
            if self.drawn_levels is not None:
                a, b = a.exp(), b.exp()
            difference = (a - b).abs() / (1 if self.drawn_levels is not None else b.abs().clamp_min(1))
            found.append(difference.masked_fill(a == b, 0).amax(-1))  # also where both are infinite
        return torch.stack(found).amax(0).double()

    def check_read(self, parameters: Tensor) -> None:
        """Raises UnknownLayout, or warns, if parameters [N, D, H, W, P] are unlike what the head reads."""
        if self.of_logits and bool((parameters >= 0).all()):
            if bool(((parameters.double().sum(-1) - 1).abs() < 0.01).all()):
                raise UnknownLayout(
                    f"the model's output sums to 1 over the levels, but {self} reads it as logits: if it holds "
                    "probabilities, say so with head=heads.Categorical(levels, layout, probabilities=True)"
                )

    def misread(self, last_call: str) -> str | None:
        """What to tell the user if the model's last call shows that it is misread, else None."""
        return None

    @final
    def distributions(self, channels: int) -> int:
        """D, for images with this many channels."""
        return 1 if self.joint else channels

    # -- values

    @abstractmethod
    def draw(
        self, parameters: Tensor, noise: Tensor, options: SamplingOptions, values: Tensor, known: Tensor
    ) -> Tensor:
        """Draws the values of distributions -> [..., c].

        parameters: [..., P]; noise: float64 in [0, 1), [..., uniforms]; values: [..., c];
        known: bool [..., c], the values that are given, on which the others may depend.
        What is drawn for them does not matter.
        """

    @abstractmethod
    def log_probability(self, parameters: Tensor, values: Tensor) -> Tensor:
        """ln p of each value given those before it: parameters [..., P], values [..., c] -> float64 [..., c]."""

    @abstractmethod
    def examples(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random values of ``shape``, such as a model may be given."""

    @abstractmethod
    def checked(self, values: Tensor) -> Tensor:
        """Values that a user gave -> a copy in ``value_dtype``. Raises ValueError, saying why."""

    @abstractmethod
    def as_images(self, values: Tensor) -> Tensor:
        """Drawn values -> images as users get them, of the same shape."""

    def excess(self, parameters: Tensor, values: Tensor, noise: Tensor) -> Tensor:
        """How far noise lies from where these values would be drawn with it, for the oracle of benchmarks.

        parameters: [..., P]; values: [..., c]; noise: [..., uniforms] -> float64 [..., c], in cumulative probability.
        """
        raise NotImplementedError(f"{self} does not say with which noise values are drawn")

    def nll(self, parameters: Tensor, values: Tensor) -> Tensor:
        """-ln p: parameters [N, D, H, W, P], values [N, C, H, W] -> nats [N], differentiable."""
        by_distribution = values.unflatten(1, (parameters.shape[1], -1)).movedim(2, -1)
        return -self.log_probability(parameters, by_distribution).flatten(1).sum(1)

    def check_finite(
        self, parameters: Tensor, row: int, column: int, first_channel: int = 0, each: int = 1
    ) -> None:
        """Raises NonFiniteLogits if a parameter is NaN or infinite. parameters: [N, d, P]
        of pixel (row, column), from ``first_channel`` on; each: image channels per
        distribution."""
        bad = ~torch.isfinite(parameters)
        if bad.any():
            image, distribution, at = bad.nonzero()[0].tolist()
            found = parameters[image, distribution, at].item()
            raise NonFiniteLogits(image, first_channel + distribution * each, row, column, found)


def resolved(head: Head, output: object, shape: tuple[int, ...]) -> Head:
    """The head with its layout, read off the output for images of ``shape`` [N, C, H, W].
    Raises UnknownLayout, with the alternatives, if none fits or several do, or if it is not
    one tensor."""
    return head.resolved(picked(output, None), shape)
