import pytest
import torch

from pixelcnn_fast.nn import GatedActivation, GatedBlock, HorizontalConv2d, VerticalConv2d
from tests.tolerances import assert_identical_up_to_rounding


@pytest.mark.parametrize("dilation", [1, 2])
def test_vertical_masks_see_whole_rows_and_horizontal_ones_the_row_so_far(dilation):
    assert VerticalConv2d(1, 1, 3, "A", dilation).mask.flatten().tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert VerticalConv2d(1, 1, 3, "B", dilation).mask.flatten().tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert HorizontalConv2d(1, 1, 5, "A", dilation).mask.flatten().tolist() == [1, 1, 0, 0, 0]
    assert HorizontalConv2d(1, 1, 5, "B", dilation).mask.flatten().tolist() == [1, 1, 1, 0, 0]
    for conv in (VerticalConv2d(2, 3, 3, "B", dilation), HorizontalConv2d(2, 3, 3, "B", dilation)):
        for shape in [(2, 2, 7, 5), (1, 2, 1, 1), (0, 2, 4, 4)]:
            assert conv(torch.zeros(shape)).shape == (shape[0], 3, *shape[2:])


def test_the_gate():
    x, condition = torch.randn(3, 10, 7, 5), torch.randn(3, 10)
    gate = GatedActivation()
    x, condition = x.double(), condition.double()
    assert_identical_up_to_rounding(gate(x), x[:, :5].tanh() * x[:, 5:].sigmoid())
    for c in (condition, condition[:, :, None, None]):
        assert torch.equal(gate(x, c), gate(x + condition[:, :, None, None]))
    columns = torch.randn(3, 10, 7, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="2C"):
        gate(x, columns)
    assert torch.equal(gate(x[..., :1], columns), gate(x[..., :1] + columns))
    rows = torch.randn(3, 10, 1, 5, dtype=torch.float64)
    assert torch.equal(gate(x[:, :, :1], rows), gate(x[:, :, :1] + rows))
    assert torch.equal(gate(x, x), gate(x + x))
    for bad in [(torch.zeros(1, 3, 2, 2),), (x, torch.zeros(3, 5)), (x, torch.zeros(3, 5, 7, 5))]:
        with pytest.raises(ValueError, match="2C"):
            gate(*bad)


def test_a_block_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="equal widths"):
        GatedBlock(1, 8)
    x, labels = torch.zeros(1, 8, 3, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="labels: missing"):
        GatedBlock(8, 8, n_classes=2)(x, x)
    with pytest.raises(ValueError, match="condition: given"):
        GatedBlock(8, 8, n_classes=2)(x, x, labels, x)
