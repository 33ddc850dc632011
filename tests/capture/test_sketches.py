"""What a sketch of a call gives is laid out as what the call gives."""

from typing import Any

import pytest
import torch
from torch import nn

from pixelcnn_fast import Sampler
from pixelcnn_fast.capture.record import recorder
from pixelcnn_fast.program.sketch import sketched
from tests.system.networks import attending

aten = torch.ops.aten
masked_conv2d = torch.ops.pixelcnn_fast.masked_conv2d


def images(*size: int) -> torch.Tensor:
    return torch.rand(size)


def last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


CONVOLUTION = ([1, 2], [3, 2], [1, 1], False, [0, 0], 1)
KERNEL = images(5, 3, 3, 3), None, torch.ones(3, 3)
CALLS: dict[str, tuple[Any, ...]] = {
    "convolution": (aten.convolution, images(2, 3, 7, 8), images(5, 3, 3, 3), images(5), *CONVOLUTION),
    "of channels last": (aten.convolution, last(images(2, 3, 7, 8)), images(5, 3, 3, 3), None, *CONVOLUTION),
    "weight last": (aten.convolution, images(2, 3, 7, 8), last(images(5, 3, 3, 3)), None, *CONVOLUTION),
    "1x1, last": (aten.convolution, last(images(2, 3, 7, 8)), images(5, 3, 1, 1), None, *CONVOLUTION),
    "1x1": (aten.convolution, images(2, 3, 7, 8), images(5, 3, 1, 1), None, *CONVOLUTION),
    "one channel": (aten.convolution, images(2, 1, 7, 8), images(5, 1, 3, 3), None, *CONVOLUTION),
    "masked": (masked_conv2d, images(2, 3, 7, 8), *KERNEL, (1, 1), (1, 1), "reference"),
    "masked, of channels last": (
        masked_conv2d,
        last(images(2, 3, 7, 8)),
        *KERNEL,
        (2, 1),
        (1, 1),
        "reference",
    ),
    "masked, weight last": (
        masked_conv2d,
        images(2, 3, 7, 8),
        last(KERNEL[0]),
        *KERNEL[1:],
        *((1, 1), (1, 1), "reference"),
    ),
    "masked, with a size": (
        masked_conv2d,
        images(2, 3, 7, 8),
        *KERNEL,
        *((2, 2), (1, 1), "reference", False, torch.channels_last, (7, 8)),
    ),
    "mm": (aten.mm, images(4, 3).mT, images(4, 5)),
    "addmm": (aten.addmm, images(5), images(4, 3), images(3, 5)),
    "bmm": (aten.bmm, images(2, 4, 3), images(2, 5, 3).mT),
    "baddbmm": (aten.baddbmm, images(1, 4, 5), images(2, 4, 3), images(2, 3, 5)),
    "mul": (aten.mul.Tensor, images(2, 4, 5), images(4, 1)),
    "mul by more": (aten.mul.Tensor, images(4, 5), images(2, 4, 1)),
    "mul by double": (aten.mul.Tensor, images(4, 5), images(4, 5).double()),
    "add to a transposed": (aten.add.Tensor, images(4, 5).mT, images(5, 4)),
    "integers divided": (aten.div.Tensor, torch.ones(4, dtype=torch.long), torch.ones(4, dtype=torch.long)),
    "filled": (aten.masked_fill.Scalar, images(2, 4, 5), images(4, 5) > 0.5, -1e9),
    "softmax": (aten._softmax, images(2, 4, 5), -1, False),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_sketch_is_laid_out_as_the_result(name):
    call, *args = CALLS[name]
    func = getattr(call, "default", call)
    found, expected = sketched(func, args), func(*args)
    if name in ("mul by more", "mul by double", "add to a transposed", "integers divided"):
        assert found is None
        return
    assert found is not None
    assert found.shape == expected.shape and found.stride() == expected.stride()
    assert found.dtype == expected.dtype and not found.any()


def test_recordings_compute_no_products(monkeypatch):
    made = list[bool]()

    def noted(*call: Any) -> torch.Tensor | None:
        found = sketched(*call)
        made.append(found is not None)
        return found

    monkeypatch.setattr(recorder, "sketched", noted)
    Sampler(attending(), (1, 5, 6))
    assert any(made)


class ReadsImages(nn.Module):
    """Multiplies with a number that it reads off products, which must not be those of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = attending()

    def forward(self, x):
        found = self.inner(x)
        return found * (2 if float(found.abs().max()) > 0 else 1)


def test_what_reads_images_is_recorded_in_full():
    images = torch.randint(256, (2, 1, 5, 6), dtype=torch.uint8)
    model = ReadsImages()
    sampler = Sampler(model, (1, 5, 6))
    assert torch.allclose(sampler.logits(images), model(images), atol=1e-5)
