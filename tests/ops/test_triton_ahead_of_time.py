"""The Triton kernels, compiled for GPUs that are not here: spills, shared memory, instructions.

The real functions are called on tensors without memory, and each launch compiles its kernel instead of running it.
Only the kernels that a large batch runs are compiled; PIXELCNN_FAST_EVERY_KERNEL=1 compiles all, which takes minutes.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed: pip install triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is set, so that nothing compiles", allow_module_level=True)

import triton_kernels  # noqa: E402
from triton_kernels import DEVICES, Device, Launch, compiling, programs_at_once  # noqa: E402

from pixelcnn_fast.ops import triton_recurrence  # noqa: E402
from pixelcnn_fast.ops.categorical_nll import triton as categorical_nll  # noqa: E402
from pixelcnn_fast.ops.concat_elu import triton as concat_elu  # noqa: E402
from pixelcnn_fast.ops.gated_activation import triton as gated_activation  # noqa: E402
from pixelcnn_fast.ops.masked_conv2d import triton as masked_conv2d  # noqa: E402
from pixelcnn_fast.ops.masked_conv2d.triton_weight_gradient import weight_gradient  # noqa: E402
from tests.docs import DOCS  # noqa: E402
from tests.tiers import thorough  # noqa: E402
from tests.triton_device import float32_precision  # noqa: E402

pytestmark = thorough

EVERY_KERNEL = os.environ.get("PIXELCNN_FAST_EVERY_KERNEL") == "1"


@pytest.fixture(params=DEVICES.values(), ids=lambda device: f"sm_{device.capability}")
def device(request) -> Device:
    return request.param


@pytest.fixture
def compiled(device) -> Iterator[list[Launch]]:
    """The launches from now on."""
    with compiling(device) as launches:
        yield launches


@pytest.fixture(params=["16 bit", "tf32", *(["ieee"] if EVERY_KERNEL else [])])
def arithmetic(request) -> Iterator[str]:
    with float32_precision("tf32" if request.param == "tf32" else "ieee"):
        yield request.param


def feature_map(batch: int, channels: int, dtype: torch.dtype, size: int = 32) -> torch.Tensor:
    return torch.empty(batch, channels, size, size, dtype=dtype, device="meta").to(
        memory_format=torch.channels_last
    )


def check_resources(device: Device, launches: list[Launch]) -> None:
    for name, arguments, kernel in launches:
        where = f"{name} {arguments}"
        spills = re.findall(r"\b(?:STL|LDL)\b", kernel.asm["sass"])
        assert not spills, f"{len(spills)} spills: {where}"
        assert kernel.metadata.shared <= device.shared_memory, (
            f"{kernel.metadata.shared} bytes shared: {where}"
        )


def test_convolutions(device, compiled, arithmetic):
    dtype = torch.bfloat16 if arithmetic == "16 bit" else torch.float32
    x = feature_map(64, 128, dtype)
    weight = torch.empty(128, 128, 3, 3, dtype=dtype, device="meta")
    mask = torch.empty(3, 3, dtype=torch.bool, device="meta")
    how: tuple[Any, Any, Any] = (mask, [1, 1], [1, 1])  # lists, as torch hands them to an op
    weight_gradient(x, x, weight.shape, *how)
    inputs = [x]
    if EVERY_KERNEL:
        masked_conv2d.input_gradient(x, weight, mask, x.shape, *how[1:])
        inputs += [feature_map(batch, 128, dtype) for batch in (1, 4, 8, 16)] + [x.contiguous()]
    for x in inputs:
        masked_conv2d.forward(x, weight, x.new_empty(128), *how, "elu", 1.0, x, x.new_empty(x.shape[:2]))
    check_resources(device, compiled)
    products = [launch for launch in compiled if "PRECISION" in launch.arguments]
    assert len(products) == (8 if EVERY_KERNEL else 2) and len(compiled) == (15 if EVERY_KERNEL else 3)
    for launch in products:
        name, arguments, kernel = launch
        where = f"{name} {arguments}"
        sass = kernel.asm["sass"]
        block = [arguments[f"BLOCK_{letter}"] for letter in "PIO"]
        if arithmetic != "ieee":
            assert device.matrix_instruction in sass, where
        if arithmetic == "16 bit":
            assert all(copy.endswith("128") for copy in re.findall(r"LDGSTS\S*", sass)), (
                f"narrow copies: {where}"
            )
        # Stages of both operands in flight: loads are asynchronous, and pipelined across taps.
        across = arguments["BLOCK_I"] if "outer" not in name else arguments["BLOCK_P"]
        stage = across * (sum(block) - across) * dtype.itemsize
        assert "LDGSTS" in sass and kernel.metadata.shared >= (arguments["num_stages"] - 1) * stage, where
        in_place = arguments.get("CHANNELS_LAST", True)  # where not, maps are copied anyway
        if in_place and arithmetic != "ieee" and device.matrix_instruction != "HMMA":
            assert programs_at_once(device, launch) >= 2, where
        # Some compilers would wait for each product before they start the next one.
        waits, multiplications = (len(re.findall(name, sass)) for name in (r"WARPGROUP\.DEPBAR", r"\bHGMMA"))
        assert device.matrix_instruction != "HGMMA" or arithmetic == "ieee" or waits < multiplications, where


def test_the_documented_table_is_what_triton_gives():
    page = (DOCS / "triton.md").read_text()
    if f"triton {triton.__version__}:" not in page:
        pytest.skip(f"the table was written with another triton than {triton.__version__}")
    with float32_precision("tf32"):
        found = triton_kernels.table(DEVICES[90])
    assert found in page, "put into docs/triton.md what python benchmarks/triton_kernels.py prints"


def test_the_innermost_loop_that_multiplies() -> None:
    lines = ["Function:f", "LBB0:", "1\tNOP;", "LBB1:", "1\tHGMMA.64x8 R1;", "1\tNOP;", "1\t@P0 BRA LBB1;"]
    lines += [
        "LBB2:",
        "1\t@!P0 BRA LBB2;",
        "1\t@P1 BRA LBB0;",
        "1\t@P2 BRA LBB3;",
        "LBB3:",
        "1\tHGMMA.64x8 R2;",
    ]
    assert triton_kernels.main_loop("\n".join(lines)) == ["HGMMA.64x8 R1;", "NOP;", "@P0 BRA LBB1;"]
    assert triton_kernels.main_loop("\n".join(lines[:6])) == []


def test_recurrences(device, compiled, arithmetic):
    dtype = torch.bfloat16 if arithmetic == "16 bit" else torch.float32
    sums, h0 = feature_map(16, 512, dtype), torch.empty(128, dtype=dtype, device="meta")
    for diagonal in (False, True) if EVERY_KERNEL else (True,):
        weight = h0.new_empty(512, 128, 2 if diagonal else 3)
        h, gates = triton_recurrence.forward(sums, weight, h0, h0, diagonal, diagonal, True)
        triton_recurrence.backward(h, weight, h0, gates, diagonal, diagonal)
    assert len(compiled) == (6 if EVERY_KERNEL else 3)
    check_resources(device, compiled)
    for name, arguments, kernel in compiled:
        sass = kernel.asm["sass"]
        if "PRECISION" in arguments:
            # Of a row of 32 pixels, products are too small for HGMMA and UTCHMMA.
            assert arithmetic == "ieee" or "HMMA" in sass, f"{name} {arguments}"
            assert "BAR.SYNC" in sass, f"no barrier between steps: {name} {arguments}"


def test_pointwise_kernels(device, compiled):
    x = feature_map(16, 256, torch.bfloat16)
    memory_formats = [torch.channels_last, torch.contiguous_format]
    for memory_format in memory_formats if EVERY_KERNEL else memory_formats[:1]:
        x = x.contiguous(memory_format=memory_format)
        gated_activation.backward(x[:, :128], x, x.new_empty(16, 256))
        concat_elu.backward(x, x)
        if EVERY_KERNEL:
            gated_activation.forward(x, x)
            gated_activation.forward(x, None, linear=True)
            concat_elu.forward(x)
        logits = x.new_empty(16, 768, 32, 32).to(memory_format=memory_format)
        logits = logits.unflatten(1, (3, 256)).permute(0, 1, 3, 4, 2)
        levels = x.new_empty(16, 3, 32, 32, dtype=torch.int64)
        nll, logsumexp = categorical_nll.forward(logits, levels)
        categorical_nll.backward(nll, logits, levels, logsumexp)
    assert len(compiled) == (14 if EVERY_KERNEL else 4)
    check_resources(device, compiled)
    assert "LDG.E.128" in compiled[0][2].asm["sass"], "the gate's loads are not vectors"
