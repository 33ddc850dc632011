"""The processes of a job, as torchrun starts them but in less time, and the trouble that they may meet."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pixelcnn_fast import Sampler, distributed
from pixelcnn_fast.bench.workload import random_model
from pixelcnn_fast.distributed.drawing import PerImage

N, SHARD_SIZE = 25, 2
FATEFUL = 12  # the image at which trouble begins
CLASSES = 3
SHAPE = (1, 4, 5)
PATIENCE = 60  # seconds: nothing here takes as long
TINY: dict[str, Any] = dict(input_channels=1, hidden_channels=6, n_residual=1, kernel_size=3)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])  # torch is imported once


@cache
def sampler(seed: int = 0) -> Sampler:
    """A small conditional one. seed: of the model's weights."""
    return Sampler(random_model(n_classes=CLASSES, seed=seed, **TINY), SHAPE)


def labels(images: Tensor) -> Tensor:
    return images % CLASSES


def begins_trouble(images: Tensor) -> bool:
    """Whether this is the shard of that image, and not the question whether an earlier run had the same labels."""
    return len(images) <= SHARD_SIZE and FATEFUL in images


def labels_that_raise(images: Tensor) -> Tensor:
    if begins_trouble(images):
        raise LookupError(f"no label\nfor image {FATEFUL}")
    return labels(images)


def labels_that_kill(images: Tensor) -> Tensor:
    """The process that draws the shard is killed, and others never finish a later one."""
    if begins_trouble(images):
        os.kill(os.getpid(), signal.SIGKILL)
    if 0 < len(images) <= SHARD_SIZE and images.min() > FATEFUL:
        time.sleep(2 * PATIENCE)
    return labels(images)


def labels_that_kill_once(images: Tensor) -> Tensor:
    """The process that draws the shard is killed, unless torchrun has started it again."""
    if begins_trouble(images) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return labels(images)


@dataclass(frozen=True)
class End:
    """How a process ended."""

    status: int | None
    error: str | None


def run(size: int, task: Callable[..., None], *arguments: Any, **keywords: Any) -> list[End]:
    """How each of ``size`` processes ends that call task(*arguments, **keywords), by rank. If one is killed, so are the
    others, as by torchrun. Raises AssertionError if they take too long."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started, answers = [], []
    for rank in range(size):
        answer, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_rank, args=(rank, size, port, sender, task, arguments, keywords))
        process.start()
        sender.close()
        started.append(process)
        answers.append(answer)
    running, limit = list(started), time.monotonic() + PATIENCE
    try:
        while running:
            assert wait([process.sentinel for process in running], max(0, limit - time.monotonic())), (
                "it hangs"
            )
            if any(process.exitcode not in (None, 0) for process in started):
                for process in running:
                    process.terminate()
            running = [process for process in running if process.exitcode is None]
    finally:
        for process in running:
            process.kill()
    return [
        End(process.exitcode, _received(answer)) for process, answer in zip(started, answers, strict=True)
    ]


def _received(answer: Connection) -> str | None:
    try:
        return answer.recv()
    except EOFError:  # it was killed
        return None


def _rank(
    rank: int,
    size: int,
    port: int,
    sender: Connection,
    task: Callable[..., None],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        task(*arguments, **keywords)
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
    else:
        sender.send(None)


# -- what they do


def draw(folder: Path, labels: PerImage | None = labels, of: int = 0, **keywords: Any) -> None:
    """of: the seed of the model's weights."""
    distributed.sample(sampler(of), N, folder, labels, **{"seed": 3, "shard_size": SHARD_SIZE, **keywords})


def draw_with_a_seed_of_its_own(folder: Path) -> None:
    draw(folder, seed=int(os.environ["RANK"]))


def draw_twice_in_a_group_of_the_user(folder: Path) -> None:
    dist.init_process_group("gloo")
    draw(folder / "first")
    draw(folder / "second", file_format="safetensors")
    ones = torch.ones(1)
    dist.all_reduce(ones)  # the group is as it was
    assert ones == dist.get_world_size()
    dist.destroy_process_group()


if __name__ == "__main__":
    draw(Path(sys.argv[1]), labels_that_kill_once)
