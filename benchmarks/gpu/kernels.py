"""Compiles the CUDA sampler's kernels for this GPU side by side, into the cache: python -m gpu.kernels few | all

few: those that draw the cases of ``gpu.smoke``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial

import torch

from gpu.smoke import CASES
from pixelcnn_fast.runtimes.cuda.kernels import Instance, cubin, instances
from pixelcnn_fast.runtimes.cuda.runtime import largest_cluster

LEFT = 2  # cores, for what is measured meanwhile


def seconds(instance: Instance, capability: tuple[int, int]) -> float:
    begun = time.monotonic()
    cubin(instance, capability)
    return time.monotonic() - begun


def compile_each(wanted: Iterable[Instance], capability: tuple[int, int], processes: int) -> None:
    """Raises RuntimeUnavailable, saying why, if one can't be compiled."""
    there = [kernel for kernel in wanted if kernel.cluster <= largest_cluster(capability)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        compiled = {pool.submit(partial(seconds, kernel, capability)): str(kernel) for kernel in there}
        for done in as_completed(compiled):
            print(json.dumps({compiled[done]: f"{done.result():.1f} s"}), flush=True)


def main(which: str) -> None:
    cores = os.cpu_count() or 1
    capability = torch.cuda.get_device_capability()
    if which == "few":
        compile_each(dict.fromkeys(case.kernel for case in CASES.values()), capability, cores)
    else:
        compile_each(instances(("bf16", "fp32", "fp16")), capability, max(1, cores - LEFT))


if __name__ == "__main__":
    main(*sys.argv[1:])
