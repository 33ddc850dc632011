"""What people have without this package: a full forward for each draw, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pixelcnn_fast.bench.workload import Workload
from pixelcnn_fast.heads import Head
from pixelcnn_fast.progress import progress_bar
from pixelcnn_fast.runtimes.job import Job
from pixelcnn_fast.runtimes.reference import ReferenceRuntime
from pixelcnn_fast.user_model.conditioning import checked_conditioning
from pixelcnn_fast.user_model.wrapped_model import WrappedModel


class Naive:
    """Answers the calls of a ``Sampler`` that contestants make, with the workload's plain model and nothing else.
    head: with its layout; draws: that a pixel takes."""

    def __init__(self, work: Workload, head: Head, draws: int) -> None:
        self._work, self._draws = work, draws
        arguments = work.arguments
        arguments["head"] = head
        self._model = WrappedModel(work.plain_model(), work.shape, **arguments)

    def sample(self, n: int, labels: Tensor | None, **settings: Any) -> Tensor:
        nothing = torch.zeros(n, *self._work.shape, dtype=self._model.head.value_dtype)
        return self.complete(self._model.as_images(nothing), torch.tensor(False), labels, **settings)

    def complete(
        self,
        images: Tensor,
        known: Tensor,
        labels: Tensor | None,
        *,
        noise: Tensor,
        progress: bool = False,
        **settings: Any,
    ) -> Tensor:
        values = self._model.checked_images(images)
        known = known.expand(values.shape)
        values = values.masked_fill(~known, 0)
        given = checked_conditioning(self._model, labels, None, len(values))
        with self._model.in_use(), progress_bar(shown=progress, total=values.shape[2], unit="row") as bar:
            job = Job(
                values=values, noise=noise, given=given, known=known, on_row=lambda y: bar.update(y > 0)
            )
            ReferenceRuntime(self._model, self._draws).run(job)
            bar.update()
        return self._model.as_images(values)


class Apart:
    """The same in a process of its own, as ``naive_apart`` explains."""

    def __init__(
        self, pool: ProcessPoolExecutor, work: Callable[[], Workload], head: Head, draws: int
    ) -> None:
        self._pool = pool
        pool.submit(_begin, work, torch.get_num_threads(), head, draws).result()

    def sample(self, *args: Any, **settings: Any) -> Tensor:
        return self._called("sample", args, settings)

    def complete(self, *args: Any, **settings: Any) -> Tensor:
        return self._called("complete", args, settings)

    def _called(self, method: str, args: tuple[Any, ...], settings: dict[str, Any]) -> Tensor:
        found: Tensor = self._pool.submit(_call, method, args, settings).result()
        return found


@contextlib.contextmanager
def naive_apart(work: Callable[[], Workload]) -> Iterator[Callable[[Head, int], Apart]]:
    """For ``compare``: the naive sampler in a process that makes its own work, by a function that can be pickled.

    Here, it would gain by what this package did before: building the sampler of a large model leaves gigabytes of heap,
    in which PyTorch finds room for tensors that it else asks the system for, at each layer of each forward. Page
    faults are up to half of the time that people wait.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield partial(Apart, pool, work)


_naive: list[Naive] = []  # of the process apart


def _begin(work: Callable[[], Workload], threads: int, head: Head, draws: int) -> None:
    torch.set_num_threads(threads)
    _naive.append(Naive(work(), head, draws))


def _call(method: str, args: tuple[Any, ...], settings: dict[str, Any]) -> Tensor:
    found: Tensor = getattr(_naive[0], method)(*args, **settings)
    return found
