"""The folder of a job: a manifest, which says what it is, and shards, files of images."""

from __future__ import annotations

import errno
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pixelcnn_fast.files import UNFINISHED, remove_if_left_behind, replacing
from pixelcnn_fast.image_forms import check_choice
from pixelcnn_fast.telling import tell

FileFormat = Literal["npz", "safetensors"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
MANIFEST = "manifest.json"
CHECKSUM = "crc32"  # in a safetensors file's metadata
LONGEST_SHOWN = 16  # characters: enough of a fingerprint
# Errors that say nothing about the file itself.
BUSY = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM
MOST_SHARDS = 10**7
DIGITS = 6  # so up to a million names sort as numbers


class Shards:
    """n images in files of ``size`` each, of which the last may have fewer."""

    def __init__(self, folder: Path, n: int, size: int, file_format: FileFormat) -> None:
        check_choice("file_format", file_format, FORMATS)
        for name, value, least in (("n", n, 0), ("shard_size", size, 1)):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}: expected an integer, {least} or more")
        self.folder, self.n, self.size, self.file_format = folder, int(n), int(size), file_format
        self.count, self._is_mine = -(-self.n // self.size), False
        self.settings: Mapping[str, Any] = {}  # for the manifest
        if self.count > MOST_SHARDS:
            raise ValueError(
                f"{n} images in files of {size} are {self.count} files, and a folder holds {MOST_SHARDS} at most: make "
                f"shard_size {-(-n // MOST_SHARDS)} or more, or use several folders"
            )

    def images(self, shard: int) -> range:
        """The numbers of the images in a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.n))

    def path(self, shard: int) -> Path:
        """The file of a shard, which need not be there yet."""
        return self.folder / self._name(shard)

    def finished(self) -> np.ndarray:
        """bool [count]: which shards are there."""
        names = set(os.listdir(self.folder))
        return np.array([self._name(shard) in names for shard in range(self.count)], dtype=bool)

    def count_images(self, which: np.ndarray) -> int:
        """How many images some shards have, bool [count]."""
        return sum(len(self.images(shard)) for shard in np.flatnonzero(which).tolist())

    def write(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError if the folder is another job's."""
        if self.settings:
            self._claim()
        with replacing(self.path(shard), through_links=False) as file:
            if self.file_format == "npz":
                named: dict[str, Any] = dict(arrays)
                np.savez_compressed(file, **named)
            else:
                from safetensors.numpy import save  # sampling does without it

                file.write(save(dict(arrays), metadata={CHECKSUM: _checksum(arrays)}))

    def read(self, shard: int) -> dict[str, np.ndarray]:
        """Raises ValueError for a file that is damaged."""
        path = self.path(shard)
        try:
            if self.file_format == "npz":
                with np.load(path) as arrays:
                    return dict(arrays)
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}
                if (file.metadata() or {}).get(CHECKSUM) != _checksum(found):
                    raise ValueError("its checksum is another")
            return found
        except Exception as error:
            if _says_nothing_of_a_file(error):
                raise
            raise ValueError(f"{path} is damaged ({error}): delete it, and start the job again") from error

    def remove_if_damaged(self, shard: int, expected: Mapping[str, np.ndarray]) -> bool:
        """Removes a file whose headers are not those of ``expected``, arrays of no images
        -> whether it did. Raises ValueError if it is a folder."""
        path, n = self.path(shard), len(self.images(shard))
        kinds = {name: f"{x.dtype} {[n, *x.shape[1:]]}" for name, x in expected.items()}
        if path.is_dir():
            raise ValueError(f"{path} is a folder, where a file of images should be: move it away")
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is no file, but something like a pipe")
            if (found := self._kinds(path)) == kinds:
                return False
            name = next(name for name in {**kinds, **found} if found.get(name) != kinds.get(name))
            why = f"{name}: {found.get(name, 'none')}, expected {kinds.get(name, 'none')}"
        except Exception as error:
            if _says_nothing_of_a_file(error):
                raise
            why = f"{type(error).__name__}: {error}"
        tell(f"{path} is damaged, and is drawn again ({why})")
        path.unlink(missing_ok=True)
        return True

    def _kinds(self, path: Path) -> dict[str, str]:
        if self.file_format == "safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                return {name: f"{x[:0].dtype} {list(x.get_shape())}" for name, x in slices.items()}
        found = {}
        with zipfile.ZipFile(path) as arrays:
            for entry in arrays.infolist():
                with arrays.open(entry) as header:
                    np.lib.format.read_magic(header)
                    # NumPy writes our arrays in this version.
                    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
                    size = header.tell() + dtype.itemsize * math.prod(shape)
                if entry.file_size != size:
                    raise ValueError(f"{entry.filename} has {entry.file_size} bytes, expected {size}")
                found[entry.filename.removesuffix(".npy")] = f"{dtype} {list(shape)}"
        return found

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder and its manifest, and removes what killed processes have left.
        Raises ValueError, naming what differs, if the folder holds another job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        path, files = self.folder / MANIFEST, list(self.folder.glob("shard-*"))
        unfinished = [file for file in files if file.suffix == UNFINISHED]
        if not path.exists() and len(files) > len(unfinished):
            raise ValueError(f"{path} is missing, so whose shards are these? Take another folder")
        self._is_mine = self._claim()
        for each in unfinished:
            remove_if_left_behind(each)

    def _claim(self) -> bool:
        """Writes the manifest -> whether there was none. Raises ValueError if it is another job's."""
        path = self.folder / MANIFEST
        with suppress(FileExistsError):  # another job may begin at the same time
            if not path.exists():
                with replacing(path, through_links=False, replaces=False) as file:
                    file.write(json.dumps(self.settings, indent=2).encode() + b"\n")
                return True
        if differing := differences(_read_manifest(path), self.settings):
            raise ValueError(
                f"{self.folder} holds another job: {differing}. Take another folder, or the same settings to go on "
                "with it"
            )
        return False

    def withdraw(self) -> None:
        """Removes its own manifest, if there is no shard yet: other arguments may follow."""
        if self._is_mine and not any(self.folder.glob("shard-*")):
            (self.folder / MANIFEST).unlink(missing_ok=True)

    def _name(self, shard: int) -> str:
        return f"shard-{shard:0{DIGITS}}.{self.file_format}"


def _says_nothing_of_a_file(error: Exception) -> bool:
    """Readers raise whatever they like for bytes that they were not made for."""
    return isinstance(error, (ImportError, MemoryError)) or getattr(error, "errno", None) in BUSY


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32, as in .npz files."""
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).data, found)
    return f"{found:08x}"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is no file: take another folder")
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read ({error}): take another folder") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no manifest of a job: take another folder")
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two jobs' settings, in words; '' if nothing does."""

    def shown(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."

    def alike(name: str, one: Any, other: Any) -> bool:
        if name != "probe":
            return bool(one == other)
        # A sampler that was pickled without its module has no probe.
        if one is None or other is None:
            return True
        try:
            x, y = np.array(one["parameters"], float), np.array(other["parameters"], float)
            # The median, as a few huge parameters may stand for what is impossible.
            usual = float(np.median(abs(y))) if y.size else 0.0
            return x.shape == y.shape and bool((abs(x - y) <= other["within"] * (1 + usual + abs(y))).all())
        except (KeyError, TypeError, ValueError):  # of a manifest that was edited
            return False

    pairs = [(name, there.get(name), here.get(name)) for name in dict.fromkeys([*here, *there])]
    differing = [pair for pair in pairs if not alike(*pair)]
    return "; ".join(f"{name} is {shown(found)} there, {shown(own)} here" for name, found, own in differing)
