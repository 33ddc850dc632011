"""Memory of large results, which is kept and handed out again."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import ops
from pixelcnn_fast.native import required
from pixelcnn_fast.ops.library import POOLED, pooled
from tests.needs import needs_native
from tests.tiers import thorough

pytestmark = needs_native


def gate(n: int, value: float) -> Tensor:
    """A result of n * 2 MB."""
    return ops.gated_activation(torch.full((n, 2, 512, 1024), value))


def test_a_freed_result_s_memory_is_handed_out_again() -> None:
    first = gate(3, 0.5)
    where, expected = first.data_ptr(), first[0, 0, 0, 0].item()
    del first
    gc.collect()
    kept = required().Block.kept()
    again = gate(3, 0.5)
    assert again.data_ptr() == where and required().Block.kept() == kept - 3 * POOLED
    assert bool((again == expected).all())


def test_memory_in_use_is_left_alone() -> None:
    """By views, and by what autograd keeps."""
    view = gate(2, 0.1)[1, 0, 3]
    values = view.clone()
    for _ in range(4):
        gate(2, -3.0)
    assert torch.equal(view, values)
    x = torch.full((2, 2, 512, 1024), 0.1, requires_grad=True)
    out = ops.gated_activation(x).square()
    for _ in range(4):
        gate(2, -3.0)
    out.sum().backward()
    plain = torch.full((1,), 0.1, dtype=torch.float64, requires_grad=True)
    (plain.tanh() * plain.sigmoid()).square().backward()
    assert x.grad is not None and plain.grad is not None
    torch.testing.assert_close(x.grad.sum(1).mean().double(), plain.grad[0], rtol=1e-5, atol=0)


def in_fresh_process(function: Callable[[], None], **environment: str) -> None:
    """What is kept depends on how much was in use before."""
    script = f"from {__name__} import {function.__name__}; {function.__name__}()"
    command, root = [sys.executable, "-W", "ignore", "-c", script], Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env=os.environ | environment)


@thorough
def test_it_keeps_at_most_a_quarter_more_than_was_in_use() -> None:
    in_fresh_process(keeps_a_quarter_more)


def keeps_a_quarter_more() -> None:
    block = required().Block
    blocks = [block(k * POOLED) for k in range(1, 9)]  # 36 huge pages in use at once
    most = block.kept() + 36 * POOLED
    del blocks
    for k in range(17, 90, 9):
        block(k * POOLED)  # of a size that there is not
        most = max(most, k * POOLED)
        assert block.kept() <= most + most // 4 + 8 * 2**20


@thorough
def test_what_a_model_asks_for_again_is_not_taken_apart() -> None:
    in_fresh_process(calls_a_model)


def calls_a_model() -> None:
    """Its maps are of 8 MB, three at once, and then its logits of 52 MB."""

    def call() -> set[int]:
        maps = [pooled(torch.empty(4 * POOLED, dtype=torch.uint8)) for _ in range(3)]
        used = {x.data_ptr() for x in maps}
        del maps[1:]
        return used | {pooled(torch.empty(26 * POOLED, dtype=torch.uint8)).data_ptr()}

    call()
    used = call()
    assert len(used) == 4 and all(call() == used for _ in range(3))


@thorough
def test_a_large_block_is_put_together_from_smaller_ones() -> None:
    in_fresh_process(puts_together)


def puts_together() -> None:
    parts = [gate(29, 0.5), gate(31, 0.5)]
    expected = parts[0].flatten()[0].item()
    del parts
    kept = required().Block.kept()
    whole = gate(60, 0.5)
    taken = (kept - required().Block.kept()) / POOLED
    assert 60 <= taken <= 60 + 60 / 8  # what fits is not put together
    assert bool((whole == expected).all())
    rest = gate(31, -0.5)
    assert bool((whole == expected).all()) and not bool((rest == expected).any())


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("c++"), reason="needs Linux and a compiler")
@thorough
def test_older_systems_do_not_move_several_mappings_at_once(tmp_path: Path) -> None:
    library = tmp_path / "old_mremap.so"
    source = Path(__file__).with_name("old_mremap.cpp")
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    in_fresh_process(takes_ever_larger_blocks, LD_PRELOAD=str(library))


def takes_ever_larger_blocks() -> None:
    """100 MB, each time in fewer blocks, which are put together from those before."""
    for count in (10, 5, 3, 2, 1):
        maps = [pooled(torch.empty(100 * 2**20 // count, dtype=torch.uint8)) for _ in range(count)]
        for value, x in enumerate(maps):
            x.fill_(value)
        assert all(bool((x == value).all()) for value, x in enumerate(maps))


def test_a_somewhat_larger_block_will_do() -> None:
    block = required().Block
    held = [block(257 * POOLED)]
    kept = block.kept()
    held.clear()
    held.append(block(250 * POOLED))
    assert block.kept() == kept


def test_results_are_ordinary_tensors() -> None:
    out = gate(2, 0.5)
    assert out._base is None and out.is_contiguous() and not out.is_inference()
    assert torch.equal(out.clone().resize_(4), out.flatten()[:4])
    assert out.add_(1).mul_(2).shape == (2, 1, 512, 1024)
    empty = torch.empty(2, 3, 512, 1024, dtype=torch.float64, memory_format=torch.channels_last)
    large = pooled(empty)
    assert (large.dtype, large.stride(), large.shape) == (empty.dtype, empty.stride(), empty.shape)
    small = torch.empty(7)
    assert pooled(small) is small


def test_threads_get_memory_of_their_own() -> None:
    wrong: list[float] = []

    def work(value: float) -> None:
        expected = torch.tensor(value).tanh() * torch.tensor(value).sigmoid()
        for _ in range(20):
            if not torch.allclose(gate(1, value), expected):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(k / 4,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_gets_memory_of_the_pool() -> None:
    """It has a copy of the lock, which nobody else in it would release."""
    x, weight, mask = torch.randn(1, 4, 3, 3), torch.randn(4, 4, 3, 3), torch.ones(4, 4, 3, 3)
    expected = ops.masked_conv2d(x, weight, None, mask)
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(not torch.equal(ops.masked_conv2d(x, weight, None, mask), expected))
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(ops.masked_conv2d(x, weight, None, mask), expected)


FORKS = """
import os, sys, threading, time, torch
from pixelcnn_fast.ops import masked_conv2d
torch.set_num_threads(1)
x, weight = torch.randn(1, 4, 3, 3), torch.randn(4, 4, 3, 3)
stop = threading.Event()
def work():
    while not stop.is_set():
        masked_conv2d(x, weight, None, torch.ones(4, 4, 3, 3))
thread = threading.Thread(target=work)
thread.start()
hung = 0
for _ in range(40):
    child = os.fork()
    if not child:
        masked_conv2d(x, weight, None, torch.ones(4, 4, 3, 3))
        os._exit(0)
    start = time.monotonic()
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() - start > 10:
            os.kill(child, 9)
            hung += 1
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
stop.set()
sys.exit(hung)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@thorough
def test_a_fork_does_not_wait_for_another_thread() -> None:
    """Of the parent's: it may have been using the memory that is kept."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], check=False).returncode == 0
