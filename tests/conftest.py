"""In tests every program is verified after every pass, Ctrl-C is heard, and processes side by side share the cores,
for whose quiet nobody waits. Each test draws its random numbers from the same seed.

Threads of OpenMP wait for each other in loops, which on shared cores takes many times as long as the work.
"""

import os
import signal

if (
    workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
) > 1:  # PyTorch reads it once, at its import
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch

from pixelcnn_fast.bench import quiet
from pixelcnn_fast.passes import pipeline
from pixelcnn_fast.program.verify import verify

quiet.SECONDS, quiet.PATIENCE = 0.05, 0.0
pipeline.watches.append(lambda name, program: verify(program))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
