"""Which tiles the Triton kernels take on a GPU, which need not be there, and how they multiply."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from pixelcnn_fast.ops import triton_tuning
from pixelcnn_fast.ops.masked_conv2d.triton import TILES
from pixelcnn_fast.ops.triton_support import precision_of
from pixelcnn_fast.ops.triton_tuning import Tile, tile
from tests.triton_device import float32_precision

GPU = torch.device("cuda")
PRODUCT = TILES["16 bit"]


def pretend(monkeypatch: pytest.MonkeyPatch, capability: int, multiprocessors: int = 1) -> None:
    monkeypatch.setattr(triton_tuning, "INTERPRETED", False)
    monkeypatch.setattr(triton_tuning, "capability", lambda device: capability)
    monkeypatch.setattr(triton_tuning, "multiprocessors", lambda device: multiprocessors)


@pytest.mark.parametrize("capability, entry", [(80, 80), (89, 86), (90, 90), (103, 100), (121, 120)])
def test_a_device_without_an_entry_takes_the_nearest_lower_one(monkeypatch, capability, entry) -> None:
    pretend(monkeypatch, capability)
    assert tile(PRODUCT, GPU, 4096, 128, 128) == PRODUCT[entry][0]


def test_a_device_that_is_too_old_is_refused(monkeypatch) -> None:
    pretend(monkeypatch, 75)
    with pytest.raises(RuntimeError, match="8.0.*7.5.*reference"):
        tile(PRODUCT, GPU, 4096, 128, 128)


def test_the_largest_tile_that_leaves_no_multiprocessor_idle(monkeypatch) -> None:
    """Or the smallest, where all would."""
    pretend(monkeypatch, 90, 132)
    known = PRODUCT[90]
    found = []
    for rows in (1 << power for power in range(8, 18)):

        def programs(of: Tile, rows: int = rows) -> int:
            return -(-rows // of.rows) * -(-200 // of.columns)

        found.append(known.index(chosen := tile(PRODUCT, GPU, rows, 200, 128)))
        assert all(programs(larger) < 132 for larger in known[: found[-1]])
        assert programs(chosen) >= 132 or chosen == known[-1]
    assert found == sorted(found, reverse=True) and {*found} == {*range(len(known))}


def test_a_tile_is_no_larger_than_the_problem_but_fills_tensor_cores(monkeypatch) -> None:
    pretend(monkeypatch, 90)
    assert tile(PRODUCT, GPU, 33, 20, 3)[:3] == (64, 32, 16)
    assert tile(PRODUCT, GPU, 1, 1, 17)[:3] == (16, 16, 32)


@pytest.mark.parametrize("allowed", ["ieee", "tf32"])
def test_float32_is_rounded_only_where_torch_allows_it(allowed: str) -> None:
    with float32_precision(allowed):
        assert precision_of(torch.float32) == allowed
        assert precision_of(torch.bfloat16) == precision_of(torch.float16) == "16 bit"
