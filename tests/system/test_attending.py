"""Networks that attend: each mutant of their attention is found, in the program or by its images."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelcnn_fast import Sampler
from pixelcnn_fast.program.attention import Attention
from pixelcnn_fast.program.causality import leak_of
from pixelcnn_fast.program.evaluate import evaluate
from pixelcnn_fast.program.phased import Phase
from pixelcnn_fast.program.program import Program
from tests.needs import needs_native
from tests.system.attending import StartToken
from tests.system.foreign import NETWORKS
from tests.system.test_foreign import captured, sees_too_much
from tests.tiers import thorough

ATTENTIONS = {"snail": 1, "tokens": 2, "start token": 1, "axial": 3, "weights by hand": 2}


class OfOtherHead(Attention):
    def _average(self, query: Tensor, pixels: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
        assert key is not None
        return super()._average(query, pixels, key.roll(key.shape[-1] // self.heads, -1), value)


class OfOtherImage(Attention):
    def _average(self, query: Tensor, pixels: Tensor, key: Tensor | None, value: Tensor) -> Tensor:
        assert key is not None
        return super()._average(query, pixels, key.roll(1, 0), value.roll(1, 0))


def but(i: Attention, kind: type[Attention] = Attention, **changed: Any) -> Attention:
    return kind(**{**{field.name: getattr(i, field.name) for field in fields(i)}, **changed})


def lying(i: Attention, dy: int, dx: int) -> Tensor:
    """[pixels, pixels]: whether the key lies so far from the query."""
    pixel = torch.arange(i.allowed.shape[-1])
    y, x = pixel // i.width, pixel % i.width
    return (y - y[:, None] == dy) & (x - x[:, None] == dx)


def wrong(i: Attention) -> Iterator[tuple[str, Attention]]:
    """What attends to the same pixels or to fewer, and differently."""
    yield "the keys of another head", but(i, OfOtherHead)
    yield "what was kept of another image", but(i, OfOtherImage)
    scale = torch.ones((), dtype=torch.float64) if i.scale is None else i.scale
    yield "another scale", but(i, scale=(scale * 2**-0.5).expand(*i.allowed.shape))
    for offset in {*i.offsets[:3], *i.offsets[-3:]}:
        yield f"no key at {offset}", but(i, allowed=i.allowed & ~lying(i, *offset))


def wider(i: Attention) -> Iterator[tuple[str, Attention]]:
    """What attends to more pixels than it did."""
    (first, _), (last, _) = i.offsets[0], i.offsets[-1]
    around = {(y, x + by) for y, x in i.offsets if y in (first, last) for by in (-1, 1)} - {*i.offsets}
    for offset in sorted(around):
        if bool(lying(i, *offset).any()):
            yield f"keys at {offset}, too", but(i, allowed=i.allowed | lying(i, *offset))
    none = ~i.allowed.any(-1, keepdim=True)
    if bool(none.any()):
        yield "rows that are not zeroed", but(i, allowed=i.allowed | none)


def attentions(program: Program) -> list[tuple[int, Attention]]:
    return [(index, i) for index, i in enumerate(program.instructions) if isinstance(i, Attention)]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_other_attention_is_a_mismatch_or_a_leak(name: str) -> None:
    program, levels, logits, condition = captured(NETWORKS[name])
    found = attentions(program)
    assert len(found) == ATTENTIONS[name]
    for index, i in found:

        def mutant(changed: Attention, index: int = index) -> Program:
            before, after = program.instructions[:index], program.instructions[index + 1 :]
            return replace(program, instructions=(*before, changed, *after))

        for what, changed in wrong(i):
            difference = evaluate(mutant(changed), levels, condition) - logits
            assert difference.abs().max() > 1e-9 and leak_of(mutant(changed)) is None, what
        for what, changed in wider(i):
            leaks = leak_of(mutant(changed)) is not None
            assert leaks == sees_too_much(mutant(changed), levels, condition), what
            difference = evaluate(mutant(changed), levels, condition) - logits
            assert leaks or difference.abs().max() > 1e-9, what


@pytest.mark.parametrize("name", ["snail", "axial"])
def test_a_vertical_stack_attends_by_rows_and_what_is_near_keeps_a_wavefront(name: str) -> None:
    program = NETWORKS[name].sampler(NETWORKS[name].model())._engine.require_compiled().program
    phases = [i.phase for i in program.instructions if isinstance(i.instruction, Attention)]
    vertical = name == "axial"
    assert phases == [Phase.ROW if vertical and k == 0 else Phase.PIXEL for k in range(ATTENTIONS[name])]
    assert (program.wavefront is not None) == vertical
    if program.wavefront is not None:
        assert program.wavefront.lag == 2  # its window has one column to the right


def test_images_are_as_frequent_as_they_are_probable() -> None:
    torch.manual_seed(0)
    levels, size, n = 2, (2, 3), 8_000
    model = StartToken(levels, tokens=6).eval()
    sampler = Sampler(model, (1, *size), levels=levels)
    every = torch.cartesian_prod(*6 * [torch.arange(levels, dtype=torch.uint8)]).view(-1, 1, *size)
    expected = n * sampler.log_prob(every).double().exp().detach()
    torch.testing.assert_close(expected.sum(), torch.tensor(float(n)).double())

    def statistic(images: Tensor) -> float:
        numbers = (images.long().flatten(1) * levels ** torch.arange(5, -1, -1)).sum(1)
        counts = numbers.bincount(minlength=len(every))
        return float(((counts - expected).square() / expected).sum())

    drawn = sampler.sample(n, generator=torch.Generator().manual_seed(0))
    freedom = len(every) - 1
    most = freedom + 4 * (2 * freedom) ** 0.5
    assert statistic(drawn) < most < statistic(drawn.flip(3))


DRAWING = """
import torch
from pathlib import Path
from torch.nn.functional import pad, scaled_dot_product_attention
from pixelcnn_fast import Sampler
from tests.system.networks import Written

def attend(net, x):
    q, k, v = net.of_rows(pad(x.movedim(1, 3), (0, 0, 1, -1))).chunk(3, 3)
    return net.out(scaled_dot_product_attention(q, k, v, is_causal=True)).movedim(3, 1)

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])

net = Written(attend, of_rows=torch.nn.Linear(1, 3 * 128), out=torch.nn.Linear(128, 2))
sampler = Sampler(net, (1, 64, 64), levels=2, image_form="unit")
known = torch.arange(64)[:, None].expand(-1, 64) < 63  # but for the last row
print(sampler.program)
before = resident("VmRSS")
for n in (1, 32):  # the first measures the machine, too
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    sampler.complete(torch.zeros(n, 1, 64, 64, dtype=torch.uint8), known, runtime="cpu", batch_size=n)
print((resident("VmHWM") - before) / 32)
"""


@thorough
@needs_native
@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems count memory in other units, or not at all"
)
def test_what_is_printed_is_the_memory_that_keys_and_values_take() -> None:
    found = subprocess.run([sys.executable, "-c", DRAWING], capture_output=True, text=True, check=True).stdout
    printed = re.search(r"([\d.]+) MB of workspace per image", found)
    assert printed is not None
    megabytes = float(printed[1])
    of_cache = 64 * 64 * 2 * 128 * 4 / 1e6
    assert of_cache < megabytes < 1.1 * of_cache
    assert 0.9 * megabytes < float(found.split()[-1]) / 1e6 < 1.1 * megabytes
