"""A job: images that are numbered and shared out in shards, so that it does not matter who draws which."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Unpack

from pixelcnn_fast.distributed.ranks import Ranks, joined
from pixelcnn_fast.distributed.shards import FileFormat, Shards, differences
from pixelcnn_fast.errors import NonFiniteLogits
from pixelcnn_fast.fingerprint import fingerprint
from pixelcnn_fast.heads.options import OptionArguments, SamplingOptions
from pixelcnn_fast.noise import noise_of
from pixelcnn_fast.runtimes import RuntimeName
from pixelcnn_fast.sampler import RunSettings, Sampler
from pixelcnn_fast.signatures import takes_arguments_of

VERSION = 1  # of the manifest, and of what the shards hold
SHARD_SIZE = 1000
SEEN_BY = 120  # seconds after which a network's file system shows rank 0 what others have written

PerImage: TypeAlias = Tensor | Callable[[Tensor], Tensor]


class JobArguments(OptionArguments, total=False):
    """What is handed on to ``Sampler.sample``, as type checkers read it."""

    batch_size: int | None
    runtime: RuntimeName


@takes_arguments_of(SamplingOptions, RunSettings)
def sample(
    sampler: Sampler,
    n: int,
    folder: str | os.PathLike[str],
    labels: PerImage | None = None,
    temperature: float = 1.0,
    *,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    file_format: FileFormat = "npz",
    condition: PerImage | None = None,
    progress: bool = False,
    **arguments: Unpack[JobArguments],
) -> None:
    """Draws n images into files in ``folder``, together with all other processes that call this.

    These are the processes of torch.distributed, or those that torchrun has started; without either, this one does it
    all. Every process passes the same arguments, and a folder that all of them see.

    Shard s is the file shard-<s>.npz, or .safetensors, with images s * shard_size and following: ``images``
    [m, C, H, W] as ``Sampler.sample`` gives them, ``labels`` int64 [m] if the model takes them, and
    ``log_probabilities`` float64 [m]. Image k is drawn with ``noise_of(seed, range(k, k + 1), sampler.noise_shape)``,
    so it does not depend on the number of processes. Files appear as a whole: if a job was stopped, the same call goes
    on with the shards that are missing, on any number of processes.
    labels: [n], or a function that takes numbers of images, int64 [m], and returns their labels [m]; condition: the
    same for [n, *condition_shape]. shard_size: images in a file, after which a process asks for the next.
    progress: show a bar on rank 0, for the images of all processes. The other arguments are those of
    ``Sampler.sample``.
    Returns on every rank when all shards are written.
    Raises ValueError for bad arguments, for arguments that differ from those of rank 0, and for a folder that holds
    another job, naming what differs; RuntimeError, with the reason, if another process has failed. Labels that
    a function gives are compared with those of an earlier run for the first and the last shard. Ctrl-C raises
    KeyboardInterrupt that says how many images are finished.
    """
    with joined("nccl" if sampler.device.type == "cuda" else "gloo") as ranks:
        options = SamplingOptions(temperature=temperature, **_options_among(arguments))
        sampler.head.check_options(options)
        shards = Shards(Path(folder), n, shard_size, file_format)
        given = {"labels": labels, "condition": condition}
        for name, values in given.items():
            if values is not None and not callable(values) and len(values) != n:
                raise ValueError(
                    f"{name} is of {len(values)} images, expected {n}, or a function of their numbers"
                )
        settings = {
            "version": VERSION,
            "n": n,
            "shard_size": shard_size,
            "shards": shards.count,
            "file_format": file_format,
            "seed": seed,
            "image_shape": list(sampler.shape),
            "dtype": str(sampler.head.as_images(torch.zeros(0, dtype=sampler.head.value_dtype)).dtype),
            **asdict(options),
            "model": sampler.fingerprint(),
            **{name: _told_apart(values, shards) for name, values in given.items()},
        }
        finished = _begin(shards, settings, ranks)
        missing = np.flatnonzero(~finished).tolist()
        wanted = sum(len(shards.images(shard)) for shard in missing)
        if ranks.rank == 0 and 0 < len(missing) < ranks.size:
            warnings.warn(
                f"{len(missing)} shards are left for {ranks.size} processes: a smaller shard_size keeps all of them "
                "busy",
                stacklevel=3,
            )
        bar = tqdm(
            total=n,
            initial=n - wanted,
            unit="image",
            smoothing=0,  # shards come in bursts
            disable=not (progress and ranks.rank == 0),
        )

        def drawn(more: int = 0) -> int:
            total = ranks.drawn(more)
            bar.update(n - wanted + total - bar.n)
            return total

        with bar:
            try:
                while (number := _next(ranks)) < len(missing):
                    shard = missing[number]
                    images = shards.images(shard)
                    shards.write(shard, _drawn(sampler, images, seed, given, temperature, arguments))
                    drawn(len(images))
                ranks.wait(lambda: drawn() == wanted)
                if ranks.rank == 0:
                    _check_seen(shards, ranks)
            except KeyboardInterrupt:
                kept = sum(len(shards.images(shard)) for shard in np.flatnonzero(shards.finished()).tolist())
                raise KeyboardInterrupt(
                    f"{kept} of {n} images are finished, in {folder}; the same call goes on from there"
                ) from None


def _options_among(arguments: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(SamplingOptions)}
    return {name: value for name, value in arguments.items() if name in names}


def _begin(shards: Shards, settings: dict[str, Any], ranks: Ranks) -> np.ndarray:
    """Makes sure that all ranks, and the folder, mean the same job -> bool [count], which shards are finished."""

    def prepared() -> str:
        shards.prepare(settings)
        return json.dumps({"settings": settings, "finished": np.packbits(shards.finished()).tobytes().hex()})

    found = json.loads(ranks.from_rank_0(prepared))
    if differing := differences(found["settings"], settings):
        raise ValueError(f"rank {ranks.rank} has other arguments than rank 0, {'; '.join(differing)}")
    bits = np.frombuffer(bytes.fromhex(found["finished"]), dtype=np.uint8)
    return np.unpackbits(bits, count=shards.count).astype(bool)


def _next(ranks: Ranks) -> int:
    ranks.check()
    return ranks.next_number()


def _drawn(
    sampler: Sampler,
    images: range,
    seed: int,
    given: dict[str, PerImage | None],
    temperature: float,
    arguments: JobArguments,
) -> dict[str, np.ndarray]:
    """The arrays of a shard."""
    labels, condition = (_of_images(values, images) for values in given.values())
    try:
        values, log_probabilities = sampler.sample(
            len(images),
            labels,
            temperature,
            noise=noise_of(seed, images, sampler.noise_shape),
            condition=condition,
            log_probability=True,
            **arguments,
        )
    except NonFiniteLogits as error:
        image, *rest = error.location
        raise NonFiniteLogits(images.start + image, *rest) from None
    found = {"images": values, "log_probabilities": log_probabilities}
    if labels is not None:
        found["labels"] = labels.long().cpu()
    return {name: value.numpy() for name, value in found.items()}


def _of_images(values: PerImage | None, images: range) -> Tensor | None:
    if values is None:
        return None
    if callable(values):
        return torch.as_tensor(values(torch.arange(images.start, images.stop)))
    return torch.as_tensor(values[images.start : images.stop])


def _told_apart(values: PerImage | None, shards: Shards) -> str | None:
    """What the manifest keeps of labels or a condition: of a function, what it gives for the first and last shard."""
    if values is None:
        return None
    if not callable(values):
        return fingerprint(values)
    ends = sorted({0, shards.count - 1}) if shards.count else []
    return fingerprint(*(_of_images(values, shards.images(shard)) for shard in ends))


def _check_seen(shards: Shards, ranks: Ranks) -> None:
    """Raises RuntimeError unless rank 0 sees all shards in its folder."""
    limit = time.monotonic() + SEEN_BY
    ranks.wait(lambda: bool(shards.finished().all()) or time.monotonic() > limit)
    if missing := int((~shards.finished()).sum()):
        raise RuntimeError(
            f"{missing} of {shards.count} shards are written, but not seen in {shards.folder} by rank 0: is the folder "
            "shared by all machines?"
        )
