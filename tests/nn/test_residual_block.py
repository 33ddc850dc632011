import pytest
import torch

from pixelcnn_fast.models import reference
from pixelcnn_fast.nn import ResidualBlock, channel_groups
from pixelcnn_fast.nn.channel_order import ChannelOrder
from tests.tolerances import assert_identical_up_to_rounding


@pytest.mark.parametrize("order", [None, "thirds", "interleaved"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("widths", [(6, 6), (6, 9), (9, 6)])
def test_equals_the_reference(widths: tuple[int, int], training: bool, order: ChannelOrder | None) -> None:
    groups = None
    if order is not None:
        groups = channel_groups(widths[0], 3, order), channel_groups(widths[1], 3, order)
    block = ResidualBlock(*widths, groups)
    plain = reference.ResidualBlock(*widths, *(x.tolist() for x in groups or ()))
    for (key, a), b in zip(block.state_dict().items(), plain.state_dict().values(), strict=True):
        assert not key.endswith("mask") or torch.equal(a, b), key
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, widths[0], 4, 5, dtype=torch.float64)
    block, plain = block.double().train(training), plain.double().train(training)
    assert_identical_up_to_rounding(block(x).detach(), plain(x).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_same_dtype_with_and_without_gradients(dtype: torch.dtype) -> None:
    """A residual in float32 makes the sum float32, as in plain PyTorch."""
    block, x = ResidualBlock(4, 4).eval(), torch.randn(2, 4, 6, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        with_gradients = block(x)
        with torch.no_grad():
            without = block(x)
    assert without.dtype == with_gradients.dtype == dtype
    torch.testing.assert_close(without, with_gradients.detach(), atol=0.05, rtol=0.05)
