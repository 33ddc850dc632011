"""The compiled runtime uses the threads of torch's OpenMP; where that has none to give, it starts its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import needs_native
from tests.tiers import few

pytestmark = [
    needs_native,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here"),
]

SCRIPT = """
import os, signal, torch
from pixelcnn_fast import Sampler
from tests.system.networks import pixelcnn

torch.set_num_threads(2)
sampler, noise = Sampler(pixelcnn(hidden=64), (1, 5, 5)), torch.rand(3, 1, 5, 5, dtype=torch.float64)
torch.rand(1 << 20).exp()  # OpenMP now has threads, if it may
images = sampler.sample(3, noise=noise, runtime="cpu")
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(not torch.equal(sampler.sample(3, noise=noise, runtime="cpu"), images))
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("limit", few([None, "1"], 1), ids=["OpenMP", "OpenMP with one thread"])
def test_the_same_images_after_a_fork(limit):
    """A child process has the memory of OpenMP's threads but not the threads: if it waited for them, it would hang."""
    environment = dict(os.environ)
    if limit is not None:
        environment["OMP_THREAD_LIMIT"] = limit
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=environment, timeout=300, text=True, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
