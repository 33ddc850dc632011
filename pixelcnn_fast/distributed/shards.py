"""The folder of a job: a manifest, which says what the job is, and numbered files of images, the shards."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors.numpy

from pixelcnn_fast.files import replacing
from pixelcnn_fast.image_forms import check_choice

FileFormat = Literal["npz", "safetensors"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
MANIFEST = "manifest.json"
LONGEST_SHOWN = 16  # characters of a value in a message: enough of a fingerprint
DIGITS = 6  # of a shard's number, so that names sort as numbers up to a million shards


class Shards:
    """n images in files of ``size`` each, of which the last may have fewer. A file that exists is whole."""

    def __init__(self, folder: Path, n: int, size: int, file_format: FileFormat) -> None:
        check_choice("file_format", file_format, FORMATS)
        for name, value, least in (("n", n, 0), ("shard_size", size, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}: expected an integer, {least} or more")
        self.folder, self.n, self.size, self.file_format = folder, n, size, file_format
        self.count = math.ceil(n / size)

    def images(self, shard: int) -> range:
        """The numbers of the images in a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def path(self, shard: int) -> Path:
        return self.folder / self._name(shard)

    def finished(self) -> np.ndarray:
        """bool [count]: which shards are there."""
        names = set(os.listdir(self.folder))
        return np.array([self._name(shard) in names for shard in range(self.count)], dtype=bool)

    def write(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        with replacing(self.path(shard)) as file:
            if self.file_format == "npz":
                named: dict[str, Any] = dict(arrays)
                np.savez_compressed(file, **named)
            else:
                file.write(safetensors.numpy.save(dict(arrays)))

    def read(self, shard: int) -> dict[str, np.ndarray]:
        if self.file_format == "npz":
            with np.load(self.path(shard)) as arrays:
                return dict(arrays)
        return safetensors.numpy.load_file(self.path(shard))

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder and its manifest, or checks the one that is there, and removes what a killed process left.

        Raises ValueError if the folder holds shards of another job, naming what differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, files = self.folder / MANIFEST, list(self.folder.glob("shard-*"))
        unfinished = [file for file in files if file.suffix == ".unfinished"]
        if len(files) == len(unfinished):
            with replacing(path) as file:
                file.write(json.dumps(settings, indent=2).encode() + b"\n")
        elif not path.exists():
            raise ValueError(f"{path} is missing, so whose shards are these? Take another folder")
        elif differing := differences(json.loads(path.read_text()), settings):
            raise ValueError(
                f"{self.folder} holds another job: {differing}. Take another folder, or the same settings to go on "
                "with it"
            )
        for each in unfinished:
            each.unlink()

    def _name(self, shard: int) -> str:
        return f"shard-{shard:0{DIGITS}}.{self.file_format}"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two settings, in words; empty if nothing does."""

    def shown(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."

    names = [name for name in dict.fromkeys([*here, *there]) if there.get(name) != here.get(name)]
    pairs = ((name, shown(there.get(name)), shown(here.get(name))) for name in names)
    return "; ".join(f"{name} is {found} there, {own} here" for name, found, own in pairs)
