"""Copies between the host and a GPU: through pinned memory, and nobody waits."""

import pytest
import torch

from pixelcnn_fast.runtimes.cuda.pinned import on_device, on_host
from tests.copies import Copy, pretended_devices

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


def test_to_a_gpu() -> None:
    with pretended_devices() as copies:
        found = on_device(torch.zeros(3, 4, dtype=torch.bool), GPU, torch.uint8)
        assert (found.device, found.dtype, found.shape) == (GPU, torch.uint8, (3, 4))
    assert copies.made == [Copy("cpu", "cuda", 12)] and copies.pinned_elements == 12


def test_to_the_host() -> None:
    with pretended_devices() as copies:
        found = on_host(torch.zeros(3, 4, dtype=torch.int32, device=GPU))
        assert (found.device, found.dtype, found.shape) == (CPU, torch.int32, (3, 4))
    assert copies.made == [Copy("cuda", "cpu", 12)] and copies.pinned_elements == 12


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_what_is_there_is_not_copied(device: torch.device) -> None:
    with pretended_devices() as copies:
        x = torch.zeros(3, device=device)
        assert on_device(x, device, x.dtype) is x
        assert device.type == "cuda" or on_host(x) is x
        assert on_device(x, device, torch.float64).dtype == torch.float64
    assert not copies.made and not copies.pinned_elements
