"""What commands and benchmark scripts take as arguments, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from pixelcnn_fast import checkpoint
from pixelcnn_fast.bench.workload import random_model


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks, and shows the defaults that the help texts don't mention."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS) or "(default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (try {self.prog} --help)\n")


class Renamed(argparse.Action):
    """An option that has a new name, which the error gives."""

    def __init__(self, option_strings: list[str], dest: str, to: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self._to = to

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]} is called {self._to} now")


def count(text: str) -> int:
    """An integer, 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value


def count_or_zero(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 or more")
    return value


def counts(text: str) -> list[int]:
    """1,16 -> [1, 16]."""
    return [count(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    return text.split(",")


def size(text: str) -> tuple[int, int]:
    """28x20 -> height 28, width 20; 28 -> both."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or 0 in (sides := (int(found[1]), int(found[2] or found[1]))):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write height x width, as in 28x28")
    return sides


def output_file(path: Path) -> Path:
    """Makes the file's folder. Raises OSError if nothing can be written there: before the work, not after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} can't be written")
    return path


def output_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{path} is a file: name a folder") from None
    return path


def model_of(name: str) -> checkpoint.Model:
    """'default': PixelCNN() with random weights; 'mnist' or a path: that checkpoint."""
    return random_model() if name == "default" else checkpoint.load(name)
