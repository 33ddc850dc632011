"""``sample``: a job of numbered images, of which any process may draw any."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Unpack

from pixelcnn_fast.call import RunSettings
from pixelcnn_fast.distributed.drawing import Conditions, Drawing, DrawingArguments, PerImage
from pixelcnn_fast.distributed.ranks import Ranks, joined
from pixelcnn_fast.distributed.shards import FileFormat, Shards, differences
from pixelcnn_fast.heads.options import SamplingOptions
from pixelcnn_fast.progress import progress_bar
from pixelcnn_fast.sampler import Sampler
from pixelcnn_fast.signatures import takes_arguments_of
from pixelcnn_fast.telling import tell

VERSION = 2  # of manifest and shards
SHARD_SIZE = 1000
SEEN_WITHIN = 120  # seconds until a network's file system shows what others wrote


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
    condition: Conditions | None = None,
    progress: bool = False,
    **arguments: Unpack[DrawingArguments],
) -> None:
    """Draws n images into files in ``folder``, with all other processes that call this, and returns when all are there.

    These are the processes of torch.distributed, or those that torchrun has started, or
    this one alone. Each passes the same arguments, and a folder that all of them see.

    Shard s is the file shard-<s>.npz, or .safetensors, with images s * shard_size and
    following: ``images`` [m, C, H, W] as ``Sampler.sample`` gives them, ``labels`` int64
    [m] if the model takes them, and ``log_probabilities`` float64 [m] if the head has them. Image k is drawn
    with ``noise_of(seed, range(k, k + 1), sampler.noise_shape)`` of
    ``pixelcnn_fast.noise``. Files appear as a whole: the same call, on any number of
    processes, goes on with those that are missing.
    labels: [n], or a function from the numbers of images, int64 [m], to their labels [m];
    condition: the same for [n, *condition_shape], or a tuple or a dict of these.
    shard_size: images in a file. progress: show a bar on rank 0. Others: as for ``Sampler.sample``.
    Raises ValueError for bad arguments, those that differ from rank 0's, and a folder that
    holds another job, naming what differs; RuntimeError if another process has failed;
    KeyboardInterrupt, saying what is finished.
    """
    with joined("nccl" if sampler.device.type == "cuda" else "gloo") as ranks:
        shards = Shards(Path(folder), n, shard_size, file_format)
        drawing = Drawing(sampler, seed, labels, condition, temperature, arguments)
        settings = shards.settings = {
            "version": VERSION,
            "n": shards.n,
            "shard_size": shards.size,
            "shards": shards.count,
            "file_format": file_format,
            **drawing.settings(n),
        }
        try:
            there = _finished(shards, settings, ranks)

            def finish(shard: int) -> None:
                if not there[shard] or shards.remove_if_damaged(shard, drawing.no_images):
                    shards.write(shard, drawing.images(shards.images(shard), ranks.check))

            _share_out(there, finish, shards, ranks, progress)
        except Exception:
            shards.withdraw()
            raise


def _finished(shards: Shards, settings: dict[str, Any], ranks: Ranks) -> np.ndarray:
    """bool [shards]: which are there, once all is known to be one job."""

    def prepared() -> str:
        shards.prepare(settings)
        return json.dumps({"settings": settings, "finished": np.packbits(shards.finished()).tobytes().hex()})

    found = json.loads(ranks.from_rank_0(prepared))
    if differing := differences(found["settings"], settings):
        raise ValueError(f"rank {ranks.rank} has other arguments than rank 0: {differing}")
    ranks.count("agree", 1)  # this process does the job of rank 0
    finished = np.frombuffer(bytes.fromhex(found["finished"]), np.uint8)
    return np.unpackbits(finished, count=shards.count).astype(bool)


def _share_out(
    there: np.ndarray, finish: Callable[[int], None], shards: Shards, ranks: Ranks, progress: bool
) -> None:
    # Those that are there come first, which takes no time.
    order = np.argsort(~there, kind="stable").tolist()
    n, known = shards.n, shards.count_images(there)
    if ranks.rank == 0 and 0 < shards.count < ranks.size:
        tell(
            f"{shards.count} shards are too few for {ranks.size} processes: a smaller shard_size gives each some"
        )
    shown = progress and ranks.rank == 0
    # Shards come in bursts, so the rate is that of the whole run.
    with progress_bar(shown=shown, total=n, initial=known, unit="image", smoothing=0) as bar:

        def finished(more: int = 0) -> int:
            total = ranks.count("finished", more)
            bar.update(max(0, total - bar.n))
            return total

        try:
            while (number := ranks.next_number()) < len(order):
                finish(order[number])
                finished(len(shards.images(order[number])))
            ranks.wait(lambda: finished() == n and ranks.count("agree") == ranks.size)
            if ranks.rank == 0:
                limit = time.monotonic() + SEEN_WITHIN
                ranks.wait(lambda: bool(shards.finished().all()) or time.monotonic() > limit)
                if missing := int((~shards.finished()).sum()):
                    raise RuntimeError(
                        f"{missing} of {shards.count} shards were written, but rank 0 does not see them in "
                        f"{shards.folder}: is the folder shared by all machines?"
                    )
        except KeyboardInterrupt:
            kept = shards.count_images(shards.finished())
            raise KeyboardInterrupt(
                f"{kept} of {n} images are finished, in {shards.folder}; start it again to go on from there"
            ) from None
