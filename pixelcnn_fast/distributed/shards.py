"""The folder of a job: a manifest, which says what the job is, and numbered files of images, the shards."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pixelcnn_fast.files import UNFINISHED, remove_if_left_behind, replacing
from pixelcnn_fast.image_forms import check_choice

FileFormat = Literal["npz", "safetensors"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
MANIFEST = "manifest.json"
LONGEST_SHOWN = 16  # characters of a value in a message: enough of a fingerprint
MOST_SHARDS = 10**7
DIGITS = 6  # of a shard's number, so that names sort as numbers up to a million shards


class Shards:
    """n images in files of ``size`` each, of which the last may have fewer. A file that exists is whole."""

    def __init__(self, folder: Path, n: int, size: int, file_format: FileFormat) -> None:
        check_choice("file_format", file_format, FORMATS)
        for name, value, least in (("n", n, 0), ("shard_size", size, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}: expected an integer, {least} or more")
        self.folder, self.n, self.size, self.file_format = folder, n, size, file_format
        self.count, self._is_mine = -(-n // size), False
        if self.count > MOST_SHARDS:
            raise ValueError(
                f"{n} images in files of {size} are {self.count} files, and a folder holds {MOST_SHARDS} at most: make "
                f"shard_size {-(-n // MOST_SHARDS)} or more, or use several folders"
            )

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
                from safetensors.numpy import save  # here: sampling does without safetensors

                file.write(save(dict(arrays)))

    def read(self, shard: int) -> dict[str, np.ndarray]:
        """Raises ValueError for a file that is damaged."""
        damages: tuple[type[Exception], ...] = EOFError, ValueError, zipfile.BadZipFile
        if self.file_format == "safetensors":
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            damages += (SafetensorError,)
        try:
            if self.file_format == "npz":
                with np.load(self.path(shard)) as arrays:
                    return dict(arrays)
            return load_file(self.path(shard))
        except damages as error:
            raise ValueError(
                f"{self.path(shard)} is damaged ({error}): delete it, and start the job again"
            ) from error

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder and its manifest, or checks the one that is there, and removes what a killed process left.

        Raises ValueError if the folder holds shards of another job, naming what differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, files = self.folder / MANIFEST, list(self.folder.glob("shard-*"))
        unfinished = [file for file in files if file.suffix == UNFINISHED]
        if path.exists():
            if differing := differences(_read_manifest(path), settings):
                raise ValueError(
                    f"{self.folder} holds another job: {differing}. Take another folder, or the same settings to go on "
                    "with it"
                )
        elif len(files) > len(unfinished):
            raise ValueError(f"{path} is missing, so whose shards are these? Take another folder")
        else:
            with replacing(path) as file:
                file.write(json.dumps(settings, indent=2).encode() + b"\n")
            self._is_mine = True
        for each in unfinished:
            remove_if_left_behind(each)

    def withdraw(self) -> None:
        """Removes the manifest, if this process made it and there is no shard: what failed at once may be put right."""
        if self._is_mine and not any(self.folder.glob("shard-*")):
            (self.folder / MANIFEST).unlink(missing_ok=True)

    def _name(self, shard: int) -> str:
        return f"shard-{shard:0{DIGITS}}.{self.file_format}"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} can't be read ({error}): take another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no manifest of a job: take another folder")
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two settings, in words; empty if nothing does."""

    def shown(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."

    names = [name for name in dict.fromkeys([*here, *there]) if there.get(name) != here.get(name)]
    pairs = ((name, shown(there.get(name)), shown(here.get(name))) for name in names)
    return "; ".join(f"{name} is {found} there, {own} here" for name, found, own in pairs)
