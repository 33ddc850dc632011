"""Groups of channels, and masks made of them: no colour leaks, none is starved, whatever the widths."""

import pytest
import torch

from pixelcnn_fast.nn import GatedBlock, MaskedConv2d, ResidualBlock, channel_groups


@pytest.mark.parametrize("colours", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [4, 5, 7, 9, 128])
def test_every_group_gets_channels_and_the_first_get_the_remainder(channels, colours):
    thirds, interleaved = (channel_groups(channels, colours, order) for order in ("thirds", "interleaved"))
    sizes = thirds.bincount(minlength=colours)
    quotient, remainder = divmod(channels, colours)
    assert sizes.tolist() == [quotient + (g < remainder) for g in range(colours)]
    assert torch.equal(interleaved.bincount(minlength=colours), sizes)
    assert (thirds.diff() >= 0).all()
    assert interleaved.tolist() == [k % colours for k in range(channels)]


def test_the_examples_of_the_docstring():
    assert channel_groups(7, 3, "thirds").tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert channel_groups(7, 3, "interleaved").tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((2, 3, "thirds"), "more channels"), ((6, 3, "rgb"), "'thirds' or 'interleaved'")],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        channel_groups(*arguments)


@pytest.mark.parametrize("order", ["thirds", "interleaved"])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_masks_at_the_centre_follow_the_groups_and_elsewhere_all_colours_are_seen(mask_type, order):
    groups_in, groups_out = channel_groups(4, 3, order), channel_groups(7, 3, order)
    mask = MaskedConv2d(4, 7, 3, mask_type, channel_groups=(groups_in, groups_out)).mask
    for o, group_out in enumerate(groups_out.tolist()):
        for i, group_in in enumerate(groups_in.tolist()):
            seen = group_in < group_out or (mask_type == "B" and group_in == group_out)
            assert mask[o, i].flatten().tolist() == [1, 1, 1, 1, float(seen), 0, 0, 0, 0]


def test_a_residual_block_that_widens_keeps_the_order():
    """Even where neither width is a multiple of 3."""
    groups = channel_groups(4, 3, "thirds"), channel_groups(8, 3, "thirds")
    block = ResidualBlock(4, 8, groups).double().eval()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    for o, group_out in enumerate(groups[1].tolist()):
        if (out := block(x)[0, o, 1, 1]) > 0:  # else the ReLU hides everything
            (gradient,) = torch.autograd.grad(out, x)
            seen = gradient[0, :, 1, 1] != 0
            assert seen.tolist() == [g <= group_out for g in groups[0].tolist()]


@pytest.mark.parametrize("wrong", [0, 1])
def test_groups_of_another_number_of_channels_are_refused(wrong):
    groups = [channel_groups(4, 3, "thirds"), channel_groups(7, 3, "thirds")]
    groups[wrong] = groups[wrong][:1]  # which would broadcast
    with pytest.raises(ValueError, match=r"channel_groups have shapes .*expected \[4\] and \[7\]"):
        MaskedConv2d(4, 7, 3, "B", channel_groups=(groups[0], groups[1]))


@pytest.mark.parametrize(
    "groups",
    [
        (channel_groups(4, 3, "thirds"),),
        channel_groups(2, 2, "thirds"),
        ([0, 0, 1, 2], [0, 1, 2]),
        (torch.zeros(4), torch.zeros(3)),
    ],
    ids=["one", "one tensor", "lists", "floats"],
)
def test_groups_are_two_tensors_of_integers(groups):
    with pytest.raises(ValueError, match="channel_groups: expected two tensors of integers"):
        MaskedConv2d(4, 3, 3, "B", channel_groups=groups)


@pytest.mark.parametrize(("given", "same"), [(True, "thirds"), (False, None)])
def test_an_order_may_be_switched_on_and_off(given, same):
    first, second = (GatedBlock(6, 6, channel_order=order) for order in (given, same))
    for name, mask in first.named_buffers():
        assert torch.equal(mask, second.get_buffer(name)), name
