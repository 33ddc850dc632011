import pytest
import torch

from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import DiagonalLSTM, MaskedConv2d, RowLSTM, raster_mask
from tests.tolerances import assert_identical_up_to_rounding


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (7, 7), (3, 5), (5, 1)])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_mask_keeps_all_earlier_pixels_and_nothing_later(size, mask_type):
    height, width = size
    mask = raster_mask(height, width, mask_type)
    centre = height // 2, width // 2
    for i in range(height):
        for j in range(width):
            earlier = (i, j) < centre
            assert mask[i, j] == (earlier or (mask_type == "B" and (i, j) == centre))


def test_rectangular_kernels_and_dilation():
    conv = MaskedConv2d(1, 1, (1, 5), "B", dilation=2)
    assert conv.mask.flatten().tolist() == [1, 1, 1, 0, 0]
    assert conv(torch.zeros(1, 1, 7, 9)).shape == (1, 1, 7, 9)


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_equals_the_reference_and_a_strided_input(mask_type):
    fast, plain = (
        MaskedConv2d(33, 5, 3, mask_type).double(),
        reference.MaskedConv2d(33, 5, 3, mask_type).double(),
    )
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())
    for shape in [(2, 33, 7, 5), (1, 33, 1, 1), (0, 33, 4, 4)]:
        x = torch.randn(shape, dtype=torch.float64)
        for layout in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
            assert_identical_up_to_rounding(fast(layout), plain(layout))


def test_reading_never_changes_the_weights_and_gradients_reach_only_live_ones():
    conv = MaskedConv2d(2, 3, 3, "A")
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    assert conv.weight[conv.mask == 0].abs().min() > 0  # dead weights exist
    conv(torch.randn(2, 2, 5, 5)).square().sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())
    gradient = conv.weight.grad
    assert gradient is not None
    assert (gradient[conv.mask == 0] == 0).all()
    assert (gradient[conv.mask == 1] != 0).all()


def test_dead_weights_do_not_matter():
    conv, x = MaskedConv2d(2, 3, 5, "B"), torch.randn(2, 2, 6, 6)
    expected = conv(x)
    conv.weight.data[conv.mask == 0] = 1e6
    assert torch.equal(conv(x), expected)


def test_what_is_printed_tells_layers_apart() -> None:
    assert "mask_type='A'" in repr(MaskedConv2d(1, 2, 3, "A")) and "mask_type='B'" in repr(RowLSTM(1, 2))
    assert ["reverse=True" in repr(DiagonalLSTM(1, 2, reverse)) for reverse in (False, True)] == [False, True]


@pytest.mark.parametrize(
    ("kernel", "mask_type", "message"), [(4, "A", "odd"), ((3, 2), "B", "odd"), (3, "C", "mask_type")]
)
def test_refusals(kernel, mask_type, message):
    with pytest.raises(ValueError, match=message):
        MaskedConv2d(1, 1, kernel, mask_type)
