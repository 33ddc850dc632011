"""The library's own errors, each also of the built-in kind that it is most like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from torch import Tensor


class PixelCNNFastError(Exception):
    """The base of the library's own errors."""


class Unsupported(PixelCNNFastError, ValueError):
    """The model does something that has no place in a causal program."""


class NotCausal(PixelCNNFastError, ValueError):
    """The model's output at a sub-pixel depends on that sub-pixel or a later one."""


class UnknownLayout(PixelCNNFastError, ValueError):
    """The model's output fits no head, or several."""


class NonFiniteLogits(PixelCNNFastError, ValueError):
    """Logits are NaN or infinite. location: the first (image, channel, row, column) where
    they are; found: the number that is there, if it is known."""

    def __init__(self, image: int, channel: int, row: int, column: int, found: float | None = None) -> None:
        self.location, self.found = (image, channel, row, column), found
        super().__init__(image, channel, row, column, found)

    def moved(self, images: int) -> NonFiniteLogits:
        """The same error for images whose numbers are larger by ``images``."""
        image, channel, row, column = self.location
        return NonFiniteLogits(image + images, channel, row, column, self.found)

    def __str__(self) -> str:
        image, channel, row, column = self.location
        what = "NaN or infinite" if self.found is None else str(self.found)
        where = f"image {image}, channel {channel}, row {row}, column {column}: the logits are {what}"
        if self.found == -inf:
            return f"{where}; to rule levels out, set their logits to a finite number, such as -1e9"
        return (
            f"{where}; check the model's weights, the scale of known pixels if you gave any, and whether masked "
            "scores of attention, such as -1e4, are far below all others"
        )


class ModelFailed(PixelCNNFastError, RuntimeError):
    """The model raised when it was called."""


class RuntimeUnavailable(PixelCNNFastError, RuntimeError):
    """A runtime can't serve a model on this machine; 'auto' takes another. why: the reason."""

    def __init__(self, why: str, runtime: str = "cuda") -> None:
        self.why, self.runtime = why, runtime
        super().__init__(why, runtime)

    def __str__(self) -> str:
        return f"runtime {self.runtime!r} is not available: {self.why}"


class CaptureMismatch(PixelCNNFastError, RuntimeError):
    """The captured program does not compute what the model computes."""


class InvalidProgram(PixelCNNFastError, AssertionError):
    """A pass, or capture, has made a program that breaks a rule: please report it."""


class CheckFailed(PixelCNNFastError, RuntimeError):
    """A sampler did not draw what the model gives for the noise."""


class SamplingInterrupted(KeyboardInterrupt):  # so that no ``except Exception`` swallows it
    """Ctrl-C stopped a run. images: [finished, C, H, W]; log_probabilities: [finished], or None."""

    def __init__(self, images: Tensor, wanted: int, log_probabilities: Tensor | None = None) -> None:
        super().__init__(images, wanted, log_probabilities)
        self.finished, self.images, self.log_probabilities = len(images), images, log_probabilities

    def __str__(self) -> str:
        return f"sampling was interrupted: {self.finished} of {self.args[1]} images are finished"


@contextmanager
def advising(what: str) -> Iterator[None]:
    """Within the context, an Unsupported error also says what the user can do instead."""
    try:
        yield
    except Unsupported as error:
        error.args = (f"{error}; {what}",)
        raise
