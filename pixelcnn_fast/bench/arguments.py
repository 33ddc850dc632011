"""What commands and benchmark scripts take as arguments, and their parser."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pixelcnn_fast.bench.streams import complain, say
from pixelcnn_fast.files import check_replaceable

LARGEST = 10**12  # of anything that is counted


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' line breaks, and shows defaults that help texts don't mention."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        # 0 is a default to show, too.
        has_none = any(action.default is none for none in (None, False, argparse.SUPPRESS))
        if has_none or "(default" in text:
            return text
        return f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (try {self.prog} --help)\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            (say if file is sys.stdout else complain)(message, end="")


class Renamed(argparse.Action):
    """An option that has a new name, which the error gives."""

    def __init__(self, option_strings: list[str], dest: str, to: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self._to = to

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(f"{self.option_strings[0]} is called {self._to} now")


def whole(lowest: int, highest: int = LARGEST) -> Callable[[str], int]:
    """A type for argparse: an integer in ASCII digits, from ``lowest`` to ``highest``."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch("[+-]?[0-9]{1,20}", text) else None
        if value is None or not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(
                f"{shortened(text)}: expected a whole number from {lowest:,} to {highest:,}"
            )
        return value

    return parse


count = whole(1)
count_or_zero = whole(0)
rounds = whole(1, 10**6)
threads = whole(1, 1024)
seed = whole(0, 2**64 - 1)


def number(text: str) -> float:
    """A number in ASCII; its bounds are checked where it is used."""
    try:
        if not text.isascii() or "_" in text or text != text.strip():
            raise ValueError
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shortened(text)} is not a number") from None


def counts(text: str) -> list[int]:
    """1,16 -> [1, 16]."""
    found = [count(part) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{shortened(text)} names a number twice")
    return found


def size(text: str) -> tuple[int, int]:
    """28x20 -> height 28, width 20; 28 -> both."""
    found = re.fullmatch(r"([0-9]{1,18})(?:x([0-9]{1,18}))?", text)
    if not found or 0 in (sides := (int(found[1]), int(found[2] or found[1]))):
        raise argparse.ArgumentTypeError(
            f"{shortened(text)} is not a size: write height x width, as in 28x28"
        )
    return sides


def image_size(text: str) -> tuple[int, ...]:
    """28x20 or 3x28x20, and what ``size`` takes -> ([C,] H, W)."""
    if found := re.fullmatch("([1-9][0-9]{0,5})x([0-9]+x[0-9]+)", text):
        return int(found[1]), *size(found[2])
    return size(text)


def file_name(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a file or a folder")
    return text


def path(text: str) -> Path:
    return Path(file_name(text))


def picture(kind: str) -> Callable[[str], Path]:
    """A type for argparse: the name of a picture, such as a PNG."""

    def parse(text: str) -> Path:
        if path(text).suffix.lower() != f".{kind}":
            why = f"the picture is a {kind.upper()}, so name it .{kind}"
            raise argparse.ArgumentTypeError(f"{shortened(text)}: {why}")
        return Path(text)

    return parse


png, gif = picture("png"), picture("gif")


def shortened(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:30]!r}... ({len(text)} characters)"


def output_file(path: Path) -> Path:
    """Makes the file's folder. Raises OSError, before any work, if nothing can be written there."""
    if not path.is_dir():
        output_folder(path.parent)
    check_replaceable(path)
    return path


def output_folder(path: Path, *files: str) -> Path:
    """Makes the folder. Raises OSError if that, or one of these files, can't be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{path} is a file: name a folder") from None
    for name in files:
        check_replaceable(path / name)
    return path
