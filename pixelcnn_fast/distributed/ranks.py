"""The processes of a job, and what they tell each other through a small store."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
# Seconds between looks into the store, the first and the longest, as thousands may look.
PAUSES = 0.01, 1.0
PARTING = 5  # seconds that rank 0, which may hold the store, waits for others to look into it

_jobs = itertools.count()  # a process may do several


class OwnStore:
    """The store of a process that is alone."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def add(self, key: str, amount: int, /) -> int:
        self._values[key] = str(int(self._values.get(key, 0)) + amount)
        return int(self._values[key])

    def set(self, key: str, value: str, /) -> None:
        self._values[key] = value

    def get(self, key: str, /) -> bytes:
        return self._values[key].encode()

    def check(self, keys: list[str], /) -> bool:
        return all(key in self._values for key in keys)


class Ranks:
    """This process among the ``size`` of a job."""

    def __init__(self, rank: int, size: int, store: dist.Store | OwnStore) -> None:
        self.rank, self.size = rank, size
        self._store = store

    def from_rank_0(self, make: Callable[[], str]) -> str:
        """What ``make`` returns on rank 0."""
        if self.rank == 0:
            self._store.set("from rank 0", make())
        self.wait(lambda: self._store.check(["from rank 0"]))
        return self._store.get("from rank 0").decode()

    def next_number(self) -> int:
        """0, 1, 2, ...: each goes to one process. Raises RuntimeError as ``check`` does."""
        self.check()
        return self._store.add("number", 1) - 1

    def count(self, what: str, more: int = 0) -> int:
        """How many of something all processes have counted, with these more."""
        return self._store.add(what, more)

    def check(self) -> None:
        """Raises RuntimeError, with the reason, if another process has failed."""
        try:
            failed = self._store.check(["failure"])
        except dist.DistError as error:
            raise RuntimeError(f"rank 0, or what started the processes, has ended: {error}") from error
        if failed:
            raise RuntimeError(self._store.get("failure").decode())

    def wait(self, done: Callable[[], bool]) -> None:
        """Returns once ``done`` is true. Raises RuntimeError as ``check`` does."""
        _until(done, self.check)

    def fail(self, error: BaseException) -> None:
        """Tells the others why this process ends, unless one of them was the first."""
        with suppress(RuntimeError):  # the store may be gone
            if not self._store.check(["failure"]):
                why = " ".join(f"{type(error).__name__}: {error}".split())
                self._store.set("failure", f"rank {self.rank} failed: {why}")

    def leave(self) -> None:
        """To be called last. Rank 0 lets the others go first."""
        with suppress(RuntimeError):
            self._store.add("left", 1)
            limit = time.monotonic() + PARTING
            if self.rank == 0:
                _until(lambda: self._store.add("left", 0) == self.size or time.monotonic() > limit)


def _until(done: Callable[[], bool], check: Callable[[], None] = lambda: None) -> None:
    pause, longest = PAUSES
    while not done():
        check()
        time.sleep(pause)
        pause = min(2 * pause, longest)


def common_name(rank: int, size: int, store: dist.Store) -> str:
    """A new name on which all ranks agree, whatever the store holds from before torchrun restarted them.

    Each rank says hello with a name that it makes up. Rank 0 answers every hello with its
    own name, until all ranks have heard that name in answer to their own hello.
    """
    own = uuid.uuid4().hex
    if rank == 0:

        def all_have_heard() -> bool:
            for other in range(1, size):
                if store.check([f"hello {other}"]):
                    store.set(f"answer {other}", f"{store.get(f'hello {other}').decode()} {own}")
            return store.add(f"heard {own}", 0) == size - 1

        _until(all_have_heard)
        return own
    answer = f"answer {rank}"
    store.set(f"hello {rank}", own)
    _until(lambda: store.check([answer]) and store.get(answer).decode().startswith(own))
    name = store.get(answer).decode().split()[1]
    store.add(f"heard {name}", 1)
    return name


@contextmanager
def joined(backend: str) -> Iterator[Ranks]:
    """Within the context, this process is one of those of the default process group, if
    there is one, else of those that torchrun has started, else alone. What is raised is
    told to the others."""
    has_group = dist.is_available() and dist.is_initialized()
    makes_group = dist.is_available() and not has_group and all(name in os.environ for name in ENVIRONMENT)
    if has_group:
        assert dist.group.WORLD is not None
        store, rank, size = dist.group.WORLD.get_group_store(), dist.get_rank(), dist.get_world_size()
    elif makes_group:
        store, rank, size = next(dist.rendezvous("env://"))
    else:
        yield Ranks(0, 1, OwnStore())
        return
    hall = dist.PrefixStore(f"pixelcnn_fast job {next(_jobs)}", store)
    fresh = dist.PrefixStore(common_name(rank, size, hall), hall)
    if makes_group:  # gloo, too, would find addresses from before a restart
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size)
    ranks = Ranks(rank, size, dist.PrefixStore("ranks", fresh))
    try:
        yield ranks
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        ranks.leave()
        if makes_group:
            dist.destroy_process_group()
