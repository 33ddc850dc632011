"""The folder of a job: a manifest, which says what the job is, and numbered files of images, the shards."""

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
CHECKSUM = "crc32"  # the name of it, in the metadata of a safetensors file
LONGEST_SHOWN = 16  # characters of a value in a message: enough of a fingerprint
BITS = (("U", "uint"), ("I", "int"), ("F", "float"))
DTYPES = {
    f"{short}{bits}": f"{name}{bits}" for short, name in BITS for bits in (8, 16, 32, 64)
}  # of safetensors
DTYPES["BOOL"] = "bool"
READ_HEADER_2 = np.lib.format.read_array_header_2_0
BUSY = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM  # which says nothing of a file
MOST_SHARDS = 10**7
DIGITS = 6  # of a shard's number, so that names sort as numbers up to a million shards


class Shards:
    """n images in files of ``size`` each, of which the last may have fewer. Files appear as a whole."""

    def __init__(self, folder: Path, n: int, size: int, file_format: FileFormat) -> None:
        check_choice("file_format", file_format, FORMATS)
        for name, value, least in (("n", n, 0), ("shard_size", size, 1)):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}: expected an integer, {least} or more")
        self.folder, self.n, self.size, self.file_format = folder, int(n), int(size), file_format
        self.count, self._is_mine = -(-self.n // self.size), False
        self.settings: Mapping[str, Any] = {}  # of the job, for the manifest
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
        if self.settings:
            self._claim()
        with replacing(self.path(shard), through_links=False) as file:
            if self.file_format == "npz":
                named: dict[str, Any] = dict(arrays)
                np.savez_compressed(file, **named)
            else:
                from safetensors.numpy import save  # here: sampling does without safetensors

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
        except _damages() as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and start the job again") from error

    def remove_if_damaged(self, shard: int, expected: Mapping[str, np.ndarray]) -> bool:
        """Removes a file that does not hold such arrays, as far as its headers tell, saying so -> whether it did.
        expected: arrays of no images.

        Raises ValueError if a folder is in its place.
        """
        path, n = self.path(shard), len(self.images(shard))
        kinds = {name: (str(x.dtype), (n, *x.shape[1:])) for name, x in expected.items()}
        if path.is_dir():
            raise ValueError(f"{path} is a folder, where a file of images should be: move it away")
        try:
            if path.exists() and not path.is_file():
                raise ValueError("it is no file, but something like a pipe")
            if (found := self._kinds(path)) == kinds:
                return False
            name = next(name for name in {**kinds, **found} if found.get(name) != kinds.get(name))
            why = f"{name}: {_kind(found.get(name))}, expected {_kind(kinds.get(name))}"
        except Exception as error:  # whatever a reader makes of bytes that it was not made for
            if isinstance(error, ImportError) or getattr(error, "errno", None) in BUSY:
                raise
            why = f"{type(error).__name__}: {error}"
        tell(f"{path} is damaged, and is drawn again ({why})")
        path.unlink(missing_ok=True)
        return True

    def _kinds(self, path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The arrays in a file, by name: dtype and shape."""
        if self.file_format == "safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                return {
                    name: (DTYPES.get(x.get_dtype(), x.get_dtype()), tuple(x.get_shape()))
                    for name, x in slices.items()
                }
        found = {}
        with zipfile.ZipFile(path) as arrays:
            for name in arrays.namelist():
                with arrays.open(name) as header:
                    version = np.lib.format.read_magic(header)
                    fields = np.lib.format.read_array_header_1_0 if version == (1, 0) else READ_HEADER_2
                    shape, _, dtype = fields(header)
                    size = header.tell() + dtype.itemsize * math.prod(shape)
                    if arrays.getinfo(name).file_size != size:
                        raise ValueError(f"{name} has {arrays.getinfo(name).file_size} bytes, expected {size}")
                    found[name.removesuffix(".npy")] = str(dtype), tuple(shape)
        return found

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder and its manifest, or checks the one that is there, and removes what a killed process left.

        Raises ValueError if the folder holds shards of another job, naming what differs.
        """
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
        """Writes the manifest unless there is one -> whether it did. It may be gone, since another process of this job
        has failed, and withdrawn it.

        Raises ValueError if it is another job's.
        """
        path, is_mine = self.folder / MANIFEST, not (self.folder / MANIFEST).exists()
        try:
            if is_mine:
                with replacing(path, through_links=False, replaces=False) as file:
                    file.write(json.dumps(self.settings, indent=2).encode() + b"\n")
        except FileExistsError:  # another job has begun at the same time
            is_mine = False
        if not is_mine and (differing := differences(_read_manifest(path), self.settings)):
            raise ValueError(
                f"{self.folder} holds another job: {differing}. Take another folder, or the same settings to go on "
                "with it"
            )
        return is_mine

    def withdraw(self) -> None:
        """Removes the manifest, if this process made it and there is no shard: what failed at once may be put right."""
        if self._is_mine and not any(self.folder.glob("shard-*")):
            (self.folder / MANIFEST).unlink(missing_ok=True)

    def _name(self, shard: int) -> str:
        return f"shard-{shard:0{DIGITS}}.{self.file_format}"


def _kind(found: tuple[str, tuple[int, ...]] | None) -> str:
    return "none" if found is None else f"{found[0]} {list(found[1])}"


def _damages() -> tuple[type[Exception], ...]:
    """What is raised for files that are damaged, or of another kind."""
    found: tuple[type[Exception], ...] = (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    )
    with suppress(ImportError):
        from safetensors import SafetensorError

        found += (SafetensorError,)
    return found


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """CRC-32, as in .npz files, of what an array is called and is, and of its bytes."""
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
    """What differs between two settings, in words; empty if nothing does."""

    def shown(value: Any) -> str:
        text = json.dumps(value)
        return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."

    def alike(one: Any, other: Any) -> bool:
        if not (isinstance(one, dict) and isinstance(other, dict)):
            return bool(one == other)
        try:
            x, y = np.array(one["parameters"], float), np.array(other["parameters"], float)
            usual = (
                float(np.median(abs(y))) if y.size else 0.0
            )  # which a few that stand for impossible do not move
            return x.shape == y.shape and bool((abs(x - y) <= other["within"] * (1 + usual + abs(y))).all())
        except (KeyError, TypeError, ValueError):  # of a manifest that was edited
            return False

    names = [name for name in dict.fromkeys([*here, *there]) if not alike(there.get(name), here.get(name))]
    if (
        there.get("probe") is None or here.get("probe") is None
    ):  # as of a sampler that was pickled without its module
        names = [name for name in names if name != "probe"]
    pairs = ((name, shown(there.get(name)), shown(here.get(name))) for name in names)
    return "; ".join(f"{name} is {found} there, {own} here" for name, found, own in pairs)
