"""In tests every program is verified after every pass, Ctrl-C is heard, and processes side by side share the cores,
for whose quiet nobody waits. Each test draws its random numbers from the same seed.

Threads of OpenMP wait for each other in loops, which on shared cores takes many times as long as the work.
"""

import os
import signal
from collections import Counter
from pathlib import Path

if (
    workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
) > 1:  # PyTorch reads it once, at its import
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch

from pixelcnn_fast.bench import quiet
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.verify import verify

FOLDER = Path(__file__).parent
quiet.SECONDS, quiet.PATIENCE = 0.05, 0.0
pipeline.watches.append(lambda name, program: verify(program))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of several workers, each takes the next file. Those that take longest come first, or one worker would be left with one
# of them at the end; then those of the most tests.
LONGEST = (
    "csrc/test_cuda_runtime",
    "ops/test_triton_interpreter",
    "test_build",
    "docs/test_recipes",
    "csrc/test_cuda_random_networks",
    "cli/test_memory",
    "system/test_foreign",
    "bench/test_column_steps",
    "csrc/test_resources",
    "benchmarks/gpu/test_smoke",
    "bench/test_whole_image",
    "examples/test_refine_mnist",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    tests = Counter(item.path for item in items)
    names = {path: path.relative_to(FOLDER).with_suffix("").as_posix() for path in tests}
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(names[item.path], len(LONGEST)), -tests[item.path]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
