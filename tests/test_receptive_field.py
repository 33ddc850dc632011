"""What a model sees: compared with autograd, described in words and drawn as a picture."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.image
import pytest
import torch

from pixelcnn_fast import check_causal, receptive_field
from pixelcnn_fast.__main__ import main
from pixelcnn_fast.errors import NotCausal
from pixelcnn_fast.models import GatedPixelCNN, PixelCNN
from pixelcnn_fast.nn import GatedBlock
from tests.system.networks import pixelcnn, positive

Model = PixelCNN | GatedPixelCNN
MODELS: dict[str, Callable[[], Model]] = {
    "convolutional": lambda: PixelCNN(2, 5, 1, kernel_size=3),
    "thirds": lambda: PixelCNN(3, 7, 1, kernel_size=3, channel_order="thirds"),
    "gated": lambda: GatedPixelCNN(1, 4, [1, 1, 2], levels=4),
    "gated, interleaved": lambda: GatedPixelCNN(3, 4, [1, 1], channel_order="interleaved", levels=4),
}


def small(name: str) -> Model:
    torch.manual_seed(0)
    return MODELS[name]().eval()


@pytest.mark.parametrize("name", MODELS)
def test_is_what_autograd_sees(name):
    model, (height, width) = small(name), (5, 7)
    c = model.input_channels
    field = receptive_field(model, (c, height, width))
    images = torch.rand(1, c, height, width, requires_grad=True)
    logits = positive(model)(images)
    for y, x in [(0, 0), (2, 3), (4, 6)]:
        for channel in range(c):
            expected = torch.autograd.grad(logits[0, channel, y, x].sum(), images, retain_graph=True)[0][0] != 0
            window = field.seen[
                channel, :, height - 1 - y : 2 * height - 1 - y, width - 1 - x : 2 * width - 1 - x
            ]
            assert torch.equal(window, expected), (y, x, channel)


@pytest.mark.parametrize("name", MODELS)
def test_only_the_gated_networks_have_no_blind_spot(name):
    model = small(name)
    field = receptive_field(model, (model.input_channels, 9, 9))
    assert field.causal and bool(field.blind_spots.any()) != name.startswith("gated")


def test_a_starved_mask_is_a_blind_spot():
    model = small("gated")
    for block in model.blocks:
        assert isinstance(block, GatedBlock)
        block.horizontal.mask[:, :, :, 0] = 0  # hides the present row
    field = receptive_field(model, (1, 5, 7))
    assert field.causal and field.blind_spots[0, 0, 4, :6].any() and not field.blind_spots[0, 0, 4, 6:].any()


LEAKS = {
    "mask B in the first layer": (
        "convolutional",
        lambda m: m.conv_in.mask[:, :, 1, 1].fill_(1),
        r"conv_in: .*\(\+0, \+0\).*mask A",
    ),
    "a later pixel": (
        "convolutional",
        lambda m: m.tail[0].mask[0, 0, 1, 2].fill_(1),
        r"tail.0: .*\(\+0, \+1\).*is the mask applied",
    ),
    "a tap of the horizontal stack": (
        "gated",
        lambda m: m.blocks[2].horizontal.mask[0, 0, 0, 2].fill_(1),
        r"blocks.2.horizontal: .*\(\+0, \+2\)",
    ),
    "the vertical stack sees its own row": (
        "gated",
        lambda m: m.blocks[0].vertical.mask[0, 0, 1].fill_(1),
        r"blocks.0.vertical: .*\(\+0, \+1\)",
    ),
    "green feeds red": (
        "thirds",
        lambda m: m.blocks[0].conv1.mask[0, 4, 1, 1].fill_(1),
        r"image channel 0 sees its own channel.*blocks.0.conv1",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_leaks_are_named(name):
    which, leak, message = LEAKS[name]
    model = small(which).train()
    shape = (model.input_channels, 5, 7)
    check_causal(model, shape)
    leak(model)
    with pytest.raises(NotCausal, match=message):
        check_causal(model, shape)
    field = receptive_field(model, shape)
    assert not field.causal and "NOT CAUSAL" in str(field) and "!" in str(field) and model.training


def test_the_field_in_words():
    text = str(receptive_field(pixelcnn(blocks=1, kernel=3), (1, 9, 9)))
    assert "receptive field in 1x9x9 images: causal" in text
    assert "up to 5 rows above, 5 columns to the left and 5 to the right; 10 sub-pixels in blind spots" in text
    assert "\n  ##########?\n" in text and "\n  #####@.....\n" in text  # the rows next to the pixel


def test_an_image_of_one_pixel():
    text = str(receptive_field(small("convolutional"), (2, 1, 1)))
    assert "causal" in text and "sees no earlier pixel\n  @\n" in text and "!" not in text


def test_channels_that_see_different_things_are_told_apart():
    model = small("thirds")
    assert isinstance(model, PixelCNN)
    model.conv_in.mask[:, 1] = 0  # nobody looks at green
    model.conv_out.mask[:256] = 0  # red looks at nothing
    text = str(receptive_field(model, (3, 5, 5)))
    assert "channel 0: sees no earlier pixel" in text
    assert "channel 1, 2: sees" in text and "  ++++@....\n" in text and "+ some channels seen" in text


def test_command_line(tmp_path, capsys):
    out = tmp_path / "new" / "field.png"
    assert main(["receptive-field", "--size", "6x8", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "1x6x8 images: causal" in text and str(out) in text
    picture = matplotlib.image.imread(out)
    assert picture.ndim == 3 and picture.shape[0] == 6 * 9  # rows of the map
    assert main(["receptive-field", "--out", "field.jpg"]) == 2
